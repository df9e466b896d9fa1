"""Cosines of embeddings and proxies, and what the classes of items make of them."""

from collections.abc import Callable
from typing import Any

from keras import ops

from keras_jointloss._core.math import divide_or_0, dot_matrix, l2_normalize


def cosines(a, b):
    """Returns the cosine of each vector of `a` with each of `b`: `(len(a), len(b))`."""
    return dot_matrix(l2_normalize(a), l2_normalize(b))


def own_classes(labels, classes: int):
    """Returns which classes are those of each item: `(batch, classes)`, bool.

    The labels are as in the function of a `ProxyLoss`. An item has the classes whose entry in its
    row is above 0.5.
    """
    if len(labels.shape) == 2:
        return labels > 0.5
    return labels[:, None] == ops.arange(classes, dtype=labels.dtype)[None, :]


def cross_entropy(
    cosine: Any,
    labels: Any,
    scale: float,
    with_margin: Callable[[Any, Any], Any] | None = None,
):
    """Returns the cross-entropy between the classes and the softmax of scaled cosines, `(batch,)`.

    Args:
        cosine: `(batch, classes)`.
        labels: As in the function of a `ProxyLoss`. A row is divided by its sum; the loss of an
            item without a class is 0.
        scale: The factor of the cosines.
        with_margin: Returns the cosines of own classes with a margin, from the cosines and the
            entries of the classes in the row of the item, two tensors of the same shape.
    """
    if len(labels.shape) == 1:
        own = own_classes(labels, cosine.shape[1])
        target = ops.sum(ops.where(own, cosine, 0), axis=1)
        if with_margin is not None:  # Only for one class of each item.
            target = with_margin(target, ops.ones_like(target))
            cosine = ops.where(own, target[:, None], cosine)
        return _log_sum(cosine, target, scale)
    if with_margin is not None:
        cosine = with_margin(cosine, labels)
    total = ops.sum(labels, axis=1)
    target = divide_or_0(ops.sum(labels * cosine, axis=1), total)
    return ops.where(total > 0, _log_sum(cosine, target, scale), 0)


def _log_sum(cosine, target, scale):
    """Returns the log-sum-exp minus the scaled target, which rounding never puts below 0."""
    return ops.logsumexp(scale * (cosine - target[:, None]), axis=1)
