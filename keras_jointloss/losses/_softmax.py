"""The cross-entropy that picks each anchor's positives out of its candidates, dense or in tiles.

With logits `l_ij = scale * x_i . y_j`, a mask of positives and a mask of those in the denominator,
all that the softmax losses need of the matrix are three numbers an anchor:

    lse_i       log sum_{j in denominator} exp(l_ij)
    positive_i  mean_{j in positives} l_ij
    average_i   mean_{j in denominator} l_ij                   (for label smoothing)

Where an anchor's positives are its own pairs, their logits are picked out of the same product of
matrices as the rest, so that no rounding puts a positive above the log-sum-exp that contains it; a
loss is then never below 0.
"""

import math
from typing import Any, NamedTuple

from keras import ops

from keras_jointloss._math import paired_similarity
from keras_jointloss.losses._pairs import Roles, as_views, mean_of_views, remembered, samples_of
from keras_jointloss.losses._softmax_matrix import Matrix
from keras_jointloss.losses._softmax_tiles import tiled
from keras_jointloss.losses._tiles import choose


class OwnPairs(NamedTuple):
    """The positives of anchors that are the views of their own items.

    Attributes:
        columns: `(anchors, positives)`, int32: their indices among the candidates.
        similarity: `(anchors,)`, their mean similarity, computed from the pairs alone: through it
            flows the gradient.
    """

    columns: Any
    similarity: Any


def own_pairs(views, similarity):
    """Returns the `OwnPairs` where all views are anchors and, as the first candidates, searched."""
    count = views.shape[1]
    others = [[j for j in range(count) if j != i] for i in range(count)]
    items = ops.arange(ops.shape(views)[0], dtype="int32")
    columns = count * items[:, None, None] + ops.convert_to_tensor(others, dtype="int32")
    similarities = [
        sum(paired_similarity(views[:, i], views[:, j], similarity) for j in others[i])
        for i in range(count)
    ]
    return OwnPairs(
        ops.reshape(columns, (-1, count - 1)),
        ops.reshape(ops.stack(similarities, axis=1), (-1,)) / (count - 1),
    )


def cross_entropy(
    roles: Roles,
    scale,
    similarity="cosine",
    label_smoothing=0.0,
    tile_size=None,
    own: OwnPairs | None = None,
    both_ways=False,
):
    """Returns the loss of each anchor, `lse - positive` without label smoothing.

    Args:
        roles: Who is what to whom. Cosines are the dot products of what it holds.
        scale: By what similarities are multiplied, a scalar.
        similarity: `"cosine"`, `"dot"` or `"euclidean"`.
        label_smoothing: The share of the target that all in the denominator have alike.
        tile_size: As in `choose`.
        own: The positives, where it is known without labels which they are.
        both_ways: Whether the candidates, too, are anchors, and look for theirs. Own pairs are
            then those of an anchor and the candidate with the same index.

    Returns:
        `(anchors,)`, or `(2, anchors)` if `both_ways`. 0 for an anchor without a positive or
        without a denominator.
    """
    x, y = roles.anchors.embeddings, roles.candidates.embeddings
    columns = None if own is None else own.columns
    matrix = Matrix(roles, similarity, columns, label_smoothing > 0, both_ways)
    scale = ops.convert_to_tensor(scale, dtype=x.dtype)
    statistics = choose(
        lambda: matrix.dense(x, y, scale),
        lambda tile_size: tiled(matrix, x, y, scale, tile_size),
        x,
        y,
        math.inf if similarity == "euclidean" else tile_size,
    )  # (directions, 4, anchors)
    lse, positive, average, is_defined = (statistics[:, i] for i in range(4))
    if own is not None:
        # The value is that of the matrix, the gradient that of the pairs alone.
        paired = scale * own.similarity
        positive = paired + ops.stop_gradient(positive - paired)
    target = (1 - label_smoothing) * positive + label_smoothing * average
    losses = ops.where(is_defined > 0.5, lse - target, 0)
    return losses if both_ways else losses[0]


def cross_entropy_among_views(
    views,
    labels,
    valid,
    temperature,
    similarity,
    same_label,
    label_smoothing=0.0,
    tile_size=None,
    memory=None,
    without_positives=False,
):
    """Returns the loss of each item whose views all are anchors and candidates: `(batch,)`.

    The arguments are those of `nt_xent`, and whether positives stay out of the denominator.
    """
    views = as_views(views, valid)
    count = views.shape[1]
    anchors = samples_of(views, similarity, None if same_label is None else labels, valid)
    candidates = anchors
    if memory is not None:
        candidates = anchors.join(remembered(memory, similarity))
    own = None if same_label == "positive" else own_pairs(views, similarity)
    roles = Roles(anchors, candidates, same_label, True, without_positives)
    scale = 1.0 / temperature
    losses = cross_entropy(roles, scale, similarity, label_smoothing, tile_size, own)
    return mean_of_views(losses, count, valid)
