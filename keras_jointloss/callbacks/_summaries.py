"""The TensorBoard runs of training, and the charts that show all terms together."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import keras

from keras_jointloss._core.backend import is_chief
from keras_jointloss._core.keras_calls import when_callbacks_are_deleted
from keras_jointloss._core.validation import invalid
from keras_jointloss.tensorboard import SummaryWriter

# The charts of the custom scalars dashboard, with the tags in each.
_TERM_CHARTS = {
    "weighted": [r"^joint_loss/.+/weighted$", r"^joint_loss/other$", r"^joint_loss/total$"],
    "raw": [r"^joint_loss/.+/raw$"],
    "weight": [r"^joint_loss/.+/weight$"],
    "share": [r"^joint_loss/.+/share$"],
}
_GRADIENT_CHARTS = {
    "gradient norm": [r"^gradients/.+/norm$"],
    "gradient coefficient": [r"^gradients/.+/coefficient$"],
    "gradient cosine": [r"^gradients/.+/cosine$"],
    "gradient conflict": [r"^gradients/(.+/)?conflict$"],
}


#: Called with the run, the scalars by tag, and the training step.
OnLog: TypeAlias = Callable[[str, dict[str, float], int], Any]
#: By term, the steps and the weights of its schedule.
Schedules: TypeAlias = Mapping[str, tuple[Sequence[int], Sequence[float]]]


def validate_on_log(on_log: Any) -> OnLog | None:
    """Returns `on_log`, or raises `ValueError` if it is neither `None` nor a function."""
    if on_log is not None and not callable(on_log):
        raise invalid(
            "on_log",
            "None or a function of the run, the scalars by tag and the training step",
            on_log,
        )
    return on_log


class Summaries:
    """Writes the runs `train` and `validation`, and passes their scalars on.

    Of several processes that train together, only the chief does. Without a `log_dir` nothing is
    written. The charts are those of the terms and of the gradients, if there are any.
    """

    def __init__(
        self,
        model: keras.Model,
        log_dir: str | None,
        has_terms: bool = False,
        has_gradients: bool = False,
        on_log: OnLog | None = None,
    ):
        is_writer = is_chief(model)
        self.log_dir = log_dir if is_writer else None
        self._on_log = on_log if is_writer else None
        self._has_terms = has_terms
        self._has_gradients = has_gradients
        self._writers: dict[str, SummaryWriter] = {}

    def open(self, run: str) -> None:
        """Opens a run, unless `log_dir` is `None`; raises `OSError` if it cannot be written."""
        if self.log_dir is None or run in self._writers:
            return
        self._writers[run] = writer = SummaryWriter(os.path.join(self.log_dir, run))
        when_callbacks_are_deleted(writer.close)
        charts = _TERM_CHARTS if self._has_terms else {}
        if self._has_gradients and run == "train":
            charts = {**charts, **_GRADIENT_CHARTS}
        if charts:
            writer.chart_layout("Joint loss", charts)

    def scalars(self, run: str, values: dict[str, float], step: int) -> None:
        """Writes scalars by tag, and passes them to `on_log`."""
        self.open(run)
        if run in self._writers:
            self._writers[run].scalars(values, step)
        if self._on_log is not None:
            self._on_log(run, dict(values), step)

    def images(self, run: str, images: Iterable[tuple[str, Any, str]], step: int) -> None:
        """Writes images, given as tag, image and description. Without a folder, draws none."""
        self.open(run)
        if run in self._writers:
            for tag, image, description in images:
                self._writers[run].image(tag, image, step, description)

    def start(self, run: str, epoch: int, step: int, end: int, schedules: Schedules) -> None:
        """Writes where a training starts and is to end, and the schedules of its terms."""
        self.open(run)
        self._writers[run].training(schedules, step, end)
        self._writers[run].epochs(epoch, step)

    def end_epoch(self, run: str, epoch: int, step: int) -> None:
        """Writes that an epoch has ended, and flushes all runs."""
        if run in self._writers:
            self._writers[run].epochs(epoch + 1, step)
        self.flush()

    def flush(self) -> None:
        """Writes buffered data to the files."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Closes all runs."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()
