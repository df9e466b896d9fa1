"""Multi-similarity: pairs are weighted by their similarity and by that of the other pairs."""

import math

import keras
from keras import ops

from keras_jointloss._core.batch import Items, validate_unlabelled
from keras_jointloss._core.math import dot_matrix, soft_sum_where
from keras_jointloss._core.types import DType, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._pairs import as_views, class_roles, item_losses, mean_of_views
from keras_jointloss.losses.base import ViewsLoss


def multi_similarity(
    views: Tensor,
    labels: Tensor,
    valid: Mask = None,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    mining_margin: float | None = None,
    items: Items | None = None,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`. See `MultiSimilarity` for the other arguments.

    Args:
        views: `(batch, views, dim)`.
        labels: `(batch,)` or `(batch, classes)`.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        items: The `Items` whose losses to return; `None` for all.
    """
    views = as_views(views, valid)
    anchors, candidates, positive, negative = class_roles(views, "cosine", labels, valid, items)
    similarity = dot_matrix(anchors, candidates)
    if mining_margin is not None:
        hardest_positive = _extreme(similarity, positive, ops.min, math.inf)
        hardest_negative = _extreme(similarity, negative, ops.max, -math.inf)
        # Without positives all negatives are kept, and without negatives all positives.
        easy_negative = similarity <= hardest_positive - mining_margin
        easy_positive = similarity >= hardest_negative + mining_margin
        has_positive = ops.any(positive, axis=1, keepdims=True)
        has_negative = ops.any(negative, axis=1, keepdims=True)
        negative = negative & ~(easy_negative & has_positive)
        positive = positive & ~(easy_positive & has_negative)
    losses = soft_sum_where(-alpha * (similarity - base), positive, 1) / alpha
    losses = losses + soft_sum_where(beta * (similarity - base), negative, 1) / beta
    losses = mean_of_views(losses, views.shape[1])
    return item_losses(losses, views, valid, items)


def _extreme(x, mask, extreme, neutral):
    """Returns the smallest or largest of the masked elements of each row."""
    return extreme(ops.where(mask, x, neutral), axis=1, keepdims=True)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class MultiSimilarity(ViewsLoss):
    """Multi-similarity loss on the cosines of all views.

    Every view of every item is an anchor, with cosines `s` to the other views:

        loss = 1/alpha log(1 + sum_P e^{-alpha (s - base)})
             + 1/beta log(1 + sum_N e^{beta (s - base)})

    where the sums run over the positives `P` (the other views whose items share a label with the
    anchor's) and the negatives `N` (all others). An empty sum is 0.

    With a mining margin `e`, a negative counts only if its cosine is above that of the least
    similar positive minus `e`, and a positive only if its cosine is below that of the most similar
    negative plus `e`. The paper leaves two cases open: an anchor without positives keeps all its
    negatives, and one without negatives keeps all its positives.

    Args:
        alpha: The sharpness of the weighting of positives, > 0.
        beta: The sharpness of the weighting of negatives, > 0.
        base: The cosine around which pairs begin to count.
        mining_margin: The margin `e`, 0 or more (0.1 in the paper), or `None` to keep all pairs.
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
        - Wang et al., 2019, Multi-Similarity Loss with General Pair Weighting for Deep Metric
          Learning

    Example:

    >>> import numpy as np
    >>> a = np.eye(3, dtype="float32")
    >>> loss = MultiSimilarity()
    >>> round(float(loss(np.arange(3), np.stack([a, a], axis=1))), 4)  # log(1 + 1/e) / 2
    0.1566
    """

    function = staticmethod(multi_similarity)
    label_kind = "class"
    min_views = 1
    max_views = math.inf
    takes_items = True

    def __init__(
        self,
        alpha: float = 2.0,
        beta: float = 50.0,
        base: float = 0.5,
        mining_margin: float | None = None,
        unlabelled: int | None = None,
        name: str = "multi_similarity",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            alpha=validate_number(alpha, "alpha", 0, exclusive=True),
            beta=validate_number(beta, "beta", 0, exclusive=True),
            base=validate_number(base, "base"),
            mining_margin=None
            if mining_margin is None
            else validate_number(mining_margin, "mining_margin", 0),
            unlabelled=validate_unlabelled(unlabelled),
        )
