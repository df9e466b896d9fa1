"""N-pairs: each anchor identifies the positives of its class among those of all classes."""

import keras
from keras import ops

from keras_jointloss._core.batch import Items, validate_unlabelled
from keras_jointloss._core.math import SIMILARITIES
from keras_jointloss._core.types import Annealable, DType, Mask, Reduction, Similarity, Tensor
from keras_jointloss._core.validation import validate_choice, validate_share
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._pairs import Roles, as_views, item_losses, samples_of
from keras_jointloss.losses._softmax import cross_entropy
from keras_jointloss.losses._tiles import validate_tile_size
from keras_jointloss.losses.base import ViewsLoss


def n_pairs(
    views: Tensor,
    labels: Tensor,
    valid: Mask = None,
    similarity: Similarity = "dot",
    label_smoothing: float | Tensor = 0.0,
    tile_size: int | None = None,
    items: Items | None = None,
) -> Tensor:
    """Returns the N-pairs loss of each item, `(batch,)`. See `NPairs` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)` or `(batch, classes)`.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        items: The `Items` whose losses to return; `None` for all.
    """
    views = as_views(views, valid)
    a, b = (samples_of(view, similarity, labels, valid) for view in ops.split(views, 2, axis=1))
    roles = Roles(a.of(items), b, same_label="positive")
    losses = cross_entropy(roles, 1.0, similarity, label_smoothing, tile_size)
    return item_losses(losses, views, valid, items)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class NPairs(ViewsLoss):
    """Cross-entropy that identifies the positives of each anchor's class among those of the batch.

    With the first views as anchors `a_i`, the second views as positives `b_j` and similarities
    `s_ij`:

        loss_i = LSE_j(s_ij) - mean_{p in P(i)} s_ip

    where `P(i)` are the items that share a label with item `i`, including itself, and `LSE` is the
    logarithm of the sum of exponentials. The paper also regularizes the length of the embeddings:
    add an activity regularizer to do so.

    Args:
        similarity: `"dot"` (the dot product, as in the paper), `"cosine"` or `"euclidean"` (minus
            the distance).
        label_smoothing: The share of the target, in [0, 1), spread evenly over all candidates, or a
            schedule of it.
        tile_size: The number of items whose similarities are held in memory at a time. Values and
            gradients do not depend on it. `None`: all if there are up to 2048, else 256; on a GPU
            or TPU all if there are up to 5792, else 2**25 divided by their number, at least 256.
        unlabelled: The label that marks items without one, such as -1, or `None`. These items are
            excluded from the batch (as anchors, positives and negatives) and have loss 0. Like
            items of weight 0, they count in the mean over the batch.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`.
        `y_true`: `(batch,)`, `(batch, 1)` or `(batch, classes)` with 1 for each class of an item
        and 0 for the others.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Sohn, 2016, Improved Deep Metric Learning with Multi-class N-pair Loss Objective

    Example:

    >>> import numpy as np
    >>> a = np.eye(3, dtype="float32")
    >>> loss = NPairs()
    >>> round(float(loss(np.arange(3), np.stack([a, a], axis=1))), 4)  # log(e + 2) - 1
    0.5514
    """

    function = staticmethod(n_pairs)
    label_kind = "class"
    takes_items = True

    def __init__(
        self,
        similarity: Similarity = "dot",
        label_smoothing: Annealable = 0.0,
        tile_size: int | None = None,
        unlabelled: int | None = None,
        name: str = "n_pairs",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            label_smoothing=annealed(label_smoothing, validate_share, "label_smoothing"),
            tile_size=validate_tile_size(tile_size, similarity),
            unlabelled=validate_unlabelled(unlabelled),
        )
