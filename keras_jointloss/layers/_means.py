"""Means over the items, or the elements of a tensor, that masks and sample weights leave."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.batch import check_numbers
from keras_jointloss._core.math import divide_or_0
from keras_jointloss._core.validation import invalid
from keras_jointloss.terms.missing.targets import fill


def item_mask(masks: Iterable[Any]):
    """Returns which items no mask excludes, `(batch,)`, or `None` if there is no mask."""
    masks = [ops.cast(mask, "bool") for mask in masks if mask is not None]
    return ops.all(ops.stack(masks, axis=1), axis=1) if masks else None


def mean_over_items(
    compute: Callable[[Any], Any],
    batch_size,
    mask,
    sample_weight,
    is_weighted_mean: bool,
    over_replicas: bool = False,
) -> tuple[Any, Any, Any]:
    """Returns the mean loss, the number of items, and which items take part.

    An item whose weight is 0 is excluded. Over replicas, the number of items is what a replica adds
    to the sum that Keras keeps of it.

    Args:
        compute: Returns the loss of each item, `(batch,)`, or several of each, `(batch, values)`,
            which have a mean each, from which items take part, `(batch,)`, or `None` for all.
        batch_size: A scalar tensor of the dtype of the loss.
        mask: Which items take part, `(batch,)`, or `None`.
        sample_weight: The weight of each item, or `None`.
        is_weighted_mean: Whether the sum is divided by the sum of the weights.
        over_replicas: Whether the mean is over the items of all replicas.
    """

    def mean(total, divisor, items):
        if over_replicas:  # In one exchange.
            replicas = current_replicas()
            sums = replicas.loss_sum(ops.append(total, ops.stack([divisor, items])))
            total, divisor = ops.reshape(sums[:-2], ops.shape(total)), sums[-2]
            items = replicas.once(sums[-1])
        return divide_or_0(total, divisor), items

    dtype = batch_size.dtype
    items = batch_size if mask is None else ops.sum(ops.cast(mask, dtype))
    if sample_weight is None:
        return *mean(ops.sum(compute(mask), axis=0), items, items), mask
    weights = ops.reshape(ops.cast(sample_weight, dtype), (-1,))
    weights = weights if mask is None else ops.where(mask, weights, 0)
    valid = ops.not_equal(weights, 0)
    divisor = ops.sum(weights) if is_weighted_mean else items
    values = compute(valid)
    if len(values.shape) == 2:
        weights = weights[:, None]
    return *mean(ops.sum(weights * values, axis=0), divisor, items), valid


def mean_of_scalar(loss, items) -> tuple[Any, Any, Any]:
    """Returns the mean, as `mean_over_items`, of a loss that is one number for some items.

    Among several replicas, each has a number for its own items.
    """
    items = ops.cast(items, loss.dtype)
    if current_replicas().count == 1:
        return loss, items, None
    # The mean of no items may be NaN.
    total = ops.where(items > 0, loss * items, 0)
    return mean_over_items(lambda _: total[None], items, None, None, False, over_replicas=True)


def mean_over_elements(
    values, masks, sample_weight, is_weighted_mean, keeps_dimensions, over_replicas=False
):
    """Returns the mean of values, the number of elements in it, and which elements take part.

    The masks, a list, and the sample weights have leading axes of the values: `(batch,)`, or
    `(batch, time)` for values of shape `(batch, time, ...)`. An element has the axes of the
    longest; one of weight 0 is excluded. If the mean keeps dimensions, there is one for each of the
    others, `(dimensions,)`, in place of one for all, `()`.
    """
    weights = [] if sample_weight is None else [leading_axes(sample_weight)]
    masks = [leading_axes(mask) for mask in masks]
    rank = max([1, *(len(x.shape) for x in (*masks, *weights))])
    shape = ops.shape(values)[:rank]
    mask = weight = None
    if masks:
        masks = [_spread(ops.cast(mask, "bool"), shape) for mask in masks]
        mask = ops.reshape(ops.all(ops.stack(masks), axis=0), (-1,))
    if weights:
        weight = ops.reshape(_spread(weights[0], shape), (-1,))
    if keeps_dimensions:
        elements = ops.reshape(values, (-1, math.prod(values.shape[rank:])))
    else:
        axes = tuple(range(rank, len(values.shape)))
        elements = ops.reshape(ops.mean(values, axis=axes) if axes else values, (-1,))
    count = ops.cast(ops.shape(elements)[0], values.dtype)
    where = partial(_where, elements)
    mean, items, valid = mean_over_items(
        where, count, mask, weight, is_weighted_mean, over_replicas
    )
    return mean, items, None if valid is None else ops.reshape(valid, shape)


def without_excluded(target, prediction, masks, sample_weight):
    """Returns target and prediction with constants in place of the excluded elements.

    A loss is then finite for them, and so is its gradient, even if the target is NaN. Masks and
    weights that do not have leading axes of both are ignored.
    """
    included = [ops.cast(mask, "bool") for mask in masks]
    if sample_weight is not None:
        included.append(ops.not_equal(sample_weight, 0))
    for mask in included:
        if has_leading_axes(mask, target) and has_leading_axes(mask, prediction):
            target, prediction = fill(target, prediction, leading_axes(mask))
    return target, prediction


def leading_axes(x):
    """Returns `x`, a mask or sample weights, without last axes of size 1 after the batch."""
    x = ops.convert_to_tensor(x)
    while len(x.shape) > 1 and x.shape[-1] == 1:
        x = ops.squeeze(x, -1)
    return x


def has_leading_axes(x, values, unknown: bool = True) -> bool:
    """Returns whether `x`, a mask or sample weights, can have the leading axes of `values`.

    If `unknown`, an axis of `x` of unknown size can be one of known size. That of the batch can.
    """
    shape = leading_axes(x).shape
    sizes = zip(shape, values.shape, strict=False)
    return len(shape) <= len(values.shape) and all(
        a == 1 or a == b or b is None or (a is None and (unknown or axis == 0))
        for axis, (a, b) in enumerate(sizes)
    )


def _spread(x, shape):
    """Returns `x`, which has the leading axes of `shape`, repeated along the others."""
    axes = (1,) * (len(shape) - len(x.shape))
    return ops.broadcast_to(ops.reshape(x, (*ops.shape(x), *axes)), shape)


def _where(elements, valid):
    """Returns the elements, with 0 in place of those that are excluded."""
    if valid is None:
        return elements
    return ops.where(valid[:, None] if len(elements.shape) == 2 else valid, elements, 0)


def validate_reduction(loss: Any, given: Any) -> None:
    """Raises `ValueError` if the reduction of a loss that the user has given is not a mean."""
    if isinstance(loss, keras.losses.Loss) and loss.reduction in ("sum", "none", None):
        raise invalid(
            "loss", "a loss whose reduction is a mean", given, f" with reduction={loss.reduction!r}"
        )


def validate_item_weights(sample_weight: Any, batch_size: int | None, name: str) -> None:
    """Raises `ValueError` if there is not one sample weight for each item, or one for all."""
    if sample_weight is None:
        return
    check_numbers(sample_weight, "sample_weight", repr(name))
    is_array = hasattr(sample_weight, "shape")
    shape = tuple(sample_weight.shape if is_array else np.shape(sample_weight))
    is_vector = len(shape) == 1 or (len(shape) == 2 and shape[1] == 1)
    if shape and not (is_vector and (shape[0] in (1, None, batch_size) or batch_size is None)):
        raise ValueError(
            f"{name!r} expects sample weights of shape ({batch_size or 'batch'},). "
            f"Received: sample_weight of shape {shape}"
        )
