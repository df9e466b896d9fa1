"""Sample weights of the elements of targets, for losses that are means over the last axis."""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_jointloss._core.math import divide_or_0
from keras_jointloss.terms.missing.targets import pairs_of_elements


def weighs_elements(sample_weight: Any, y_pred: Any) -> bool:
    """Returns whether there is a weight for each element of predictions `(batch, ..., k)`."""
    if sample_weight is None:
        return False
    shape = tuple(ops.convert_to_tensor(sample_weight).shape)
    return len(shape) == len(y_pred.shape) > 1 and shape[-1] != 1


def weighted_items(
    compute: Callable[[Any, Any], Any], y_true: Any, y_pred: Any, weight: Any
) -> tuple[Any, Any]:
    """Returns loss and weight of each item, `(batch, ...)`, from the weights of its elements.

        loss_i = sum_j w_ij loss_ij / sum_j w_ij,   w_i = mean_j w_ij

    Whatever an item's loss counts by, its weight times its loss is then the mean of the weighted
    losses of its elements, and the weights of all items sum up to those of all elements.

    Args:
        compute: A mean over the last axis.
        y_true: `(batch, ..., k)`, or without an axis of size 1.
        y_pred: Likewise.
        weight: `(batch, ..., k)`.
    """
    pair = pairs_of_elements(y_true, y_pred)
    if pair is None:
        raise ValueError(
            "Expected a target for each prediction, since there is a weight for each. Received: "
            f"targets of the shape {tuple(y_true.shape)}, predictions of {tuple(y_pred.shape)}"
        )
    y_true, y_pred = pair
    columns = [ops.reshape(y, (-1, 1)) for y in (y_true, y_pred)]
    values = ops.reshape(compute(*columns), ops.shape(y_pred))
    weight = ops.cast(weight, values.dtype)
    total = ops.sum(weight, axis=-1)
    return divide_or_0(ops.sum(weight * values, axis=-1), total), ops.mean(weight, axis=-1)


def validate_rank(values: Any, sample_weight: Any, term: str | None = None) -> None:
    """Raises `ValueError` if there are more weights than values of the unreduced loss of a term."""
    shape = tuple(ops.convert_to_tensor(sample_weight).shape)
    while len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > len(values.shape):
        of_term = "" if term is None else f" of {term!r}"
        raise ValueError(
            f"Expected at most one weight for each value of the loss{of_term}, whose values have "
            f"the shape {tuple(values.shape)}. Weights of the elements of a target need a loss "
            "that is a mean over the last axis, and class weights one with a value for each class "
            f"label. Received: weights of the shape {shape}"
        )
