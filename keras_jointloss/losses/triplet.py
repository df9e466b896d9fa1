"""Triplet losses: pull an anchor closer to its positive than to its negative."""

import math
from typing import Any, Literal

import keras
from keras import ops

from keras_jointloss._core.batch import Items, validate_unlabelled
from keras_jointloss._core.math import SIMILARITIES, matrix_of_prepared, max_along, mean_where
from keras_jointloss._core.types import DType, Margin, Mask, Reduction, Similarity, Tensor
from keras_jointloss._core.validation import validate_choice, validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._pairs import as_views, class_roles, item_losses, mean_of_views
from keras_jointloss.losses.base import ViewsLoss


def hinge(difference: Tensor, margin: Margin | Tensor) -> Tensor:
    """Returns `[difference + margin]+`, or the softplus of the difference if `margin="soft"`."""
    is_soft = isinstance(margin, str)
    return ops.softplus(difference) if is_soft else ops.relu(difference + margin)


def validate_margin(value: Any) -> Margin:
    """Returns a valid margin: a number, 0 or more, or `"soft"`."""
    is_soft = isinstance(value, str) and value == "soft"
    return value if is_soft else annealed(value, validate_number, "margin", 0)


def triplet(
    views: Tensor,
    labels: Tensor,
    valid: Mask = None,
    margin: Margin | Tensor = 1.0,
    mining: Literal["semi_hard", "hard", "all"] = "semi_hard",
    similarity: Similarity = "euclidean",
    items: Items | None = None,
) -> Tensor:
    """Returns the triplet loss of each item, `(batch,)`. See `Triplet` for the other arguments.

    Args:
        views: `(batch, views, dim)`.
        labels: `(batch,)` or `(batch, classes)`.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        items: The `Items` whose losses to return; `None` for all.
    """
    views = as_views(views, valid)
    anchors, candidates, positive, negative = class_roles(views, similarity, labels, valid, items)
    # A distance up to a constant, which is the same for positives and negatives.
    distance = -matrix_of_prepared(anchors, candidates, similarity)
    if mining == "hard":
        farthest = _largest(positive, distance, axis=1)
        nearest = -_largest(negative, -distance, axis=1)
        is_triplet = ops.any(positive, axis=1) & ops.any(negative, axis=1)
        losses = hinge(_difference(farthest, nearest, is_triplet), margin)
        losses = ops.where(is_triplet, losses, 0)
    elif mining == "semi_hard":
        is_farther = negative[:, None, :] & (distance[:, None, :] > distance[:, :, None])
        nearest_farther = -_largest(is_farther, -distance[:, None, :], axis=2)
        farthest = _largest(negative, distance, axis=1, keepdims=True)
        chosen = ops.where(ops.any(is_farther, axis=2), nearest_farther, farthest)
        is_triplet = positive & ops.any(negative, axis=1, keepdims=True)
        losses = hinge(_difference(distance, chosen, is_triplet), margin)
        losses = mean_where(losses, is_triplet, 1)
    else:
        is_triplet = positive[:, :, None] & negative[:, None, :]
        losses = hinge(distance[:, :, None] - distance[:, None, :], margin)
        losses = mean_where(losses, is_triplet, (1, 2))
    losses = mean_of_views(losses, views.shape[1])
    return item_losses(losses, views, valid, items)


def _largest(mask, x, axis, keepdims=False):
    """Returns the largest element for which `mask` is true, -inf if there is none."""
    return max_along(ops.where(mask, x, -math.inf), axis, keepdims)


def _difference(positive, negative, is_triplet):
    """Returns the difference of the distances, 0 where one of them does not exist."""
    return ops.where(is_triplet, positive, 0) - ops.where(is_triplet, negative, 0)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Triplet(ViewsLoss):
    """Triplet loss with in-batch mining.

    Every view of every item is an anchor. A positive is another view whose item shares a label with
    the anchor's, and a negative is any other view. With the anchor's distances `d_ap` from a
    positive and `d_an` from a negative, and the margin `m`:

        loss = mean over the triplets of the anchor of [d_ap - d_an + m]+        [x]+ = max(x, 0)

    `mining` selects the triplets:

    - `"all"`: every positive with every negative,
    - `"semi_hard"`: every positive with the nearest negative that is farther than the positive or,
      if there is none, with the farthest negative,
    - `"hard"`: the farthest positive with the nearest negative.

    An anchor without positives or without negatives has loss 0. With `n` views in the batch, the
    loss needs memory for `n^3` numbers, or `n^2` with `"hard"`. For given triplets, use
    `TripletMargin`.

    Args:
        margin: The margin `m`, 0 or more, or `"soft"` for `log(1 + exp(d_ap - d_an))` in place of
            the hinge, or a schedule of numbers.
        mining: `"semi_hard"`, `"hard"` or `"all"`.
        similarity: `"euclidean"`, `"cosine"` (the distance is 1 minus the cosine) or `"dot"` (the
            distance is minus the dot product).
        unlabelled: The label that marks items without one, such as -1, or `None`. These items are
            excluded from the batch (as anchors, positives and negatives) and have loss 0. Like
            items of weight 0, they count in the mean over the batch.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, views, dim)`, or `(batch, dim)` for one view per item.
        `y_true`: `(batch,)`, `(batch, 1)` or `(batch, classes)` with 1 for each class of an item
        and 0 for the others.

    Output shape:
        `(batch,)` from `call`, the mean over the views of an item.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Schroff, Kalenichenko, Philbin, 2015, FaceNet: A Unified Embedding for Face Recognition
          and Clustering (semi-hard mining)
        - Hermans, Beyer, Leibe, 2017, In Defense of the Triplet Loss for Person Re-Identification
          (all, hard, and the soft margin)

    Example:

    >>> import numpy as np
    >>> a = np.eye(3, dtype="float32")
    >>> loss = Triplet(margin=2.0)
    >>> round(float(loss(np.arange(3), np.stack([a, a], axis=1))), 4)  # 2 - sqrt(2)
    0.5858
    """

    function = staticmethod(triplet)
    label_kind = "class"
    min_views = 1
    max_views = math.inf
    takes_items = True

    def __init__(
        self,
        margin: Margin = 1.0,
        mining: Literal["semi_hard", "hard", "all"] = "semi_hard",
        similarity: Similarity = "euclidean",
        unlabelled: int | None = None,
        name: str = "triplet",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            margin=validate_margin(margin),
            mining=validate_choice(mining, "mining", ("all", "semi_hard", "hard")),
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            unlabelled=validate_unlabelled(unlabelled),
        )
