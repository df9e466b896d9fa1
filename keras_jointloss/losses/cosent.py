"""CoSENT: ranks pairs of views by their scores."""

import math

import keras
from keras import ops

from keras_jointloss._core.math import logsumexp_where, paired_similarity
from keras_jointloss._core.types import DType, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


def cosent(views: Tensor, labels: Tensor, valid: Mask = None, scale: float = 20.0) -> Tensor:
    """Returns the loss of the batch for each item, `(batch,)`.

    See `CoSENT` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`: the scores.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """
    views = as_views(views, valid)
    similarity = paired_similarity(views[:, 0], views[:, 1], "cosine")
    return ranking_losses(similarity, labels, views, valid, scale)


def ranking_losses(similarity, labels, views, valid, scale):
    """Returns the loss of the ranking of all items by their similarity, for each item: `(batch,)`.

    Similarities and labels, the scores, are `(batch,)`. The views are those that `as_views`
    returned.
    """
    scores = ops.cast(labels, views.dtype)
    is_pair = scores[:, None] > scores[None, :]  # (higher, lower)
    if valid is not None:
        is_pair = is_pair & valid[:, None] & valid[None, :]
    is_pair = ops.reshape(is_pair, (-1,))
    exponents = ops.reshape(scale * (similarity[None, :] - similarity[:, None]), (-1,))
    loss = ops.softplus(logsumexp_where(exponents, is_pair, 0))
    loss = ops.where(ops.any(is_pair), loss, 0)
    # No order with NaN is true: an unknown score must not go unnoticed.
    losses = loss * ops.where(ops.isfinite(scores), ops.ones_like(scores), math.nan)
    return item_losses(losses, views, valid)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class CoSENT(ViewsLoss):
    """CoSENT: the pair of views with the higher score has the higher cosine.

    The label `y` of an item is a score of its two views, such as a graded similarity. Only the
    order of the scores counts. With the cosine `s_i` of the two views of item `i`:

        loss = log( 1 + sum_{i, j: y_i > y_j} exp( scale (s_j - s_i) ) )

    It is one value for the batch, and every item gets it: their mean is the formula. Excluded items
    are in no pair `(i, j)` and have loss 0. A sample weight of 0 excludes an item; others do not
    change the pairs, and their mean multiplies the loss. If all scores are equal, the loss is 0.
    The batch needs memory for `batch^2` numbers.

    Args:
        scale: The inverse temperature of the differences, > 0.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, the pairs. `y_true`: `(batch,)` or `(batch, 1)`, any finite
        numbers: the scores.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument or a score is invalid or an input has the wrong shape.

    References:
        - Su, 2022, CoSENT: A More Efficient Sentence Vector Scheme than Sentence-BERT

    Example:

    >>> import numpy as np
    >>> right, up = [1.0, 0.0], [0.0, 1.0]
    >>> views = np.array([[right, right], [right, up]])  # cosines 1 and 0
    >>> loss = CoSENT(scale=1.0)
    >>> [round(float(loss(np.array(scores), views)), 4) for scores in ([4.5, 2.0], [2.0, 4.5])]
    [0.3133, 1.3133]
    """

    function = staticmethod(cosent)
    label_kind = "score"

    def __init__(
        self,
        scale: float = 20.0,
        name: str = "cosent",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        scale = validate_number(scale, "scale", 0, exclusive=True)
        super().__init__(name, reduction, dtype, scale=scale)
