"""The losses and the metrics of a target and a prediction inside a model."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_jointloss import losses
from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.batch import check_numbers
from keras_jointloss._core.validation import invalid, validate_distinct, validate_list
from keras_jointloss.layers._means import validate_reduction
from keras_jointloss.terms._named_errors import errors_named
from keras_jointloss.terms.by_shape import get_loss, get_metric
from keras_jointloss.terms.missing.targets import match_ranks


def loss_function(loss: Any, name: str) -> Callable[[Any, Any], Any] | None:
    """Returns the function of target and prediction that computes the values of a loss.

    Its errors name the term, unless a user has written the loss.
    """
    if loss is None:
        return None
    is_callable = callable(loss) and not isinstance(loss, keras.layers.Layer | keras.metrics.Metric)
    if not (isinstance(loss, str) or is_callable):
        raise invalid("loss", "a name, a function, a `keras.losses.Loss` or None", loss)
    found = get_loss(loss)
    if isinstance(found, losses.ViewsLoss):
        raise invalid(
            "loss",
            "a loss between a target and a prediction: use `ContrastiveTerm` for a loss on views",
            loss,
        )
    validate_reduction(found, loss)

    def compute(target, prediction):
        with errors_named(name, found, target=target, prediction=prediction):
            if isinstance(found, keras.losses.Loss):
                return found.call(target, prediction)
            return found(*match_ranks(target, prediction))

    return compute


def validate_values(values: Any, sample_weight: Any, name: str) -> None:
    """Raises `ValueError` unless values or a target, and their weights, are arrays of numbers."""
    if keras.tree.is_nested(values):
        raise ValueError(
            f"{name!r} expects one tensor as values or target. Received: values={values}"
        )
    check_numbers(values, "values", repr(name))
    if sample_weight is not None:
        check_numbers(sample_weight, "sample_weight", repr(name))


def validate_pair(target: Any, prediction: Any, name: str) -> None:
    """Raises `ValueError` unless target and prediction are arrays with a batch axis."""
    if keras.tree.is_nested(prediction):
        raise ValueError(
            f"{name!r} expects one tensor as prediction. Received: inputs={prediction}"
        )
    for x in (target, prediction):
        check_numbers(x, "inputs", repr(name))
    if not len(target.shape) or not len(prediction.shape):
        raise ValueError(
            f"{name!r} expects prediction and target with a batch axis. Received: "
            f"shapes {tuple(prediction.shape)} and {tuple(target.shape)}"
        )


def mean_metrics(metrics: Sequence[Any], loss: Any) -> list[keras.metrics.MeanMetricWrapper]:
    """Returns the metrics of target and prediction, which must be means over items."""
    metrics = validate_list(metrics, "metrics", "metrics")
    if loss is None and metrics:
        raise invalid("metrics", "none without a loss, since there is no target", metrics)
    found = []
    for metric in metrics:
        result = metric
        if isinstance(metric, str):
            try:
                result = get_metric(metric)
            except ValueError as error:
                raise invalid("metrics", "names that Keras knows", metric) from error
        elif callable(metric) and not isinstance(metric, keras.metrics.Metric):
            result = keras.metrics.MeanMetricWrapper(metric, name=metric.__name__)
        if not isinstance(result, keras.metrics.MeanMetricWrapper):
            raise invalid(
                "metrics",
                "names, functions or `keras.metrics.MeanMetricWrapper` objects, which are means "
                "over items",
                received=repr(metric),
            )
        found.append(result)
    validate_distinct(found, "metrics")
    return found


def metric_means(metrics, pair, valid) -> dict[str, tuple]:
    """Returns, by the name of the metric, the sum of its values and their number.

    The pair is target and prediction, `(batch, ...)`. Not all elements need to be valid.
    """
    means, replicas = {}, current_replicas()
    for metric in metrics:
        start = [ops.zeros(variable.shape, variable.dtype) for variable in metric.variables]
        sums = metric.stateless_update_state(start, *pair, sample_weight=valid)
        if replicas.count > 1:
            sums = ops.unstack(replicas.state_sum(ops.stack(sums)))
        means[metric.name] = sums
    return means
