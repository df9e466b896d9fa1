"""Margin-MSE: learns a teacher's margin between a positive and its negatives."""

import math

import keras
from keras import ops

from keras_jointloss._core.batch import validate_vector
from keras_jointloss._core.math import SIMILARITIES, paired_similarity
from keras_jointloss._core.types import DType, Mask, Reduction, Shape, Similarity, Tensor
from keras_jointloss._core.validation import validate_choice
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


def margin_mse(
    views: Tensor, labels: Tensor, valid: Mask = None, similarity: Similarity = "dot"
) -> Tensor:
    """Returns the loss of each item, `(batch,)`. See `MarginMSE` for the other arguments.

    Args:
        views: `(batch, 2 + negatives, dim)`: anchor, positive and negatives.
        labels: `(batch,)` or `(batch, negatives)`: the margins of the teacher, or
            `(batch, 1 + negatives)`: its scores.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """
    views = as_views(views, valid)
    scores = paired_similarity(views[:, :1], views[:, 1:], similarity)  # (batch, 1 + negatives)
    labels = ops.cast(labels, views.dtype)
    targets = _margins(labels[:, None] if len(labels.shape) == 1 else labels, views.shape[1] - 2)
    losses = ops.sum(ops.square(scores[:, :1] - scores[:, 1:] - targets), axis=1)
    return item_losses(losses / (views.shape[1] - 2), views, valid)


def _margins(labels, count):
    """Returns the margins to each of the negatives, `(batch, count)`, from margins or scores."""
    if labels.shape[1] == count + 1:
        return labels[:, :1] - labels[:, 1:]
    if labels.shape[1] != count:
        batch = labels.shape[0] or "batch"
        raise ValueError(
            f"MarginMSE expects margins of shape ({batch}, {count}) or scores of shape "
            f"({batch}, {count + 1}) for {count} negatives. Received: shape={tuple(labels.shape)}"
        )
    return labels


@keras.saving.register_keras_serializable(package="keras_jointloss")
class MarginMSE(ViewsLoss):
    """Margin-MSE: the squared difference from the margins of a teacher.

    Each item is an anchor, such as a query, with a positive and one negative or more. The label `y`
    of a negative is the margin of a teacher, such as a cross-encoder: its score of anchor and
    positive minus that of anchor and negative. With the similarities `s_ap` of anchor and positive
    and `s_an` of anchor and negative:

        loss = mean over the negatives of ( (s_ap - s_an) - y )^2

    Only the difference of two scores counts: their offset may differ between teacher and student,
    and between items.

    Args:
        similarity: `"dot"`, as in the paper, `"cosine"` or `"euclidean"` (minus the distance). The
            margins of the teacher have to be within its range.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2 + negatives, dim)`: anchor, positive and negatives. `y_true`, finite
        numbers: `(batch, negatives)`, the margins of the teacher, for one negative also `(batch,)`,
        or `(batch, 1 + negatives)`, its scores of the positive and of each negative.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument or a label is invalid or an input has the wrong shape.

    References:
        - Hofstaetter et al., 2020, Improving Efficient Neural Ranking Models with
          Cross-Architecture Knowledge Distillation

    Example:

    >>> import numpy as np
    >>> triplet = [[1.0, 0.0], [3.0, 0.0], [1.0, 1.0]]  # dot products 3 and 1
    >>> float(MarginMSE()(np.array([5.0]), np.array([triplet])))  # (2 - 5)^2
    9.0
    """

    function = staticmethod(margin_mse)
    label_kind = "score"
    min_views = 3
    max_views = math.inf
    compares_items = False

    def __init__(
        self,
        similarity: Similarity = "dot",
        name: str = "margin_mse",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        similarity = validate_choice(similarity, "similarity", SIMILARITIES)
        super().__init__(name, reduction, dtype, similarity=similarity)

    def validate_labels(self, shape: Shape, batch_size: int | None = None) -> None:
        # How many there are per item depends on the views: the function compares them.
        validate_vector(shape, batch_size, "MarginMSE", may_be_classes=True)
