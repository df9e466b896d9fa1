"""The losses and the metrics of a target and a prediction inside a model."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_jointloss import losses
from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.validation import invalid, validate_distinct, validate_list
from keras_jointloss.layers._means import validate_reduction
from keras_jointloss.terms.by_shape import get_loss, get_metric
from keras_jointloss.terms.missing.targets import match_ranks


def loss_function(loss: Any) -> Callable[[Any, Any], Any] | None:
    """Returns the function of target and prediction that computes the values of a loss."""
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
    if isinstance(found, keras.losses.Loss):
        return found.call
    return lambda target, prediction: found(*match_ranks(target, prediction))


def mean_metrics(metrics: Sequence[Any], loss: Any) -> list[keras.metrics.MeanMetricWrapper]:
    """Returns the metrics of target and prediction, which must be means over items."""
    metrics = validate_list(metrics, "metrics", "metrics")
    if loss is None and metrics:
        raise invalid("metrics", "none without a loss, since there is no target", metrics)
    found = []
    for metric in metrics:
        result = metric
        if isinstance(metric, str):
            result = get_metric(metric)
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
