"""Decoupled contrastive loss: NT-Xent without the positives in the denominator."""

import keras

from keras_jointloss._core.batch import Items, validate_unlabelled
from keras_jointloss._core.types import (
    Annealable,
    DType,
    Labels,
    Mask,
    Reduction,
    Sharing,
    Similarity,
    Tensor,
)
from keras_jointloss._core.validation import validate_choice
from keras_jointloss.losses._pairs import SAME_LABEL, Memory
from keras_jointloss.losses._softmax import SoftmaxLoss, cross_entropy_among_views


def decoupled_contrastive(
    views: Tensor,
    labels: Labels = None,
    valid: Mask = None,
    temperature: float | Tensor = 0.1,
    similarity: Similarity = "cosine",
    same_label: Sharing = None,
    tile_size: int | None = None,
    memory: Memory | None = None,
    items: Items | None = None,
) -> Tensor:
    """Returns the loss of items, `(batch,)`. See `DecoupledContrastive` for the other arguments.

    Args:
        views: `(batch, views, dim)`.
        labels: `(batch,)` or `(batch, classes)`. Used with `same_label` only.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        temperature: A float or a scalar tensor, > 0.
        memory: A `Memory` of earlier items as additional candidates, or `None`.
        items: The `Items` whose losses to return; `None` for all.
    """
    options = temperature, similarity, same_label, 0.0, tile_size, memory
    return cross_entropy_among_views(
        views, labels, valid, *options, without_positives=True, items=items
    )


@keras.saving.register_keras_serializable(package="keras_jointloss")
class DecoupledContrastive(SoftmaxLoss):
    """Contrastive loss whose denominator contains only negatives.

    Every view `x_i` of every item is an anchor, with similarities `s_ij` to the other views and
    temperature `t`:

        loss_i = LSE_{j in N(i)}(s_ij / t) - mean_{p in P(i)} s_ip / t

    where `P(i)` are the other views of the anchor's item, `N(i)` the views of the other items and
    `LSE` is the logarithm of the sum of exponentials. An anchor without negatives, as in a batch of
    1, has loss 0. The loss can be negative.

    Args:
        temperature: The temperature `t` > 0 that divides the similarities, or a schedule of it.
        similarity: `"cosine"`, `"dot"` (the dot product) or `"euclidean"` (minus the distance).
            The cosine of a zero vector with any vector is 0.
        same_label: How to treat items that share a label, or an id, in `y_true`: with
            `"positive"`, their views are positives of each other; with `"ignore"`, they are not
            negatives of each other. `None` if there are no labels.
        tile_size: The number of views whose similarities are held in memory at a time. Values and
            gradients do not depend on it. `None`: all if there are up to 2048, else 256; on a GPU
            or TPU all if there are up to 5792, else 2**25 divided by their number, at least 256.
        unlabelled: The label that marks items without one, such as -1, or `None`. Requires
            `same_label`. These items are excluded from the batch (as anchors, positives and
            negatives) and have loss 0. Like items of weight 0, they count in the mean over the
            batch.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, views, dim)`, 2 views or more; with `same_label="positive"` also one view
        per item, `(batch, dim)`.
        `y_true`: with `same_label`, as in `SupCon`; otherwise anything with the right batch size.

    Output shape:
        `(batch,)` from `call`, the mean over the views of an item.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Yeh et al., 2022, Decoupled Contrastive Learning

    Example:

    >>> import numpy as np
    >>> a = np.eye(3, dtype="float32")
    >>> loss = DecoupledContrastive(temperature=1.0)
    >>> round(float(loss(np.zeros(3), np.stack([a, a], axis=1))), 4)  # log(4) - 1
    0.3863
    """

    function = staticmethod(decoupled_contrastive)

    def __init__(
        self,
        temperature: Annealable = 0.1,
        similarity: Similarity = "cosine",
        same_label: Sharing = None,
        tile_size: int | None = None,
        unlabelled: int | None = None,
        name: str = "decoupled_contrastive",
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
            same_label=validate_choice(same_label, "same_label", SAME_LABEL),
            unlabelled=validate_unlabelled(unlabelled, same_label),
        )
        self.min_views = 1 if same_label == "positive" else 2
