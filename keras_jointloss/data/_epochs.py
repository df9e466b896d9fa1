"""What all data sets share: an order of batches for each epoch."""

from collections.abc import Sequence
from typing import Any, TypedDict

import keras
import numpy as np

from keras_jointloss._core.keras_calls import running_fit
from keras_jointloss._core.validation import validate_bool, validate_count, validate_seed
from keras_jointloss.data._ahead import Ahead


class Options(TypedDict, total=False):
    """The arguments that all data sets share."""

    shuffle: bool
    seed: int
    workers: int
    use_multiprocessing: bool
    max_queue_size: int


class EpochBatches(keras.utils.PyDataset):
    """Batches that depend only on a seed, the number of the epoch and their position in it.

    A data set defines `plan` and `make`. Each epoch must have the same number of batches.

    Keras is told that there are no workers: its own would make batches while it builds the model,
    and it would put these before those of the first epoch, so that items come twice.

    Args:
        shuffle: Whether each epoch has an order of its own. Otherwise all have that of the data.
        seed: An integer, >= 0 and < 2**31.
        workers: The number of threads or processes that make the next batches, if it is above 1 or
            they are processes.
        use_multiprocessing: Whether they are processes.
        max_queue_size: How many of the next batches they make.
    """

    def __init__(
        self,
        shuffle: bool = True,
        seed: int = 0,
        workers: int = 1,
        use_multiprocessing: bool = False,
        max_queue_size: int = 10,
    ):
        super().__init__()
        self.shuffle = validate_bool(shuffle, "shuffle")
        self.seed = validate_seed(seed)
        #: The number of the epoch whose batches these are.
        self.epoch = 0
        self._workers_of_epoch = (
            validate_count(workers, "workers", minimum=0),
            validate_bool(use_multiprocessing, "use_multiprocessing"),
            validate_count(max_queue_size, "max_queue_size"),
        )
        self._ahead: Ahead | None = None
        self._planned: tuple[int, Sequence[Any]] | None = None

    def plan(self, random: np.random.Generator | None) -> Sequence[Any]:
        """Returns what `make` needs for each batch of an epoch.

        Args:
            random: The generator for this epoch, or `None` not to shuffle.
        """
        raise NotImplementedError

    def make(self, planned: Any) -> tuple:
        """Returns a batch, as `fit` takes it, from what `plan` returned for it."""
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._plan())

    def __getitem__(self, index: int) -> tuple:
        plan, ahead = self._plan(), self._ahead
        return self.make(plan[index]) if ahead is None else ahead.get(plan, index)

    def on_epoch_begin(self) -> None:
        fit = running_fit()
        if fit is not None:
            self.epoch = fit.first if fit.epoch is None else fit.epoch
        workers, uses_processes, size = self._workers_of_epoch
        if workers > 1 or (workers and uses_processes):
            self._ahead = Ahead(self, workers, uses_processes, size)

    def on_epoch_end(self) -> None:
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def __getstate__(self) -> dict:
        return {**vars(self), "_ahead": None}

    def _plan(self) -> Sequence[Any]:
        epoch = self.epoch if self.shuffle else 0
        planned = self._planned
        if planned is None or planned[0] != epoch:
            random = np.random.default_rng([self.seed, epoch]) if self.shuffle else None
            self._planned = planned = epoch, self.plan(random)
        return planned[1]
