"""A metric over the labelled targets of an output."""

import inspect
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_jointloss._core.batch import reduce_values
from keras_jointloss.terms._probe import is_mean_over_elements, is_separable, returns_scalar
from keras_jointloss.terms.by_shape import get_metric, name_of_metric
from keras_jointloss.terms.element_weights import weighs_elements
from keras_jointloss.terms.missing.targets import (
    deserialize_missing,
    elements,
    fill,
    items,
    serialize_missing,
    validate_missing,
)
from keras_jointloss.terms.wrapped_metric import WrappedMetric


@keras.saving.register_keras_serializable(package="keras_jointloss")
class LabelledMetric(WrappedMetric):
    """Passes the labelled targets of an output on to a metric, by `sample_weight`.

    If the metric is a mean over the last axis, a target is an element of `(batch, ..., k)`.
    Otherwise it is a row, which is labelled if all of its elements are. A trial in the constructor
    finds out. Items that Keras masks are left out.

    A missing target has the value `missing`, NaN or a number. See `WrappedMetric`: a function has
    to return one value per item, and the `update_state` of a metric to take a `sample_weight`.

    Example:

    >>> metric = LabelledMetric("mae", float("nan"))
    >>> metric.update_state([[1.0], [float("nan")], [3.0]], [[1.0], [7.0], [5.0]])
    >>> float(metric.result())
    1.0
    """

    def __init__(self, metric: Any, missing: float, name: str | None = None, dtype=None):
        super().__init__(metric, name, dtype)
        self.missing = validate_missing(missing)
        self._resolved, self._is_separable = _resolve(metric)

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Adds the labelled targets of a batch."""
        y_true, plain_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        batch = elements(y_true, plain_pred, self.missing) if self._is_separable else None
        if batch is None:
            mask = items(y_true, plain_pred, self.missing)
            y_true, plain_pred = fill(y_true, plain_pred, mask)
            weight = _weights(ops.cast(mask, self.dtype), y_pred, sample_weight)
        else:
            y_true, plain_pred = fill(*batch)
            mask = ops.cast(batch[2], self.dtype)
            if weighs_elements(sample_weight, mask):
                mask, sample_weight = mask * ops.cast(sample_weight, self.dtype), None
            weight = _weights(ops.ones_like(mask[..., 0]), y_pred, sample_weight)
            y_true, plain_pred = (ops.reshape(y, (-1, 1)) for y in (y_true, plain_pred))
            weight = ops.reshape(mask * ops.expand_dims(weight, -1), (-1,))
        self._resolved.update_state(y_true, plain_pred, sample_weight=weight)

    def get_config(self) -> dict:
        return {**super().get_config(), "missing": serialize_missing(self.missing)}

    @classmethod
    def from_config(cls, config: dict) -> WrappedMetric:
        return super().from_config(
            {**config, "missing": deserialize_missing(config.get("missing"))}
        )


def _weights(labelled, y_pred, sample_weight):
    """Returns the weights of `(batch, ...)` items under the mask of Keras."""
    return reduce_values(labelled, y_pred, sample_weight, "none", labelled.dtype)


def _resolve(metric: Any) -> tuple[keras.metrics.Metric, bool]:
    """Returns a metric, and whether it is a mean over the last axis."""
    found = get_metric(metric)
    if not isinstance(found, keras.metrics.Metric):
        if returns_scalar(found):
            raise ValueError(
                "Expected metric functions that return one value for each item for an output with "
                f"missing targets. Received: {metric!r}, which returns one for the batch"
            )
        wrapper = keras.metrics.MeanMetricWrapper(found, name=name_of_metric(metric))
        return wrapper, is_mean_over_elements(found)
    parameters = inspect.signature(found.update_state).parameters
    is_open = any(x.kind is x.VAR_KEYWORD for x in parameters.values())
    if "sample_weight" not in parameters and not is_open:
        raise ValueError(
            "Expected metrics whose `update_state` takes a `sample_weight` for an output with "
            f"missing targets, which have weight 0. Received: {metric!r}"
        )
    return found, is_separable(partial(_result_of_batch, found))


def _result_of_batch(metric: keras.metrics.Metric, y_true, y_pred):
    """Returns the result of a copy of a metric for one batch."""
    config = keras.saving.serialize_keras_object(metric)
    fresh: Any = keras.saving.deserialize_keras_object(config)
    # Without assignment, which `tf.distribute` restricts.
    state = [ops.convert_to_tensor(variable) for variable in fresh.variables]
    return fresh.stateless_result(fresh.stateless_update_state(state, y_true, y_pred))
