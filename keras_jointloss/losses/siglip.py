"""SigLIP: classifies each pair of views independently as matching or not."""

import math

import keras
from keras import ops

from keras_jointloss._core.batch import Items, rows_of, validate_unlabelled
from keras_jointloss._core.math import SIMILARITIES, prepare
from keras_jointloss._core.replicas import Exchange
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
from keras_jointloss._core.validation import validate_choice, validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._pairs import (
    SAME_LABEL,
    Memory,
    Roles,
    Samples,
    as_views,
    item_losses,
    remembered,
    samples_of,
)
from keras_jointloss.losses._sigmoid import exchanged_sigmoid, pairwise_sigmoid
from keras_jointloss.losses._tiles import validate_tile_size
from keras_jointloss.losses.base import LearnedParameter, ViewsLoss


def siglip(
    views: Tensor,
    labels: Labels = None,
    valid: Mask = None,
    temperature: float | Tensor = 0.1,
    bias: float | Tensor = -10.0,
    similarity: Similarity = "cosine",
    same_label: Sharing = None,
    tile_size: int | None = None,
    memory: Memory | None = None,
    items: Items | None = None,
    exchange: Exchange | None = None,
) -> Tensor:
    """Returns the SigLIP loss of each item, `(batch,)`. See `SigLIP` for the other arguments.

    Args:
        views: `(batch, 2, dim)`.
        labels: `(batch,)` or `(batch, classes)`. Used with `same_label` only.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        temperature: A float or a scalar tensor, > 0.
        bias: A float or a scalar tensor.
        memory: A `Memory` of earlier items as additional candidates, or `None`.
        items: The `Items` whose losses to return; `None` for all.
        exchange: The `Exchange` of views with other replicas, or `None`. With it, `views` are those
            of one replica, `labels` and `valid` those of all. Requires that `similarity` is not
            `"euclidean"` and `memory` is `None`.
    """
    labels = None if same_label is None else labels
    if exchange is not None:
        own_valid = rows_of(valid, exchange.own)
        views = as_views(views, own_valid)
        a, b = (prepare(views[:, i], similarity) for i in (0, 1))
        every = Samples(None, ops.arange(exchange.size(), dtype="int32"), labels, valid)
        anchors = every.of(exchange.own)
        of_replicas = [Roles(anchors, every.of(part), same_label) for part in exchange.parts()]
        scale = 1.0 / temperature
        losses = exchanged_sigmoid(a, b, of_replicas, exchange, scale, bias, tile_size)
        return item_losses(losses, views, own_valid)
    views = as_views(views, valid)
    a, b = (samples_of(view, similarity, labels, valid) for view in ops.split(views, 2, axis=1))
    if memory is not None:
        b = b.join(remembered(memory, similarity, slice(1, 2)))
    roles = Roles(a.of(items), b, same_label)
    losses = pairwise_sigmoid(roles, 1.0 / temperature, bias, similarity, tile_size)
    return item_losses(losses, views, valid, items, memory)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SigLIP(ViewsLoss):
    """Sigmoid loss on every pair of a first and a second view in the batch.

    With embeddings `a` and `b` of the two views, similarities `s_ij = s(a_i, b_j)`, temperature `t`
    and bias `b`:

        loss_i = sum_j softplus(-z_ij (s_ij / t + b))        z_ii = 1, else z_ij = -1

    The mean over the batch is the sum over all pairs divided by the batch size, as in the paper.

    `ContrastiveTerm` with `learn_temperature=True` trains `log(1 / t)` and `b`, as the paper does.
    Exclude them from weight decay, as in AdamW:
    `optimizer.exclude_from_weight_decay(var_names=["log_scale", "bias"])`.

    Replicas of a `ContrastiveTerm`, and the devices of `keras.distribution` on JAX, pass on their
    second views, so that none holds those of all at a time, as in section 3.3 of the paper.

    Args:
        temperature: The temperature `t` > 0 that divides the similarities, or a schedule of it.
        bias: The bias `b`, about minus the largest logit, so that the many negatives contribute
            almost no loss at the start.
        similarity: `"cosine"`, `"dot"` (the dot product) or `"euclidean"` (minus the distance).
            The cosine of a zero vector with any vector is 0.
        same_label: How to treat items that share a label, or an id, in `y_true`: with
            `"positive"`, `z_ij` is 1 for them; with `"ignore"`, their pair has no loss. `None` if
            there are no labels.
        tile_size: The number of items whose similarities are held in memory at a time. Values and
            gradients do not depend on it. `None`: all in a batch of up to 2048, else 256; on a GPU
            or TPU all in a batch of up to 5792, else 2**25 divided by the batch size, at least 256.
        unlabelled: The label that marks items without one, such as -1, or `None`. Requires
            `same_label`. These items are excluded from the batch (as anchors, positives and
            negatives) and have loss 0. Like items of weight 0, they count in the mean over the
            batch.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 2, dim)`.
        `y_true`: with `same_label`, as in `SupCon`; otherwise anything with the right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Zhai et al., 2023, Sigmoid Loss for Language Image Pre-Training

    Example:

    >>> import numpy as np
    >>> a = np.eye(3, dtype="float32")
    >>> loss = SigLIP(temperature=1.0, bias=0.0)
    >>> round(float(loss(np.zeros(3), np.stack([a, a], axis=1))), 4)  # log(1 + 1/e) + 2 log(2)
    1.6996
    """

    function = staticmethod(siglip)
    has_memory = True
    takes_items = True

    def __init__(
        self,
        temperature: Annealable = 0.1,
        bias: float = -10.0,
        similarity: Similarity = "cosine",
        same_label: Sharing = None,
        tile_size: int | None = None,
        unlabelled: int | None = None,
        name: str = "siglip",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            temperature=annealed(temperature, validate_number, "temperature", 0, exclusive=True),
            bias=validate_number(bias, "bias"),
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            same_label=validate_choice(same_label, "same_label", SAME_LABEL),
            tile_size=validate_tile_size(tile_size, similarity),
            unlabelled=validate_unlabelled(unlabelled, same_label),
        )

    @property
    def takes_exchange(self) -> bool:
        """Whether the function takes an `exchange`: unless similarities are Euclidean."""
        return self.similarity != "euclidean"

    def learned_parameters(self) -> dict[str, LearnedParameter]:
        """Returns the logarithm of the inverse temperature and the bias, without bounds."""
        log_scale = super().learned_parameters()["log_scale"]
        return {
            "log_scale": LearnedParameter(log_scale.initial, -math.inf, math.inf),
            "bias": LearnedParameter(self.bias, -math.inf, math.inf),
        }
