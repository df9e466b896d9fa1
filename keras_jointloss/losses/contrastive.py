"""Contrastive loss on the distance of labelled pairs."""

import keras
from keras import ops

from keras_jointloss._core.math import distance
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


def contrastive(views, labels, valid=None, margin=1.0):
    """Returns the contrastive loss of each item. See `Contrastive`.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)`: 1 if the two views match, 0 if not.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        margin: As in `Contrastive`.

    Returns:
        `(batch,)`.
    """
    views = as_views(views, valid)
    a, b = views[:, 0], views[:, 1]
    labels = ops.cast(labels, views.dtype)
    length = distance(a, b)
    together, apart = ops.square(length), ops.square(ops.relu(margin - length))
    return item_losses(0.5 * (labels * together + (1 - labels) * apart), views, valid)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Contrastive(ViewsLoss):
    """Contrastive loss on the Euclidean distance of labelled pairs.

    With the distance `d` between the two embeddings, the label `y` and the margin `m`:

        loss = 1/2 [ y d^2 + (1 - y) [m - d]+^2 ]        where [x]+ = max(x, 0)

    Args:
        margin: The distance `m`, 0 or more, from which a pair that does not match has loss 0.
        name: Name of the loss.
        reduction: As in `keras.losses.Loss`.
        dtype: As in `keras.losses.Loss`.

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
    label_kind = "pair"
    compares_items = False

    def __init__(
        self,
        margin: float = 1.0,
        name: str = "contrastive",
        reduction: str = "sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            margin=validate_number(margin, "margin", 0),
        )
