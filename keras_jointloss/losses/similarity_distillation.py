"""Similarity distillation: learns which items a teacher finds similar."""

import keras
from keras import ops

from keras_jointloss._core.batch import Items, rows_of
from keras_jointloss._core.math import SIMILARITIES, logsumexp_where, matrix_of_prepared, prepare
from keras_jointloss._core.types import (
    Annealable,
    DType,
    Labels,
    Mask,
    Reduction,
    Similarity,
    Tensor,
)
from keras_jointloss._core.validation import validate_bool, validate_choice, validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._pairs import as_views, item_losses
from keras_jointloss.losses.base import ViewsLoss


def similarity_distillation(
    views: Tensor,
    labels: Labels = None,
    valid: Mask = None,
    temperature: float | Tensor = 0.07,
    teacher_temperature: float | Tensor = 0.07,
    similarity: Similarity = "cosine",
    symmetric: bool = True,
    items: Items | None = None,
) -> Tensor:
    """Returns the loss of each item, `(batch,)`.

    See `SimilarityDistillation` for the other arguments.

    Args:
        views: `(batch, 4, dim)`: both views of the student and those of the teacher.
        labels: Not used.
        valid: `(batch,)`, bool: which items to include. `None` for all.
        items: The `Items` whose losses to return; `None` for all.
    """
    views = as_views(views, valid)
    a, b, teacher_a, teacher_b = ops.unstack(prepare(views, similarity), axis=1)
    teacher_a, teacher_b = ops.stop_gradient(teacher_a), ops.stop_gradient(teacher_b)
    allowed = (ops.ones_like(a[:, 0], dtype="bool") if valid is None else valid)[None, :]

    def log_softmax(pair, temperature):
        anchors, candidates = rows_of(pair[0], items), pair[1]
        logits = matrix_of_prepared(anchors, candidates, similarity) / temperature
        return logits - logsumexp_where(logits, allowed, 1)[:, None]

    def divergences(student, teacher):
        target, found = log_softmax(teacher, teacher_temperature), log_softmax(student, temperature)
        return ops.sum(ops.where(allowed, ops.exp(target) * (target - found), 0), axis=1)

    losses = divergences((a, b), (teacher_a, teacher_b))
    if symmetric:
        losses = (losses + divergences((b, a), (teacher_b, teacher_a))) / 2
    return item_losses(losses, views, valid, items)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SimilarityDistillation(ViewsLoss):
    """Similarity distillation: the divergence of the student's similarities from the teacher's.

    The views of an item are two embeddings `a` and `b` of the student, such as of an image and its
    caption, and those of the teacher, `u` and `v`. With the similarity `s`, the temperature `t` and
    that of the teacher, `T`:

        p_i = softmax_j( s(u_i, v_j) / T )        q_i = softmax_j( s(a_i, b_j) / t )

        loss_i = sum_j p_ij (log p_ij - log q_ij)

    and, symmetric, the mean of it and of the same with `a` and `b`, `u` and `v` exchanged. No
    gradient flows to the teacher. Other items are no longer all equally wrong, as in `InfoNCE`:
    the student learns how wrong the teacher finds each of them. open_clip has the cross-entropy
    in place of the divergence, which differs by the entropy of `p`, and has the same gradient.

    The embeddings of the teacher may have another dimension than those of the student: zeros at
    the end of the shorter ones change no similarity. `ContrastiveTerm` pads them itself; for an
    output, `ops.pad` them before the stack. The batch needs memory for `batch^2` numbers.

    Args:
        temperature: The temperature `t`, > 0, or a schedule of it. `ContrastiveTerm` can learn it.
        teacher_temperature: The temperature `T`, > 0, such as the one that the teacher was trained
            with, or a schedule of it.
        similarity: `"cosine"`, `"dot"` or `"euclidean"` (minus the distance).
        symmetric: Whether to average over both directions, from `a` to `b` and from `b` to `a`.
        name, reduction, dtype: As in `keras.losses.Loss`.

    Input shape:
        `y_pred`: `(batch, 4, dim)`: `a`, `b`, `u` and `v`. `y_true` is not used: pass anything with
        the right batch size.

    Output shape:
        `(batch,)` from `call`.

    Raises:
        ValueError: If an argument is invalid or an input has the wrong shape.

    References:
        - Hinton, Vinyals, Dean, 2015, Distilling the Knowledge in a Neural Network
        - Fang et al., 2021, SEED: Self-supervised Distillation for Visual Representation

    Example:

    >>> import numpy as np
    >>> eye, ones = np.eye(2), np.ones((2, 2))
    >>> loss = SimilarityDistillation(temperature=1.0, teacher_temperature=1.0)
    >>> float(loss(np.zeros(2), np.stack([eye, eye, eye, eye], axis=1)))
    0.0
    >>> round(float(loss(np.zeros(2), np.stack([eye, eye, ones, ones], axis=1))), 4)
    0.1201
    """

    function = staticmethod(similarity_distillation)
    min_views = 4
    max_views = 4
    takes_items = True
    dims_may_differ = True

    def __init__(
        self,
        temperature: Annealable = 0.07,
        teacher_temperature: Annealable = 0.07,
        similarity: Similarity = "cosine",
        symmetric: bool = True,
        name: str = "similarity_distillation",
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            temperature=annealed(temperature, validate_number, "temperature", 0, exclusive=True),
            teacher_temperature=annealed(
                teacher_temperature, validate_number, "teacher_temperature", 0, exclusive=True
            ),
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            symmetric=validate_bool(symmetric, "symmetric"),
        )
