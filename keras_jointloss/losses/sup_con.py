"""Supervised contrastive loss: NT-Xent whose positives are all views of the class."""

import keras

from keras_jointloss._core.batch import Items, validate_unlabelled
from keras_jointloss._core.types import Annealable, DType, Mask, Reduction, Similarity, Tensor
from keras_jointloss._core.validation import validate_share
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._pairs import Memory
from keras_jointloss.losses._softmax import SoftmaxLoss, cross_entropy_among_views


def sup_con(
    views: Tensor,
    labels: Tensor,
    valid: Mask = None,
    temperature: float | Tensor = 0.07,
    similarity: Similarity = "cosine",
    label_smoothing: float | Tensor = 0.0,
    tile_size: int | None = None,
    memory: Memory | None = None,
    items: Items | None = None,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`. See `SupCon` for the other arguments.

    Args:
        views: `(batch, views, dim)`.
        labels: `(batch,)` or `(batch, classes)`.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        temperature: A float or a scalar tensor, > 0.
        memory: A `Memory` of earlier items as additional candidates, or `None`.
        items: The `Items` whose losses to return; `None` for all.
    """
    options = temperature, similarity, "positive", label_smoothing, tile_size, memory
    return cross_entropy_among_views(views, labels, valid, *options, items=items)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SupCon(SoftmaxLoss):
    """Supervised contrastive loss, the form `L_out` of the paper.

    Every view `x_i` of every item is an anchor, with similarities `s_ij` to the other views and
    temperature `t`:

        loss_i = LSE_{j != i}(s_ij / t) - mean_{p in P(i)} s_ip / t

    where `P(i)` are the other views whose items share a label with the anchor's, including its own
    item, and `LSE` is the logarithm of the sum of exponentials. An anchor without positives has
    loss 0.

    Args:
        temperature: The temperature `t` > 0 that divides the similarities, or a schedule of it.
        similarity: `"cosine"`, `"dot"` (the dot product) or `"euclidean"` (minus the distance).
            The cosine of a zero vector with any vector is 0.
        label_smoothing: The share of the target, in [0, 1), spread evenly over all candidates, or a
            schedule of it.
        tile_size: The number of views whose similarities are held in memory at a time. Values and
            gradients do not depend on it. `None`: all if there are up to 2048, else 256; on a GPU
            or TPU all if there are up to 5792, else 2**25 divided by their number, at least 256.
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
        - Khosla et al., 2020, Supervised Contrastive Learning

    Example:

    >>> import numpy as np
    >>> a = np.eye(3, dtype="float32")
    >>> loss = SupCon(temperature=1.0)
    >>> round(float(loss(np.arange(3), np.stack([a, a], axis=1))), 4)  # log(e + 4) - 1
    0.9048
    """

    function = staticmethod(sup_con)
    label_kind = "class"
    min_views = 1

    def __init__(
        self,
        temperature: Annealable = 0.07,
        similarity: Similarity = "cosine",
        label_smoothing: Annealable = 0.0,
        tile_size: int | None = None,
        unlabelled: int | None = None,
        name: str = "sup_con",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            temperature,
            similarity,
            tile_size,
            label_smoothing=annealed(label_smoothing, validate_share, "label_smoothing"),
            unlabelled=validate_unlabelled(unlabelled),
        )
