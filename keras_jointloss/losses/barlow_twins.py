"""Barlow Twins: each feature of one view predicts the same feature of the other, and no other."""

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.math import safe_sqrt
from keras_jointloss._core.types import DType, Labels, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._pairs import as_views, item_losses, moments
from keras_jointloss.losses.base import ViewsLoss


def barlow_twins(
    views: Tensor, labels: Labels = None, valid: Mask = None, off_diagonal_weight: float = 0.0051
) -> Tensor:
    """Returns the loss of each item, `(batch,)`. See `BarlowTwins` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: Not used.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """
    views = as_views(views, valid)
    scaled = []
    for view in (views[:, 0], views[:, 1]):
        centered, count = moments(view, valid)
        variance = ops.sum(ops.square(centered), axis=0) / count
        # Rounding may leave some variance in a feature that does not vary.
        rounding = 4 * np.finfo(keras.backend.standardize_dtype(view.dtype)).eps
        is_constant = variance <= rounding**2 * ops.sum(ops.square(view), axis=0) / count
        deviation = ops.where(is_constant, 1, safe_sqrt(variance))
        scaled.append(ops.where(is_constant, 0, centered / deviation))
    correlation = ops.einsum("nd,ne->de", *scaled) / count
    identity = ops.eye(views.shape[2], dtype=views.dtype)
    weights = identity + (1 - identity) * off_diagonal_weight
    loss = ops.sum(weights * ops.square(correlation - identity))
    return item_losses(ops.broadcast_to(loss, ops.shape(views)[:1]), views, valid)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class BarlowTwins(ViewsLoss):
    """Barlow Twins: drives the cross-correlation of the features of two views to the identity.

    With the correlation `C_ij` over the batch between feature `i` of the first view and feature `j`
    of the second:

        loss = sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2

    Every item gets the loss of the whole batch. A feature that does not vary, as in a batch of 1,
    has correlation 0.

    Args:
        off_diagonal_weight: The weight `lambda`, 0 or more.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true` is not used: pass anything with the right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Zbontar et al., 2021, Barlow Twins: Self-Supervised Learning via Redundancy Reduction

    Example:

    >>> import numpy as np
    >>> a = np.array([[1.0], [-1.0]])
    >>> float(BarlowTwins()(np.zeros(2), np.stack([a, -a], axis=1)))  # correlation -1
    4.0
    """

    function = staticmethod(barlow_twins)

    def __init__(
        self,
        off_diagonal_weight: float = 0.0051,
        name: str = "barlow_twins",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            off_diagonal_weight=validate_number(off_diagonal_weight, "off_diagonal_weight", 0),
        )
