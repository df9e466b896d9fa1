"""The views of the items of a batch, its mask, and the reduction of values under a mask."""

import math

import keras
from keras import ops


def finite_items(views):
    """Returns 1 for each item whose views are finite, and NaN for the others: `(batch,)`.

    Comparisons with NaN are false, and the hinge of an infinite distance is 0: a loss can be finite
    although its gradient is not. Its product with this factor is NaN, like the gradient of it.
    """
    is_finite = ops.isfinite(ops.sum(ops.stop_gradient(views), axis=(1, 2)))
    return ops.where(is_finite, ops.ones_like(views[:, 0, 0]), math.nan)


def stacked(views):
    """Returns `(batch, views, dim)` unchanged, and one view per item, `(batch, dim)`, as such."""
    return views[:, None] if len(views.shape) == 2 else views


class _Mask(keras.losses.Loss):
    """Exposes the Keras mask of the items: Keras multiplies this loss, all ones, by the mask.

    Where Keras stores the mask of a tensor depends on the backend, and only losses receive it.
    """

    def __init__(self):
        super().__init__(name="mask", reduction="none")
        self.ones = None

    def call(self, y_true, y_pred):
        self.ones = ops.ones_like(stacked(y_pred)[:, 0, :1])  # (batch, 1)
        return self.ones


class _Precomputed(keras.losses.Loss):
    """Reduces precomputed values, as Keras does after the `call` of any loss."""

    def __init__(self, values, reduction, dtype):
        super().__init__(name="reduction", reduction=reduction, dtype=dtype)
        self.values = values

    def call(self, y_true, y_pred):
        return self.values


def reduce_values(values, y_pred, sample_weight=None, reduction="sum", dtype=None):
    """Reduces the values of items as Keras reduces those of a loss.

    Args:
        values: `(batch, ...)`.
        y_pred: The prediction, whose Keras mask applies.
        sample_weight: As Keras passes it to a loss, or `None`.
        reduction: As in `keras.losses.Loss`.
        dtype: As in `keras.losses.Loss`.
    """
    return reduced(_Precomputed(values, reduction, dtype)(y_pred, y_pred, sample_weight), reduction)


def reduced(loss, reduction):
    """Returns what a loss of Keras returned, as 0 if a replica without items runs eagerly.

    Keras does not reduce the values of no items, of the shape `(0,)`.
    """
    is_unreduced = tuple(loss.shape) == (0,) and reduction not in (None, "none")
    return ops.sum(loss) if is_unreduced else loss


def item_weights(sample_weight, views):
    """Returns the weight of each item, `(batch,)`, from a number or one per item."""
    weight = ops.reshape(ops.convert_to_tensor(sample_weight), (-1,))
    return ops.broadcast_to(weight, ops.shape(views)[:1])


def valid_items(views, sample_weight=None):
    """Returns the mask of included items, `(batch,)`, bool, or `None` if all are known to be.

    Args:
        views: `(batch, views, dim)` or `(batch, dim)`. An item with a view that Keras masks is
            excluded.
        sample_weight: A number, or one per item. An item of weight 0 is excluded.
    """
    loss = _Mask()
    mask = loss(views, views)  # (batch, 1) or (batch, views)
    valid = None if mask is loss.ones else ops.all(mask > 0, axis=1)
    if sample_weight is None:
        return valid
    weighs = ops.not_equal(item_weights(sample_weight, views), 0)
    return weighs if valid is None else ops.logical_and(valid, weighs)
