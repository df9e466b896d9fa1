"""KoLeo: spreads embeddings by the distance of each from its nearest neighbour."""

import math

import keras
from keras import ops

from keras_jointloss._core.batch import Items, rows_of
from keras_jointloss._core.math import distance, dot, dot_matrix, l2_normalize
from keras_jointloss._core.types import DType, Labels, Mask, Reduction, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


def koleo(
    views: Tensor,
    labels: Labels = None,
    valid: Mask = None,
    epsilon: float = 1e-8,
    items: Items | None = None,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`. See `KoLeo` for the other arguments.

    Args:
        views: `(batch, views, dim)`.
        labels: Not used.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        items: The `Items` whose losses to return; `None` for all.
    """
    views = as_views(views, valid)
    unit = ops.unstack(l2_normalize(views), axis=1)
    losses = sum(-ops.log(_nearest_distance(x, valid, items) + epsilon) for x in unit) / len(unit)
    has_neighbour = (
        ops.shape(views)[0] if valid is None else ops.sum(ops.cast(valid, "int32"))
    ) > 1
    return item_losses(ops.where(has_neighbour, losses, 0), views, valid, items)


def _nearest_distance(x, valid, items):
    """Returns the distance of each vector from the nearest valid one of another item."""
    own, places = rows_of(x, items), ops.arange(ops.shape(x)[0], dtype="int32")
    others = rows_of(places, items)[:, None] != places[None, :]
    if valid is not None:
        others = others & valid[None, :]
    closeness = 2 * dot_matrix(own, x) - dot(x, x)[None, :]  # Minus the square, but for a constant.
    nearest = ops.argmax(ops.where(others, ops.stop_gradient(closeness), -math.inf), axis=1)
    return distance(own, ops.take(x, nearest, axis=0))


@keras.saving.register_keras_serializable(package="keras_jointloss")
class KoLeo(ViewsLoss):
    """KoLeo: the Kozachenko-Leonenko estimator of the entropy of the embeddings, negated.

    It pushes each embedding, normalized to length 1, away from its nearest neighbour `x_j` in the
    batch, most where they are close, and so spreads them evenly over the sphere:

        loss_i = mean over the views of -log( min_{j != i} |x_i - x_j| + epsilon )

    The neighbours of a view are the same views of other items. As a regularizer it goes beside
    another loss, with a small weight, such as 0.1 in DINOv2. An item that is alone in its batch
    has loss 0. The batch needs memory for `batch^2` numbers.

    Args:
        epsilon: The number added to the distance, > 0. Two equal embeddings have the loss
            `-log(epsilon)` and gradient 0.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, views, dim)`, any number of views, or `(batch, dim)` for one view per
        item. `y_true` is not used: pass anything with the right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Sablayrolles et al., 2019, Spreading Vectors for Similarity Search
        - Oquab et al., 2023, DINOv2: Learning Robust Visual Features without Supervision

    Example:

    >>> import numpy as np
    >>> loss = KoLeo()
    >>> round(float(loss(np.zeros(2), np.array([[3.0, 0.0], [-1.0, 0.0]]))), 4)  # -log(2)
    -0.6931
    """

    function = staticmethod(koleo)
    min_views = 1
    max_views = math.inf
    takes_items = True

    def __init__(
        self,
        epsilon: float = 1e-8,
        name: str = "koleo",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        epsilon = validate_number(epsilon, "epsilon", 0, exclusive=True)
        super().__init__(name, reduction, dtype, epsilon=epsilon)
