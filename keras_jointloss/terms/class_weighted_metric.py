"""A weighted metric of an output with class weights."""

from typing import Any

import keras

from keras_jointloss.terms.by_shape import get_metric
from keras_jointloss.terms.class_weights import ClassWeights
from keras_jointloss.terms.wrapped_metric import WrappedMetric


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ClassWeightedMetric(WrappedMetric):
    """Passes targets on to a metric, in training with `sample_weight` times class weights.

    Args:
        metric: A metric as Keras accepts it: a name, a function or a `keras.metrics.Metric`.
        class_weight: A dict of class to weight, as in `keras_jointloss.joint_loss`.
        name: Name of the metric, by default that of `metric`.
        dtype: As in `keras.metrics.Metric`.

    Raises:
        ValueError: If `class_weight` is invalid.

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
