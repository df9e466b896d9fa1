"""Alignment and uniformity: views of an item agree, and items spread over the sphere."""

import keras
from keras import ops

from keras_jointloss._core.math import dot, dot_matrix, l2_normalize, logsumexp_where
from keras_jointloss._core.types import DType, Labels, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


def alignment_uniformity(
    views: Tensor,
    labels: Labels = None,
    valid: Mask = None,
    uniformity_weight: float = 1.0,
    alpha: float = 2.0,
    t: float = 2.0,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`. See `AlignmentUniformity` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: Not used.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """
    parts = alignment_uniformity_parts(views, valid, alpha, t)
    return parts["alignment"] + uniformity_weight * parts["uniformity"]


def alignment_uniformity_parts(views, valid=None, alpha=2.0, t=2.0):
    """Returns the two unweighted parts of the loss by name, each as `item_losses`."""
    views = as_views(views, valid)
    a, b = ops.unstack(l2_normalize(views), axis=1)
    square = dot(a - b, a - b)
    # The slope of smaller powers is infinite at 0, where the views cannot agree better.
    is_zero = square <= 0
    # `ops.power` computes float64 in float32 on PyTorch.
    power = ops.exp(alpha / 2 * ops.log(ops.where(is_zero, 1, square)))
    uniformity = (_uniformity(a, valid, t) + _uniformity(b, valid, t)) / 2
    parts = {
        "alignment": ops.where(is_zero, 0, power),
        "uniformity": ops.broadcast_to(uniformity, ops.shape(views)[:1]),
    }
    return {name: item_losses(values, views, valid) for name, values in parts.items()}


def _uniformity(x, valid, t):
    """Returns the logarithm of the mean potential of all pairs; 0 if there are none."""
    places, square = ops.arange(ops.shape(x)[0], dtype="int32"), dot(x, x)
    is_pair = places[:, None] != places[None, :]
    if valid is not None:
        is_pair = is_pair & valid[:, None] & valid[None, :]
    exponents = -t * (square[:, None] + square[None, :] - 2 * dot_matrix(x, x))
    total = logsumexp_where(ops.reshape(exponents, (-1,)), ops.reshape(is_pair, (-1,)), 0)
    count = ops.sum(ops.cast(is_pair, x.dtype))
    return total - ops.log(ops.where(count > 0, count, 1))


@keras.saving.register_keras_serializable(package="keras_jointloss")
class AlignmentUniformity(ViewsLoss):
    """Alignment of the two views of an item, and uniformity of all items on the sphere.

    These are the two properties that contrastive losses optimize in the limit of many negatives.
    With embeddings `a` and `b` of length 1, and the pairs of different items in a view:

        loss_i = |a_i - b_i|^alpha                                            alignment
               + w mean over the views of log mean_{i != j} exp( -t |x_i - x_j|^2 )    uniformity

    Every item gets the uniformity of the whole batch. Excluded items are in no pair and have loss
    0. In `ContrastiveTerm` and `joint_loss`, the logs show the two unweighted parts as
    `<name>_alignment` and `<name>_uniformity`. The metrics `Alignment` and `Uniformity` measure the
    same of any embeddings. The batch needs memory for `batch^2` numbers.

    Args:
        uniformity_weight: The weight `w`, 0 or more.
        alpha: The exponent of the distance, > 0.
        t: The sharpness of the potential, > 0.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`. `y_true` is not used: pass anything with the right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Wang, Isola, 2020, Understanding Contrastive Representation Learning through Alignment
          and Uniformity on the Hypersphere

    Example:

    >>> import numpy as np
    >>> a = np.array([[1.0, 0.0], [-1.0, 0.0]])
    >>> float(AlignmentUniformity()(np.zeros(2), np.stack([a, a], axis=1)))  # 0 - 2 * 2^2
    -8.0
    """

    function = staticmethod(alignment_uniformity)
    part_names = ("alignment", "uniformity")

    def __init__(
        self,
        uniformity_weight: float = 1.0,
        alpha: float = 2.0,
        t: float = 2.0,
        name: str = "alignment_uniformity",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            uniformity_weight=validate_number(uniformity_weight, "uniformity_weight", 0),
            alpha=validate_number(alpha, "alpha", 0, exclusive=True),
            t=validate_number(t, "t", 0, exclusive=True),
        )

    def part_values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None
    ) -> dict[str, Tensor]:
        """Returns the unweighted alignment and uniformity."""
        return alignment_uniformity_parts(views, valid, self.alpha, self.t)
