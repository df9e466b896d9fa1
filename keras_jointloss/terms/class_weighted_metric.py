"""A weighted metric of an output with class weights."""

from typing import Any

import keras

from keras_jointloss.terms.by_shape import get_metric, name_of_metric
from keras_jointloss.terms.class_weights import ClassWeights


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ClassWeightedMetric(keras.metrics.Metric):
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
        super().__init__(name=name or name_of_metric(metric), dtype=dtype)
        self.metric = metric
        self._weights = ClassWeights.of(class_weight)
        found = get_metric(metric)
        is_metric = isinstance(found, keras.metrics.Metric)
        self._resolved: keras.metrics.Metric = (
            found if is_metric else keras.metrics.MeanMetricWrapper(found, name=self.name)
        )

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Adds a batch."""
        sample_weight = self._weights.times(sample_weight, y_true, y_pred, self.dtype)
        self._resolved.update_state(y_true, y_pred, sample_weight=sample_weight)

    def result(self):
        """Returns the result of the metric."""
        return self._resolved.result()

    def reset_state(self) -> None:
        """Resets the metric."""
        self._resolved.reset_state()

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "metric": self.metric,
            "class_weight": self._weights.pairs(),
        }

    @classmethod
    def from_config(cls, config: dict) -> "ClassWeightedMetric":
        metric = config["metric"]
        if isinstance(metric, dict):
            metric = keras.saving.deserialize_keras_object(metric)
        return cls(**{**config, "metric": metric})
