"""What callbacks share that measure embeddings at the end of an epoch."""

import os
from typing import Any

import keras

from keras_jointloss._core.types import Logs
from keras_jointloss._core.validation import validate_count
from keras_jointloss.callbacks._copies import Copyable
from keras_jointloss.callbacks._summaries import OnLog, Summaries, validate_log_dir, validate_on_log
from keras_jointloss.terms.clock import optimizer_step

#: The TensorBoard run.
RUN = "validation"


class Evaluation(Copyable):
    """Adds to the logs of an epoch, and to TensorBoard, what `_measure` returns.

    Args:
        every: The number of epochs from one measurement to the next.
        batch_size: Batch size of the prediction.
        tile_size: The number of embeddings to compare with all others at once.
        log_dir: The folder for TensorBoard, or `None`.
        on_log: Called as `on_log("validation", {tag: value}, step)`.
    """

    #: The first part of a tag.
    _group = ""

    def __init__(
        self,
        every: int,
        batch_size: int | None,
        tile_size: int,
        log_dir: str | os.PathLike[str] | None,
        on_log: OnLog | None,
    ):
        super().__init__()
        self.every = validate_count(every, "every")
        self.batch_size = None if batch_size is None else validate_count(batch_size, "batch_size")
        self.tile_size = validate_count(tile_size, "tile_size")
        self.log_dir = validate_log_dir(log_dir)
        self.on_log = validate_on_log(on_log)
        self._summaries: Any = None  # Created for a model.
        #: What it added to the logs of the latest epoch that it measured.
        self.latest: dict[str, float] = {}

    def _find(self, model: keras.Model) -> None:
        """Finds the embeddings of a model."""
        raise NotImplementedError

    def _measure(self) -> tuple[str, dict[str, float]]:
        """Returns a name, and the results by key without this prefix."""
        raise NotImplementedError

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._find(model)
        if self._summaries is None:
            self._summaries = Summaries(model, self.log_dir, on_log=self.on_log)

    def on_train_begin(self, logs: Logs = None) -> None:
        self._summaries.start_training(RUN)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if (epoch + 1) % self.every:
            return
        name, results = self._measure()
        self.latest = {f"{name}_{key}": value for key, value in results.items()}
        logs.update(self.latest)
        tags = {f"{self._group}/{name}/{key}": value for key, value in results.items()}
        self._summaries.scalars(RUN, tags, optimizer_step(self.model))
        self._summaries.end_epoch(RUN, epoch, optimizer_step(self.model))

    def on_train_end(self, logs: Logs = None) -> None:
        self._summaries.close()

    def evaluate(self, model: keras.Model | None = None) -> dict[str, float]:
        """Measures now.

        Args:
            model: The model, or `None` for the model that `fit` trained with this callback.

        Returns:
            The values that the callback would add to the logs.
        """
        if model is not None:
            self.set_model(model)
        name, results = self._measure()
        return {f"{name}_{key}": value for key, value in results.items()}
