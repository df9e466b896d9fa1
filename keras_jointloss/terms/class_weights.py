"""The weights of items by the class of their target, in losses and metrics."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.keras_calls import running_loop
from keras_jointloss._core.validation import invalid, validate_count, validate_number
from keras_jointloss.terms.by_shape import get_metric
from keras_jointloss.terms.wrapped_metric import WrappedMetric

#: One more than the largest class: float32, in which Keras gives targets to losses, holds no more.
_CLASSES = 2**24


def validate_class_weight(value: Any, name: str) -> dict[int, float]:
    """Returns a dict of class, a whole number, to weight, a finite number >= 0."""
    if not isinstance(value, Mapping) or not value:
        raise invalid(name, "a dict of class to weight", value)
    weights = {}
    for key, weight in value.items():
        index = validate_count(key, f"a class in {name}", minimum=0)
        if index >= _CLASSES:
            raise invalid(name, f"classes < {_CLASSES}", value)
        weights[index] = validate_number(weight, f"{name}[{key!r}]", minimum=0)
    return weights


class ClassWeights:
    """Multiplies sample weights by the weight of the class of each target, in training.

    The class is that of `fit(class_weight=)`: an integer, a float that is rounded, or the largest
    entry of a one-hot row. With more axes, each position has its class: each pixel of integers
    `(batch, height, width)`. A class that is not named weighs 1.

    They act in the `train_step` of a model, as in `fit` and `train_on_batch`.
    """

    def __init__(self, weights: Mapping[int, float]):
        self.weights = validate_class_weight(weights, "class_weight")
        # The last entry is for all other classes.
        self._table = np.ones(max(self.weights) + 2)
        self._table[list(self.weights)] = list(self.weights.values())

    def times(self, sample_weight: Any, y_true: Any, y_pred: Any, dtype: str) -> Any:
        """Returns the weights by class times sample weights; these alone if nothing trains."""
        if running_loop() != "train_step":
            return sample_weight
        if keras.tree.is_nested(y_true) or keras.tree.is_nested(y_pred):
            raise ValueError(
                "Expected one tensor as target and prediction of an output with class weights. "
                f"Received: y_true={y_true!r}, y_pred={y_pred!r}"
            )
        weights = self._of(_classes(ops.convert_to_tensor(y_true), y_pred), dtype)
        if sample_weight is None:
            return weights
        weights, sample_weight = _same_rank(weights, ops.convert_to_tensor(sample_weight, dtype))
        return weights * sample_weight

    def _of(self, classes, dtype: str):
        """Returns the weights of classes."""
        others = len(self._table) - 1
        # NaN, a target that is missing, is of no class.
        is_named = ops.logical_and(classes >= 0, classes < others)
        index = ops.cast(ops.where(is_named, classes, others), "int32")
        return ops.take(ops.convert_to_tensor(self._table, dtype=dtype), index, axis=0)

    def pairs(self) -> list:
        """Returns a form for a config: JSON has no numbers as keys."""
        return [[index, weight] for index, weight in self.weights.items()]

    @classmethod
    def of(cls, weights: Any) -> "ClassWeights":
        """Returns the weights from a dict, or from what `pairs` returns."""
        is_list = isinstance(weights, list | tuple)
        if is_list and all(isinstance(x, list | tuple) and len(x) == 2 for x in weights):
            weights = dict(weights)
        return cls(weights)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ClassWeightedMetric(WrappedMetric):
    """Passes targets on to a metric, in training with `sample_weight` times class weights.

    The `class_weight` is that of `keras_jointloss.joint_loss`. See `WrappedMetric`.

    Example:

    >>> metric = ClassWeightedMetric("sparse_categorical_accuracy", {1: 3.0})
    >>> metric.update_state([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    >>> round(float(metric.result()), 3)  # Nothing is trained here.
    0.667
    """

    def __init__(self, metric: Any, class_weight: Any, name: str | None = None, dtype=None):
        super().__init__(metric, name, dtype)
        self._weights = ClassWeights.of(class_weight)
        found = get_metric(metric)
        is_metric = isinstance(found, keras.metrics.Metric)
        self._resolved = (
            found if is_metric else keras.metrics.MeanMetricWrapper(found, name=self.name)
        )

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Adds a batch."""
        sample_weight = self._weights.times(sample_weight, y_true, y_pred, self.dtype)
        self._resolved.update_state(y_true, y_pred, sample_weight=sample_weight)

    def get_config(self) -> dict:
        return {**super().get_config(), "class_weight": self._weights.pairs()}


def is_one_hot(y_true: Any, y_pred: Any) -> bool:
    """Returns whether the last axis of targets holds the classes of one item or position."""
    return len(y_true.shape) == len(y_pred.shape) > 1 and y_true.shape[-1] != 1


def _classes(y_true, y_pred):
    """Returns the class of each item or position: int32, int64 or float."""
    if is_one_hot(y_true, y_pred):
        return ops.argmax(y_true, axis=-1)
    if len(y_true.shape) > 1 and y_true.shape[-1] == 1 and len(y_true.shape) >= len(y_pred.shape):
        y_true = ops.squeeze(y_true, -1)
    dtype = keras.backend.standardize_dtype(y_true.dtype)
    if "float" in dtype:
        return ops.round(y_true if dtype == "float64" else ops.cast(y_true, "float32"))
    return y_true if dtype in ("int64", "uint32", "uint64") else ops.cast(y_true, "int32")


def _same_rank(weights, others):
    """Returns two tensors of weights with the same rank, axes of size 1 removed or added."""
    if len(weights.shape) > len(others.shape):
        return tuple(reversed(_same_rank(others, weights)))
    while len(others.shape) > max(len(weights.shape), 1) and others.shape[-1] == 1:
        others = ops.squeeze(others, -1)
    added = range(len(weights.shape), len(others.shape))
    return ops.expand_dims(weights, tuple(added)) if added else weights, others
