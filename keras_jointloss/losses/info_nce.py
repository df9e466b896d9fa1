"""InfoNCE: each item identifies its pair among all pairs of the batch."""

from typing import Any, Literal, TypeAlias

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
from keras_jointloss._core.validation import (
    invalid,
    validate_bool,
    validate_choice,
    validate_count,
    validate_number,
    validate_share,
)
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._candidates import STRATEGIES, selection_of
from keras_jointloss.losses._directions import (
    PARTITIONS,
    compare,
    loss_of_directions,
    validate_directions,
)
from keras_jointloss.losses._pairs import (
    NEGATIVE,
    SAME_LABEL,
    Memory,
    as_views,
    item_losses,
    remembered,
    samples_of,
)
from keras_jointloss.losses._softmax import OwnPairs, SoftmaxLoss

#: In which directions to compare the views; `None`: as `symmetric` says.
Directions: TypeAlias = Literal["both", "first", "within"] | None


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
    num_hard_negatives: int | None = None,
    false_negative_margin: float | None = None,
    false_negative_margin_strategy: Literal["absolute", "relative"] = "absolute",
    hardness: float | Tensor = 0.0,
    directions: Directions = None,
    partition: Literal["per_direction", "joint"] = "per_direction",
    memory: Memory | None = None,
    items: Items | None = None,
    sampling_probability: Tensor | None = None,
    guide: Tensor | None = None,
) -> Tensor:
    """Returns the InfoNCE loss of each item, `(batch,)`. See `InfoNCE` for the other arguments.

    Args:
        views: `(batch, views, dim)`.
        labels: `(batch,)` or `(batch, classes)`. Used with `same_label` only.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        temperature: A float or a scalar tensor, > 0.
        memory: A `Memory` of earlier items as additional candidates, or `None`.
        items: The `Items` whose losses to return; `None` for all.
        sampling_probability: `(batch,)`, > 0, or `None`: see the call arguments of `InfoNCE`.
        guide: `(batch, views, guide_dim)`, or `None`.
    """
    if guide is not None and false_negative_margin is None:
        raise invalid("guide", "None, since false_negative_margin=None", received="a guide")
    views = as_views(views, valid)
    labels = None if same_label is None else labels
    views_of_all = ops.split(views, [1, 2], axis=1)
    guides = [None] * 3 if guide is None else ops.split(guide, [1, 2], axis=1)

    def samples(i, item=None):
        others = labels, valid, item, sampling_probability, guides[i]
        return samples_of(views_of_all[i], similarity, *others)

    a, b = samples(0), samples(1)
    own_a, own_b = a.of(items), b.of(items)
    selection = selection_of(
        own_a,
        own_b,
        similarity,
        false_negative_margin,
        false_negative_margin_strategy,
        num_hard_negatives,
        hardness,
    )
    options: dict[str, Any] = {
        "scale": 1.0 / temperature,
        "similarity": similarity,
        "label_smoothing": label_smoothing,
        "tile_size": tile_size,
        "selection": selection,
    }
    own = None
    if same_label != "positive":
        columns = ops.arange(ops.shape(views)[0], dtype="int32")[:, None]
        paired = similarity_of_prepared(own_a.embeddings, own_b.embeddings, similarity)
        own = OwnPairs(rows_of(columns, items), paired)
    hard = samples(2, NEGATIVE) if views.shape[1] > 2 else None
    held = None
    if memory is not None:
        held = [remembered(memory, similarity, slice(i, i + 1)) for i in (0, 1)]
    directions = directions or ("both" if symmetric else "first")
    anchors = own_a, own_b
    compared = compare(a, b, anchors, hard, held, items, directions, same_label, own, options)
    loss = loss_of_directions(compared, label_smoothing, partition)
    if guide is not None:
        loss = item_losses(loss, as_views(guide, valid), None, items)
    return item_losses(loss, views, valid, items, memory)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class InfoNCE(SoftmaxLoss):
    """Contrastive loss that identifies each item's other view among those of the whole batch.

    With embeddings `a` and `b` of the two views, similarities `s_ij = s(a_i, b_j)` and temperature
    `t`:

        loss_i = 1/2 [ LSE_j(s_ij / t) - s_ii / t  +  LSE_j(s_ji / t) - s_ii / t ]

    where `LSE` is the logarithm of the sum of exponentials. With `symmetric=False`, the loss is the
    first two terms alone, without the 1/2. The negatives of an item are the other items of the
    batch. The options that choose negatives and weight them act in this order:
    `false_negative_margin`, `num_hard_negatives`, `hardness`. They have no gradient.

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
        num_hard_negatives: The number of negatives that remain for each anchor, those with the
            largest logits. `None`: all.
        false_negative_margin: A margin `m`, 0 or more, that leaves out candidates `j` that are
            likely to be positives: those with `s_ij > s_ii - m`, by the cosines of the `guide` if
            there is one. `None`: none.
        false_negative_margin_strategy: `"absolute"`, or `"relative"` for
            `s_ij > s_ii - m |s_ii|`.
        hardness: A number `beta`, 0 or more. Each of the `n` negatives of an anchor weighs
            `n exp(beta s_ij) / sum_j exp(beta s_ij)` in the sum of exponentials. Or a schedule.
        directions: Overrides `symmetric`: `"both"`, `"first"`, or `"within"` for both, with the
            other items' views of the anchor's own kind as further candidates, as in `NTXent`.
            `None`: as `symmetric` says.
        partition: `"per_direction"` for the mean of the losses of the two directions; `"joint"` for
            one sum of exponentials over the candidates of both. It contains the positive twice, so
            that the loss is at least log 2.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Call arguments:
        sampling_probability: `(batch,)`, > 0, in the call of `ContrastiveTerm`, or of `values`: the
            probability `q_j` of each item to be in a batch, up to a factor. Popular items are
            negatives more often; with logits `s_ij / t - log q_j` the loss estimates that with all
            items as candidates. For the loss of an output, let the model append 1 to the
            (normalized) first view and `-t log q` to the second one, and take `similarity="dot"`
            and `symmetric=False`.
        guide: Embeddings of the same views by another model, likewise, in `values` stacked as the
            views: see `false_negative_margin`.

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
        - Yi et al., 2019, Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
          Recommendations (`sampling_probability`)
        - Robinson et al., 2021, Contrastive Learning with Hard Negative Samples (`hardness`; there
          `beta` multiplies `s / t`)
        - Moreira et al., 2024, NV-Retriever, and Solatorio, 2024, GISTEmbed
          (`false_negative_margin`, and with a guide)
        - Li et al., 2023, Towards General Text Embeddings with Multi-stage Contrastive Learning
          (`directions="within"` with `partition="joint"`)

    Example:

    >>> import numpy as np
    >>> a = np.eye(3, dtype="float32")
    >>> views = np.stack([a, a], axis=1)
    >>> loss = InfoNCE(temperature=1.0)
    >>> round(float(loss(np.zeros(3), views)), 4)  # log(e + 2) - 1
    0.5514
    """

    function = staticmethod(info_nce)
    call_arguments = ("sampling_probability", "guide")

    def __init__(
        self,
        temperature: Annealable = 0.07,
        similarity: Similarity = "cosine",
        symmetric: bool = True,
        same_label: Sharing = None,
        label_smoothing: Annealable = 0.0,
        tile_size: int | None = None,
        unlabelled: int | None = None,
        num_hard_negatives: int | None = None,
        false_negative_margin: float | None = None,
        false_negative_margin_strategy: Literal["absolute", "relative"] = "absolute",
        hardness: Annealable = 0.0,
        directions: Directions = None,
        partition: Literal["per_direction", "joint"] = "per_direction",
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
            num_hard_negatives=None
            if num_hard_negatives is None
            else validate_count(num_hard_negatives, "num_hard_negatives"),
            false_negative_margin=None
            if false_negative_margin is None
            else validate_number(false_negative_margin, "false_negative_margin", 0),
            false_negative_margin_strategy=validate_choice(
                false_negative_margin_strategy, "false_negative_margin_strategy", STRATEGIES
            ),
            hardness=annealed(hardness, validate_number, "hardness", 0),
            directions=validate_directions(directions, symmetric),
            partition=validate_choice(partition, "partition", PARTITIONS),
        )
