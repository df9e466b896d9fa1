"""Circle loss: each similarity is weighted by its distance from its optimum."""

import math

import keras
from keras import ops

from keras_jointloss._core.batch import Items, validate_unlabelled
from keras_jointloss._core.math import dot_matrix, logsumexp_where
from keras_jointloss._core.types import Annealable, DType, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._pairs import as_views, class_roles, item_losses, mean_of_views
from keras_jointloss.losses.base import ViewsLoss


def circle(
    views: Tensor,
    labels: Tensor,
    valid: Mask = None,
    margin: float | Tensor = 0.4,
    gamma: float = 80.0,
    items: Items | None = None,
) -> Tensor:
    """Returns the circle loss of each item, `(batch,)`. See `Circle` for the other arguments.

    Args:
        views: `(batch, views, dim)`.
        labels: `(batch,)` or `(batch, classes)`.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        items: The `Items` whose losses to return; `None` for all.
    """
    views = as_views(views, valid)
    anchors, candidates, positive, negative = class_roles(views, "cosine", labels, valid, items)
    similarity = dot_matrix(anchors, candidates)
    detached = ops.stop_gradient(similarity)
    positive_weight = ops.relu(1 + margin - detached)
    negative_weight = ops.relu(detached + margin)
    positive_logit = -gamma * positive_weight * (similarity - (1 - margin))
    negative_logit = gamma * negative_weight * (similarity - margin)
    losses = ops.softplus(
        logsumexp_where(positive_logit, positive, 1) + logsumexp_where(negative_logit, negative, 1)
    )
    is_defined = ops.logical_and(ops.any(positive, axis=1), ops.any(negative, axis=1))
    losses = mean_of_views(ops.where(is_defined, losses, 0), views.shape[1])
    return item_losses(losses, views, valid, items)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Circle(ViewsLoss):
    """Circle loss on the cosines of all views.

    Every view of every item is an anchor, with cosines `s` to the other views:

        loss = softplus( LSE_N( gamma [s + m]+ (s - m) )
                       + LSE_P( -gamma [1 + m - s]+ (s - 1 + m) ) )

    where `LSE` is the logarithm of the sum of exponentials over the positives `P` (the other views
    whose items share a label with the anchor's) and the negatives `N` (all others). The weights in
    brackets carry no gradient, as in the paper. (They do in `keras.losses.Circle`: same value,
    different gradient.) An anchor without positives or without negatives has loss 0.

    Args:
        margin: The relaxation `m`, 0 or more, or a schedule of it.
        gamma: The scale, > 0.
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
        - Sun et al., 2020, Circle Loss: A Unified Perspective of Pair Similarity Optimization

    Example:

    >>> import numpy as np
    >>> a = np.eye(3, dtype="float32")
    >>> loss = Circle(gamma=1.0)
    >>> round(float(loss(np.arange(3), np.stack([a, a], axis=1))), 4)
    1.3622
    """

    function = staticmethod(circle)
    label_kind = "class"
    min_views = 1
    max_views = math.inf
    takes_items = True

    def __init__(
        self,
        margin: Annealable = 0.4,
        gamma: float = 80.0,
        unlabelled: int | None = None,
        name: str = "circle",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            margin=annealed(margin, validate_number, "margin", 0),
            gamma=validate_number(gamma, "gamma", 0, exclusive=True),
            unlabelled=validate_unlabelled(unlabelled),
        )
