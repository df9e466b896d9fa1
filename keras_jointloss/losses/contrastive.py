"""Contrastive loss on the Euclidean distance of labelled pairs."""

import keras
from keras import ops

from keras_jointloss._core.math import distance
from keras_jointloss._core.types import Annealable, DType, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._pairs import PairLoss, mixed


def contrastive(
    views: Tensor, labels: Tensor, valid: Mask = None, margin: float | Tensor = 1.0
) -> Tensor:
    """Returns the loss of each item, `(batch,)`. See `Contrastive` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`: 1 if the two views match, 0 if not.
        valid: `(batch,)`, bool: which items to include. `None` for all.
    """

    def losses(a, b):
        length = distance(a, b)
        return 0.5 * ops.square(length), 0.5 * ops.square(ops.relu(margin - length))

    return mixed(views, labels, valid, losses)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Contrastive(PairLoss):
    """Contrastive loss on the Euclidean distance of labelled pairs.

    With the distance `d` between the two embeddings, the label `y` and the margin `m`:

        loss = 1/2 [ y d^2 + (1 - y) [m - d]+^2 ]        where [x]+ = max(x, 0)

    Args:
        margin: The distance `m`, 0 or more, from which a pair that does not match has loss 0,
            or a schedule of it.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`, the pairs. `y_true`: `(batch,)` or `(batch, 1)`: 1 if the two
        match, 0 if not; numbers in between are soft labels.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Hadsell, Chopra, LeCun, 2006, Dimensionality Reduction by Learning an Invariant Mapping

    Example:

    >>> import numpy as np
    >>> pair = [[1.0, 0.0], [1.0, 0.5]]  # distance 0.5
    >>> loss = Contrastive()
    >>> [float(x) for x in loss.call(np.array([1.0, 0.0]), np.array([pair, pair]))]
    [0.125, 0.125]
    """

    function = staticmethod(contrastive)

    def __init__(
        self,
        margin: Annealable = 1.0,
        name: str = "contrastive",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name, reduction, dtype, margin=annealed(margin, validate_number, "margin", 0)
        )
