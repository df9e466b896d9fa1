"""InfoNCE: each item identifies its pair among all pairs of the batch."""

from typing import Any

import keras
from keras import ops

from keras_jointloss._core.batch import Items, rows_of, validate_unlabelled
from keras_jointloss._core.math import similarity_of_prepared
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
from keras_jointloss._core.validation import validate_bool, validate_choice, validate_share
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._pairs import (
    NEGATIVE,
    SAME_LABEL,
    Memory,
    Roles,
    as_views,
    item_losses,
    remembered,
    samples_of,
)
from keras_jointloss.losses._softmax import OwnPairs, SoftmaxLoss, cross_entropy


def info_nce(
    views: Tensor,
    labels: Labels = None,
    valid: Mask = None,
    temperature: float | Tensor = 0.07,
    similarity: Similarity = "cosine",
    symmetric: bool = True,
    same_label: Sharing = None,
    label_smoothing: float | Tensor = 0.0,
    tile_size: int | None = None,
    memory: Memory | None = None,
    items: Items | None = None,
) -> Tensor:
    """Returns the InfoNCE loss of each item, `(batch,)`. See `InfoNCE` for the other arguments.

    Args:
        views: `(batch, views, dim)`.
        labels: `(batch,)` or `(batch, classes)`. Used with `same_label` only.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        temperature: A float or a scalar tensor, > 0.
        memory: A `Memory` of earlier items as additional candidates, or `None`.
        items: The `Items` whose losses to return; `None` for all.
    """
    views = as_views(views, valid)
    labels = None if same_label is None else labels
    first, second, others = ops.split(views, [1, 2], axis=1)
    a, b = (samples_of(view, similarity, labels, valid) for view in (first, second))
    own_a, own_b = a.of(items), b.of(items)
    scale = 1.0 / temperature
    options: dict[str, Any] = {
        "scale": scale,
        "similarity": similarity,
        "label_smoothing": label_smoothing,
        "tile_size": tile_size,
    }
    if same_label != "positive":
        columns = ops.arange(ops.shape(views)[0], dtype="int32")[:, None]
        paired = similarity_of_prepared(own_a.embeddings, own_b.embeddings, similarity)
        options["own"] = OwnPairs(rows_of(columns, items), paired)
    candidates_of_a, candidates_of_b = b, a
    if views.shape[1] > 2:
        hard = samples_of(others, similarity, labels, valid, NEGATIVE)
        candidates_of_a = candidates_of_a.join(hard)
    if memory is not None:
        candidates_of_a = candidates_of_a.join(remembered(memory, similarity, slice(1, 2)))
        candidates_of_b = candidates_of_b.join(remembered(memory, similarity, slice(0, 1)))
    if symmetric and items is None and candidates_of_a is b and candidates_of_b is a:
        # One matrix serves both directions.
        both = cross_entropy(Roles(a, b, same_label), **options, both_ways=True)
        loss = 0.5 * (both[0] + both[1])
    else:
        loss = cross_entropy(Roles(own_a, candidates_of_a, same_label), **options)
        if symmetric:
            other = cross_entropy(Roles(own_b, candidates_of_b, same_label), **options)
            loss = 0.5 * (loss + other)
    return item_losses(loss, views, valid, items, memory)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class InfoNCE(SoftmaxLoss):
    """Contrastive loss that identifies each item's other view among those of the whole batch.

    With embeddings `a` and `b` of the two views, similarities `s_ij = s(a_i, b_j)` and temperature
    `t`:

        loss_i = 1/2 [ LSE_j(s_ij / t) - s_ii / t  +  LSE_j(s_ji / t) - s_ii / t ]

    where `LSE` is the logarithm of the sum of exponentials. With `symmetric=False`, the loss is the
    first two terms alone, without the 1/2. The negatives of an item are the other items of the
    batch.

    `ContrastiveTerm` with `learn_temperature=True` trains `log(1 / t)`. Exclude it from weight
    decay, as in AdamW: `optimizer.exclude_from_weight_decay(var_names=["log_scale"])`.

    Views after the second are hard negatives: those of all items are additional candidates for the
    first view of each item.

    Args:
        temperature: The temperature `t` > 0 that divides the similarities, or a schedule of it.
        similarity: `"cosine"`, `"dot"` (the dot product) or `"euclidean"` (minus the distance).
            The cosine of a zero vector with any vector is 0.
        symmetric: Whether both views serve as anchors (as in CLIP), or only the first.
        same_label: How to treat items that share a label, or an id, in `y_true`: with
            `"positive"`, they are positives of each other, and the mean of the positives' `s / t`
            replaces `s_ii / t`; with `"ignore"`, they are not negatives of each other. `None` if
            there are no labels.
        label_smoothing: The share of the target, in [0, 1), spread evenly over all candidates, or a
            schedule of it.
        tile_size: The number of items whose similarities are held in memory at a time. Values and
            gradients do not depend on it. `None`: all in a batch of up to 2048, else 256; on a GPU
            or TPU all in a batch of up to 5792, else 2**25 divided by the batch size, at least 256.
        unlabelled: The label that marks items without one, such as -1, or `None`. Requires
            `same_label`. These items are excluded from the batch (as anchors, positives and
            negatives) and have loss 0. Like items of weight 0, they count in the mean over the
            batch.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, views, dim)`, 2 views or more. `y_true`: with `same_label`, `(batch,)`,
        `(batch, 1)` or `(batch, classes)` with 1 for each class of an item; otherwise anything with
        the right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - van den Oord et al., 2018, Representation Learning with Contrastive Predictive Coding
        - Radford et al., 2021, Learning Transferable Visual Models From Natural Language
          Supervision (the symmetric form and the learned temperature)

    Example:

    >>> import numpy as np
    >>> a = np.eye(3, dtype="float32")
    >>> views = np.stack([a, a], axis=1)
    >>> loss = InfoNCE(temperature=1.0)
    >>> round(float(loss(np.zeros(3), views)), 4)  # log(e + 2) - 1
    0.5514
    """

    function = staticmethod(info_nce)

    def __init__(
        self,
        temperature: Annealable = 0.07,
        similarity: Similarity = "cosine",
        symmetric: bool = True,
        same_label: Sharing = None,
        label_smoothing: Annealable = 0.0,
        tile_size: int | None = None,
        unlabelled: int | None = None,
        name: str = "info_nce",
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
            symmetric=validate_bool(symmetric, "symmetric"),
            same_label=validate_choice(same_label, "same_label", SAME_LABEL),
            label_smoothing=annealed(label_smoothing, validate_share, "label_smoothing"),
            unlabelled=validate_unlabelled(unlabelled, same_label),
        )
