"""The mean of a tensor over the elements that masks and sample weights leave."""

import math
from functools import partial

from keras import ops

from keras_jointloss.layers._layer_term import mean_over_items


def mean_over_elements(values, masks, sample_weight, is_weighted_mean, keeps_dimensions):
    """Returns the mean, the number of elements in it, and which elements take part.

    Masks and sample weights have leading axes of the values: `(batch,)`, or `(batch, time)` for
    values of shape `(batch, time, ...)`. An element has the axes of the longest of them.

    Args:
        values: `(batch, ...)`.
        masks: A list of tensors.
        sample_weight: A tensor, or `None`. An element of weight 0 is excluded.
        is_weighted_mean: Whether the sum is divided by the sum of the weights.
        keeps_dimensions: Whether to return the mean of each of the other dimensions,
            `(dimensions,)`, in place of one for all, `()`.
    """
    weights = [] if sample_weight is None else [_without_extra_axis(sample_weight, values)]
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
    mean, items, valid = mean_over_items(where, count, mask, weight, is_weighted_mean)
    return mean, items, None if valid is None else ops.reshape(valid, shape)


def has_leading_axes(x, values) -> bool:
    """Returns whether `x`, a mask or sample weights, can have the leading axes of `values`."""
    return len(x.shape) <= len(values.shape) or _has_extra_axis(x, values)


def _has_extra_axis(x, values) -> bool:
    return len(x.shape) == len(values.shape) + 1 and x.shape[-1] == 1


def _without_extra_axis(x, values):
    """Returns `x` without a last axis of size 1 that the values lack."""
    x = ops.convert_to_tensor(x)
    return ops.squeeze(x, -1) if _has_extra_axis(x, values) else x


def _spread(x, shape):
    """Returns `x`, which has the leading axes of `shape`, repeated along the others."""
    axes = (1,) * (len(shape) - len(x.shape))
    return ops.broadcast_to(ops.reshape(x, (*ops.shape(x), *axes)), shape)


def _where(elements, valid):
    """Returns the elements, with 0 in place of those that are excluded."""
    if valid is None:
        return elements
    return ops.where(valid[:, None] if len(elements.shape) == 2 else valid, elements, 0)
