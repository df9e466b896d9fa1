"""The losses and metrics that Keras chooses by the shapes of targets and predictions."""

import contextlib
from typing import Any

import keras

from keras_jointloss._core.registry import deserialized, find
from keras_jointloss._core.validation import invalid

#: The names for which Keras chooses a metric or a loss.
_ACCURACY = ("accuracy", "acc")
_CROSSENTROPY = ("crossentropy", "ce")


@keras.saving.register_keras_serializable(package="keras_jointloss")
def accuracy(y_true, y_pred):
    """Returns the accuracy of each item, binary, sparse or categorical."""
    functions = (
        keras.metrics.binary_accuracy,
        keras.metrics.sparse_categorical_accuracy,
        keras.metrics.categorical_accuracy,
    )
    return functions[_kind(y_true, y_pred)](y_true, y_pred)


def crossentropy(y_true, y_pred):
    """Returns the cross-entropy of each item, binary, sparse or categorical."""
    functions = (
        keras.losses.binary_crossentropy,
        keras.losses.sparse_categorical_crossentropy,
        keras.losses.categorical_crossentropy,
    )
    return functions[_kind(y_true, y_pred)](y_true, y_pred)


def _kind(y_true, y_pred) -> int:
    """Returns 0 for one probability, 1 for sparse labels and 2 for one-hot rows."""
    if y_pred.shape[-1] == 1:
        return 0
    return 1 if len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1 else 2


def get_loss(identifier: Any) -> Any:
    """Returns a loss as `keras.losses.get`, or by a name that Keras does not know.

    These are the names that depend on the shapes, and those of the losses that are registered,
    as those of this package are; case and underscores do not matter.
    """
    if not isinstance(identifier, str):
        found = deserialized(identifier, "loss")
        if not callable(found):
            raise invalid("loss", "a loss as Keras accepts it: a name, function or loss", found)
        return keras.losses.get(found)  # An instance of a class.
    if identifier.lower() in _CROSSENTROPY:
        return crossentropy
    with contextlib.suppress(ValueError):
        return keras.losses.get(identifier)
    return find(identifier, keras.losses.Loss, "loss", "losses` or `keras.losses")


def get_metric(identifier: Any) -> Any:
    """Returns a metric as `keras.metrics.get`, also for the names that depend on the shapes."""
    if str(identifier).lower() in _ACCURACY:
        return keras.metrics.MeanMetricWrapper(accuracy, name=str(identifier))
    found = deserialized(identifier, "metric")
    if not (isinstance(found, str | keras.metrics.Metric) or callable(found)):
        raise invalid("metric", "a metric as Keras accepts it: a name, function or metric", found)
    return keras.metrics.get(found)


def name_of_metric(metric: Any) -> str:
    """Returns the name that Keras gives a metric."""
    if isinstance(metric, str):
        return metric
    name = getattr(metric, "name", None) or getattr(metric, "__name__", type(metric).__name__)
    return str(name)
