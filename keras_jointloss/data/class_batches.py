"""Batches of a few items of each of a few classes."""

from typing import Any, Unpack

import numpy as np

from keras_jointloss._core.batch import validate_unlabelled
from keras_jointloss._core.types import Labels, Nested
from keras_jointloss._core.validation import invalid, validate_count
from keras_jointloss.data._epochs import EpochBatches, Options
from keras_jointloss.data._items import (
    class_numbers,
    count_items,
    named_or_given,
    take,
    to_array,
    to_arrays,
)
from keras_jointloss.data._spread import spread


class SpreadBatches(EpochBatches):
    """Batches of groups of items of one class, no class twice in a batch.

    Args:
        x: The inputs.
        y: The targets, or `None`.
        sample_weight: The weights, or `None`.
        classes: The number of the class of each item, -1 for none.
        classes_per_batch: The number of groups in a batch.
        per_class: The number of items in a group.
        **options: As in `EpochBatches`.
    """

    def __init__(
        self,
        x: Nested,
        y: Nested,
        sample_weight: Nested,
        classes: np.ndarray,
        classes_per_batch: int,
        per_class: int,
        **options: Unpack[Options],
    ):
        super().__init__(**options)
        parts = {"x": x, "y": y, "sample_weight": sample_weight}
        if y is None and sample_weight is not None:
            received = f"weights of type {type(sample_weight).__name__}"
            raise invalid("sample_weight", "None, since `y` is None", received=received)
        arrays = {k: None if part is None else to_arrays(part, k) for k, part in parts.items()}
        count_items(**arrays, classes=classes)
        self._parts = list(arrays.values())
        self._classes = classes
        self._size = classes_per_batch, per_class

    def plan(self, random: np.random.Generator | None) -> list[np.ndarray]:
        return spread(self._classes, *self._size, random)

    def make(self, planned: np.ndarray) -> tuple:
        x, y, sample_weight = (
            None if part is None else take(part, planned) for part in self._parts
        )
        if y is None:  # TensorFlow takes no `None` in its place.
            return (x,)
        return (x, y) if sample_weight is None else (x, y, sample_weight)


class ClassBatches(SpreadBatches):
    """Batches with `per_class` items of each of `classes_per_batch` classes, for `fit`.

    A loss that compares classes, such as `keras_jointloss.losses.SupCon`, `Triplet` or `Circle`,
    learns from items of the same class. A random batch of many classes has hardly any. Here each
    batch has `classes_per_batch * per_class` items ("P x K"), and each item of it meets
    `per_class - 1` others of its class::

        model.fit(ClassBatches(x, label, classes_per_batch=16, per_class=4), shuffle=False)

    In an epoch, no item comes twice. Each epoch draws anew which items and classes meet, and which
    are left over: of each class, less than `per_class` items; of large classes, those for which too
    few other classes remain. A class with fewer than `per_class` items is in no batch, since its
    items would have to be repeated: take a smaller `per_class` to include it. All batches have the
    same size, so that a model is compiled once. The number of batches is the largest possible, and
    that of every epoch.

    **Epochs.** The batches depend on `seed` and the number of the epoch, which `fit` determines.
    After `fit(initial_epoch=k)`, or with `keras.callbacks.BackupAndRestore`, they are those of a
    training without interruption. (The attribute `epoch` sets it in a loop of your own.)
    `fit(shuffle=True)`, the default of Keras, changes their order within an epoch, by Python's
    `random`; with `fit(shuffle=False)` the order is that of the seed, too.

    **Workers.** With `workers > 1` or `use_multiprocessing=True`, threads or processes make the
    next batches of an epoch while the model trains. They are the same. (Keras has workers, too,
    which these data sets do not use: they repeat items in the first epoch.)

    Args:
        x: The inputs of the model: an array, or a list or dict of arrays, with a row for each item.
        y: The targets, likewise, or `None`.
        classes_per_batch: The number of classes in a batch, >= 1.
        per_class: The number of items of each, >= 1.
        labels: The classes: the name of an array in `y` or `x`, or an array `(items,)` of numbers
            or strings, or `(items, classes)`, whose rows are equal if the class is. `None` for `y`,
            if that is one array. An item whose label is NaN is in no batch.
        sample_weight: The weights of the items, as `fit` takes them, or `None`.
        unlabelled: The label that marks items without one, which are in no batch, or `None`.
        **options: `shuffle`: whether the epochs differ, by default `True`. `seed`: an integer
            >= 0 and < 2**31, by default 0. `workers`, `use_multiprocessing`, `max_queue_size`: as
            in `keras.utils.PyDataset`.

    Raises:
        ValueError: If an argument is invalid, the arrays differ in their number of rows, or there
            are fewer than `classes_per_batch` classes with `per_class` items.

    References:
        - Hermans et al., 2017, In Defense of the Triplet Loss for Person Re-Identification

    Example:

    >>> import numpy as np
    >>> x, y = np.arange(12.0), {"kind": np.arange(12) % 4}
    >>> batches = ClassBatches(x, y, classes_per_batch=2, per_class=3, labels="kind")
    >>> len(batches)
    2
    >>> inputs, targets = batches[0]
    >>> np.unique(targets["kind"], return_counts=True)[1]
    array([3, 3])
    """

    def __init__(
        self,
        x: Nested,
        y: Nested,
        classes_per_batch: int,
        per_class: int,
        labels: str | Labels = None,
        sample_weight: Nested = None,
        unlabelled: int | None = None,
        **options: Unpack[Options],
    ):
        self.classes_per_batch = validate_count(classes_per_batch, "classes_per_batch")
        self.per_class = validate_count(per_class, "per_class")
        classes = class_numbers(_labels(labels, x, y), validate_unlabelled(unlabelled))
        size = self.classes_per_batch, self.per_class
        super().__init__(x, y, sample_weight, classes, *size, **options)
        large = np.count_nonzero(np.bincount(classes[classes >= 0]) >= self.per_class)
        if large < self.classes_per_batch:
            raise invalid(
                "classes_per_batch",
                f"at most the {large} classes with at least {self.per_class} items",
                classes_per_batch,
            )


def _labels(labels: Any, x: Any, y: Any) -> np.ndarray:
    if labels is not None:
        return named_or_given(labels, "labels", x, y)
    if y is None or isinstance(y, dict | list | tuple):
        expected = "the name of an array in `y` or `x`, or an array, since `y` is not one array"
        raise invalid("labels", expected, None)
    return to_array(y, "y")
