"""Spread-out: the moments of the similarities of different items, as of random directions."""

import math

import keras
from keras import ops

from keras_jointloss._core.math import dot, l2_normalize
from keras_jointloss._core.types import DType, Labels, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


def spread_out(
    views: Tensor,
    labels: Labels = None,
    valid: Mask = None,
    mean_weight: float = 1.0,
    second_moment_weight: float = 1.0,
) -> Tensor:
    """Returns the loss of the batch for each item, `(batch,)`.

    See `SpreadOut` for the other arguments.

    Args:
        views: `(batch, views, dim)`.
        labels: Not used.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """
    parts = spread_out_parts(views, valid)
    return mean_weight * parts["mean"] + second_moment_weight * parts["second_moment"]


def spread_out_parts(views, valid=None):
    """Returns the two unweighted parts of the loss by name, each as `item_losses`."""
    views = as_views(views, valid)
    size, count, dim = ops.shape(views)[0], views.shape[1], views.shape[2]
    number = size if valid is None else ops.sum(ops.cast(valid, "int32"))
    pairs = ops.cast(ops.maximum(number * (number - 1), 1), views.dtype)
    mean = second_moment = 0.0
    for x in ops.unstack(l2_normalize(views), axis=1):  # Invalid items are 0.
        # Sums over all pairs, without those of an item and itself, in memory of `dim^2`.
        total, square, products = ops.sum(x, axis=0), dot(x, x), ops.einsum("nd,ne->de", x, x)
        mean += ops.square((dot(total, total) - ops.sum(square)) / pairs)
        squares = ops.sum(ops.square(products)) - ops.sum(ops.square(square))
        second_moment += ops.relu(squares / pairs - 1 / dim)
    parts = {"mean": mean / count, "second_moment": second_moment / count}
    return {
        name: item_losses(ops.broadcast_to(value, (size,)), views, valid)
        for name, value in parts.items()
    }


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SpreadOut(ViewsLoss):
    """Spread-out: global orthogonal regularization of embeddings.

    The similarities of two random directions in `D` dimensions have the mean 0 and the second
    moment `1 / D`. With the mean `M1` and the second moment `M2` of the cosines of all pairs of
    different items in a view:

        loss = mean over the views of M1^2 + [M2 - 1 / D]+        where [x]+ = max(x, 0)

    It is one value for the batch, and every item gets it: their mean is the formula. Excluded items
    are in no pair and have loss 0. As a regularizer it goes beside another loss. In
    `ContrastiveTerm` and `joint_loss`, the logs show the two unweighted parts as `<name>_mean` and
    `<name>_second_moment`. With one item, the loss is 0.

    Args:
        mean_weight: The weight of `M1^2`, 0 or more.
        second_moment_weight: The weight of `[M2 - 1 / D]+`, 0 or more.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, views, dim)`, any number of views, or `(batch, dim)` for one view per
        item. `y_true` is not used: pass anything with the right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Zhang, Yu, Kumar, Chang, 2017, Learning Spread-out Local Feature Descriptors

    Example:

    >>> import numpy as np
    >>> loss = SpreadOut()
    >>> [float(loss(np.zeros(2), np.array(x))) for x in ([[1.0, 0], [0, 1]], [[1.0, 0], [1, 0]])]
    [0.0, 1.5]
    """

    function = staticmethod(spread_out)
    min_views = 1
    max_views = math.inf
    part_names = ("mean", "second_moment")

    def __init__(
        self,
        mean_weight: float = 1.0,
        second_moment_weight: float = 1.0,
        name: str = "spread_out",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            mean_weight=validate_number(mean_weight, "mean_weight", 0),
            second_moment_weight=validate_number(second_moment_weight, "second_moment_weight", 0),
        )

    def part_values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None
    ) -> dict[str, Tensor]:
        """Returns the unweighted square of the mean and the excess of the second moment."""
        return spread_out_parts(views, valid)
