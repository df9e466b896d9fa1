"""The curves of training: when a point of them is written, and the means since the last point."""

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.validation import invalid
from keras_jointloss.callbacks._summaries import Summaries
from keras_jointloss.callbacks.joint import _gradient_readings
from keras_jointloss.callbacks.joint._gradient_readings import GradientReadings, Statistics
from keras_jointloss.callbacks.joint._term_readings import Readings, TermReadings
from keras_jointloss.terms.record import Totals


class _Sums(NamedTuple):
    """What training has added up at one time."""

    terms: dict[str, Totals]  # The sums of the terms by name
    #: Those of the layers that combine gradients, by tag prefix.
    gradients: _gradient_readings.Totals
    loss: np.ndarray  # Keras' sum of the loss over the items, and their number, 0 if it is unknown


def batches_between(update_freq: Any) -> int | None:
    """Returns after how many batches to write, or `None` for the ends of epochs only."""
    is_count = isinstance(update_freq, int) and not isinstance(update_freq, bool)
    is_name = isinstance(update_freq, str) and update_freq in ("epoch", "batch")
    if not (is_name or (is_count and int(update_freq) >= 1)):
        raise invalid("update_freq", "'epoch', 'batch' or a number of batches >= 1", update_freq)
    return int(update_freq) if is_count else {"epoch": None, "batch": 1}[update_freq]


class TrainCurves:
    """Writes the run `train` in the middle and at the end of epochs.

    A point has the means since the last point, or since the start of the epoch if there was none
    after it. There is one after `every` batches.
    """

    def __init__(
        self,
        every: int | None,
        readings: TermReadings,
        gradients: GradientReadings,
        summaries: Summaries,
        model: keras.Model,
    ):
        self._every = every
        self._readings = readings
        self._gradients = gradients
        self._summaries = summaries
        self._trained = model
        # The number of batches after the latest one and at the last point, unlike the training step
        # with those that loss scaling has skipped.
        self._batches = self._written = 0
        # The sums at the last point of the epoch, if any, and those at its end.
        self._last: _Sums | None = None
        self._end: _Sums | None = None

    def start_epoch(self, batches: int) -> None:
        """Starts an epoch, in which all means begin anew, after so many batches."""
        self._batches = self._written = batches
        self._last = self._end = None

    def skip(self, batches: int) -> None:
        """Leaves what has been added before, after so many batches, out of the next point."""
        self._batches = self._written = batches
        self._last, self._end = None if self._every is None else self._sums(), None

    def is_due(self, batches: int) -> bool:
        """Returns whether to write a point after so many batches."""
        self._batches, every = batches, self._every
        return every is not None and batches // every > self._written // every

    def write(self, step: int, loss: float) -> None:
        """Writes a point in the middle of an epoch; the loss is the mean since its start."""
        sums = self._sums()
        epoch = self._readings.read(sums.terms)
        self._write(step, sums, loss, epoch, self._gradients.read(sums.gradients))
        self._last = sums

    def keep(self) -> None:
        """Keeps the sums for the point at the end of the epoch, as an evaluation resets them."""
        if self._last is not None:
            self._end = self._sums()

    def end_epoch(self, step: int, statistics: Statistics) -> None:
        """Writes the point at the end of the epoch, unless its last batch has one.

        The statistics, like loss and readings that are kept, are those of the epoch.
        """
        if self._every is None or self._batches > self._written:
            loss, readings = self._readings.totals["train"], self._readings.kept["train"]
            self._write(step, self._end, loss, readings, statistics)

    def _write(
        self, step: int, sums: _Sums | None, loss: float, epoch: Readings, statistics: Statistics
    ) -> None:
        """Writes the means since the last point, or those of the epoch if it has none."""
        last, readings, total = self._last, epoch, loss
        if sums is not None and last is not None:
            readings = self._readings.read(sums.terms, last.terms)
            statistics = self._gradients.read(sums.gradients, last.gradients)
            total = _mean_loss(sums, last, loss)
        tags = self._readings.to_tags(readings, total, epoch=(epoch, loss))
        tags.update(self._gradients.to_tags(statistics))
        self._summaries.scalars("train", tags, step)
        self._written = self._batches

    def _sums(self) -> _Sums:
        return _Sums(self._readings.sums(), self._gradients.sums(), self._loss_sums())

    def _loss_sums(self) -> np.ndarray:
        """Returns Keras' sum of the loss over the items, and their number."""
        found = [
            x
            for x in self._trained.metrics
            if x.name == "loss" and isinstance(x, keras.metrics.Mean)
        ]
        # A custom `train_step` need not use that of Keras.
        pair = (to_numpy(x) for x in (found[-1].total, found[-1].count)) if found else (0, 0)
        return np.array([float(x) for x in pair])


def _mean_loss(now: _Sums, last: _Sums, loss: float) -> float:
    """Returns the mean loss between two times, or `loss` if it is unknown."""
    was_reset = any(x.resets != last.terms[name].resets for name, x in now.terms.items())
    with np.errstate(invalid="ignore"):  # After an infinite loss the difference is NaN.
        total, count = now.loss - last.loss
    return loss if was_reset or count <= 0 else float(total / count)
