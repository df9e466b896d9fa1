"""The base of the losses on views."""

from typing import Any, NamedTuple

import keras
from keras import ops


class LearnedParameter(NamedTuple):
    """A parameter of a loss that `ContrastiveTerm` can train, within closed bounds."""

    initial: float
    minimum: float
    maximum: float


class ViewsLoss(keras.losses.Loss):
    """Base of the losses that compare the views of each item.

    The views are two (or more) embeddings of the same item, stacked on axis 1.

    A subclass writes `values`, and `get_config` if it has arguments of its own.

    Args:
        name: Name of the loss.
        reduction: As in `keras.losses.Loss`. The default is the mean over the batch.
        dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, float. `y_true`: `(batch,)` or `(batch, 1)`, labels, if
        the loss has any; else anything with the right batch size.

    Output shape:
        `(batch,)` from `call`, one value an anchor.

    Raises:
        ValueError: If the shape of `y_pred`, or of the labels, is another.
    """

    #: How many views an item has.
    views = 2
    #: Whether the loss needs labels (`True`) or has no use for them (`False`).
    has_labels = False

    def values(self, views, labels=None, **parameters):
        """Returns the loss of each anchor.

        Args:
            views: `(batch, views, dim)`, float.
            labels: `(batch,)`, or `None` where `has_labels` is false.
            **parameters: Scalar tensors that replace the `learned_parameters`, by name.

        Returns:
            `(batch,)`, of the dtype of `views`.
        """
        raise NotImplementedError

    def learned_parameters(self) -> dict[str, LearnedParameter]:
        """Returns the parameters that may be trained, by name. There are none by default."""
        return {}

    def temperature(self, **parameters: Any) -> Any:
        """Returns the temperature that `values` uses with these parameters."""
        raise NotImplementedError

    def validate_views(self, shape) -> None:
        """Raises `ValueError` if `shape` is not that of stacked views."""
        if len(shape) != 3 or shape[1] not in (self.views, None):
            raise ValueError(
                f"{type(self).__name__} expects stacked views of shape "
                f"(batch, {self.views}, dim). Received: shape={tuple(shape)}"
            )

    def validate_labels(self, shape, batch_size: int | None = None) -> None:
        """Raises `ValueError` if `shape` is not that of one label an item."""
        is_vector = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
        if not is_vector or (None not in (shape[0], batch_size) and shape[0] != batch_size):
            raise ValueError(
                f"{type(self).__name__} expects labels of shape ({batch_size or 'batch'},) or "
                f"({batch_size or 'batch'}, 1). Received: shape={tuple(shape)}"
            )

    def get_config(self) -> dict:
        return {**super().get_config(), "dtype": self.dtype}

    def call(self, y_true, y_pred):
        self.validate_views(y_pred.shape)
        if not self.has_labels:
            return self.values(y_pred)
        self.validate_labels(y_true.shape, y_pred.shape[0])
        return self.values(y_pred, ops.reshape(y_true, (-1,)))


def get(identifier: Any) -> keras.losses.Loss:
    """Returns a loss by instance, by name or by config.

    Args:
        identifier: A `keras.losses.Loss`, the name of a class of `keras_jointloss.losses`
            (`"InfoNCE"`), a name that `keras.losses.get` knows as a class
            (`"MeanSquaredError"`), or the serialized form of a loss.

    Raises:
        ValueError: If there is no such loss.

    Example:

    >>> get("InfoNCE").name
    'info_nce'
    """
    if isinstance(identifier, keras.losses.Loss):
        return identifier
    if isinstance(identifier, dict):
        return keras.losses.deserialize(identifier)
    if isinstance(identifier, str):
        registered = keras.saving.get_registered_object(f"keras_jointloss>{identifier}")
        if registered is not None and issubclass(registered, ViewsLoss):
            return registered()
        loss = getattr(keras.losses, identifier, None)
        if isinstance(loss, type) and issubclass(loss, keras.losses.Loss):
            return loss()
    raise ValueError(
        "Expected a `keras.losses.Loss`, or the name of a class in `keras_jointloss.losses` or "
        f"`keras.losses`. Received: loss={identifier!r}"
    )
