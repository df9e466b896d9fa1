"""A metric that passes on targets to another one."""

from typing import Any

import keras

from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.validation import validate_name
from keras_jointloss.terms.by_shape import name_of_metric


class WrappedMetric(keras.metrics.Metric):
    """Base class of the metrics that pass targets on to another one, `_resolved`.

    Args:
        metric: A metric as Keras accepts it: a name, a function or a `keras.metrics.Metric`.
        name: Name of the metric, by default that of `metric`.
        dtype: As in `keras.metrics.Metric`.
    """

    _resolved: keras.metrics.Metric

    def __init__(self, metric: Any, name: str | None = None, dtype=None):
        super().__init__(name=validate_name(name) or name_of_metric(metric), dtype=dtype)
        self.metric = metric

    @property
    def resolved(self) -> keras.metrics.Metric:
        """The metric that receives the targets."""
        return self._resolved

    def result(self):
        """Returns the result of the metric."""
        return self._resolved.result()

    def reset_state(self) -> None:
        """Resets the metric."""
        self._resolved.reset_state()

    def get_config(self) -> dict:
        return {**super().get_config(), "metric": self.metric}

    @classmethod
    def from_config(cls, config: dict) -> "WrappedMetric":
        return cls(**{**config, "metric": deserialized(config.get("metric"), "metric")})
