"""The cross-entropy that identifies each anchor's positives among its candidates, dense or tiled.

With logits `l_ij = scale * x_i . y_j`, a mask of positives and a mask of the denominator, the
softmax losses need only three numbers per anchor:

    lse_i       log sum_{j in denominator} exp(l_ij)
    positive_i  mean_{j in positives} l_ij
    average_i   mean_{j in denominator} l_ij                   (for label smoothing)

If an anchor's positives are its own pairs, their logits come from the same matrix product as the
rest. Rounding then cannot put a positive above the log-sum-exp that contains it, and such a loss is
never below 0.
"""

import math
from itertools import combinations
from typing import Any, NamedTuple

from keras import ops

from keras_jointloss._core.math import SIMILARITIES, similarity_of_prepared
from keras_jointloss._core.types import Annealable, DType, Reduction, Similarity
from keras_jointloss._core.validation import validate_choice, validate_number
from keras_jointloss.losses._annealing import annealed
from keras_jointloss.losses._candidates import Selection
from keras_jointloss.losses._pairs import (
    Roles,
    as_views,
    item_losses,
    mean_of_views,
    remembered,
    samples_of,
)
from keras_jointloss.losses._softmax_matrix import Matrix
from keras_jointloss.losses._softmax_tiles import tiled
from keras_jointloss.losses._tiles import choose, validate_tile_size
from keras_jointloss.losses.base import ViewsLoss


class SoftmaxLoss(ViewsLoss):
    """Base class of the softmax losses with a temperature."""

    max_views = math.inf
    has_memory = True
    takes_items = True

    def __init__(
        self,
        name: str,
        reduction: Reduction,
        dtype: DType,
        temperature: Annealable,
        similarity: Similarity,
        tile_size: int | None,
        **arguments: Any,
    ):
        super().__init__(
            name,
            reduction,
            dtype,
            temperature=annealed(temperature, validate_number, "temperature", 0, exclusive=True),
            similarity=validate_choice(similarity, "similarity", SIMILARITIES),
            tile_size=validate_tile_size(tile_size, similarity),
            **arguments,
        )


class OwnPairs(NamedTuple):
    """The positives of anchors if they are the other views of the anchors' own items."""

    columns: Any  # `(anchors, positives)`, int32: their indices among the candidates
    #: `(anchors,)`, their mean similarity, computed from the pairs alone. The gradient flows
    #: through it.
    similarity: Any


def own_pairs(anchors, count, similarity, first=0):
    """Returns the `OwnPairs` if all views of some items are anchors and those of all candidates.

    The anchors are `(items * count, dim)`, prepared for the similarity: the views, item by item.
    The first one has an index among the candidates.
    """
    others = [[j for j in range(count) if j != i] for i in range(count)]
    views = ops.unstack(ops.reshape(anchors, (-1, count, anchors.shape[1])), count, axis=1)
    starts = first + count * ops.arange(ops.shape(views[0])[0], dtype="int32")
    columns = starts[:, None, None] + ops.convert_to_tensor(others, dtype="int32")
    paired = {
        pair: similarity_of_prepared(views[pair[0]], views[pair[1]], similarity)
        for pair in combinations(range(count), 2)
    }
    means = [
        sum(paired[min(i, j), max(i, j)] for j in others[i]) / (count - 1) for i in range(count)
    ]
    return OwnPairs(
        ops.reshape(columns, (-1, count - 1)), ops.reshape(ops.stack(means, axis=1), (-1,))
    )


class Statistics(NamedTuple):
    """What a cross-entropy needs of the logits of anchors, each `(anchors,)`."""

    lse: Any
    positive: Any
    average: Any
    is_defined: Any  # False for an anchor without a positive or without a denominator

    def losses(self, label_smoothing=0.0):
        """Returns the loss of each anchor, `lse - positive` without label smoothing, or 0."""
        target = (1 - label_smoothing) * self.positive + label_smoothing * self.average
        return ops.where(self.is_defined, self.lse - target, 0)


def cross_entropy(roles: Roles, scale, similarity, label_smoothing=0.0, tile_size=None, own=None):
    """Returns the loss of each anchor. See `statistics` for the arguments."""
    of_rows = statistics(roles, scale, similarity, label_smoothing, tile_size, own)[0]
    return of_rows.losses(label_smoothing)


def statistics(
    roles: Roles,
    scale,
    similarity="cosine",
    label_smoothing=0.0,
    tile_size=None,
    own: OwnPairs | None = None,
    both_ways=False,
    selection: Selection | None = None,
):
    """Returns the `Statistics` of the anchors in a list.

    If the candidates serve as anchors, too, theirs follow: an own pair is then an anchor and the
    candidate with the same index.

    Args:
        roles: Anchors, candidates and their roles. Dot products of the embeddings are the cosines.
        scale: The factor that multiplies the similarities, a scalar.
        similarity: `"cosine"`, `"dot"` or `"euclidean"`.
        label_smoothing: The share of the target spread evenly over the denominator.
        tile_size: A number of anchors, or `None`, as in `choose`.
        own: The positives, if they are known without labels.
        both_ways: Whether the candidates serve as anchors, too.
        selection: The choice among the candidates, or `None`.
    """
    x, y = roles.anchors.embeddings, roles.candidates.embeddings
    columns = None if own is None else own.columns
    needs_average = not isinstance(label_smoothing, float | int) or label_smoothing > 0
    matrix = Matrix(roles, similarity, columns, needs_average, both_ways, selection)
    scale = ops.convert_to_tensor(scale, dtype=x.dtype)
    found = choose(
        lambda: matrix.dense(x, y, scale),
        lambda tile_size: tiled(matrix, x, y, scale, tile_size),
        x,
        y,
        math.inf if similarity == "euclidean" else tile_size,
    )  # (directions, 4, anchors)
    lse, positive, average, is_defined = (found[:, i] for i in range(4))
    if own is not None:
        # The value comes from the matrix, the gradient from the pairs alone.
        paired = scale * own.similarity
        positive = paired + ops.stop_gradient(positive - paired)
    columns = lse, positive, average, is_defined > 0.5
    return [Statistics(*(x[i] for x in columns)) for i in range(1 + both_ways)]


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
    items=None,
):
    """Returns the loss of each item if all views are anchors and candidates: `(batch,)`.

    The arguments are those of `nt_xent`, and whether to exclude positives from the denominator.
    """
    views = as_views(views, valid)
    count = views.shape[1]
    samples = samples_of(views, similarity, None if same_label is None else labels, valid)
    candidates = samples
    if memory is not None:
        candidates = samples.join(remembered(memory, similarity))
    anchors = samples.of(items, count)
    first = 0 if items is None else count * items.start
    own = None
    if same_label != "positive":
        own = own_pairs(anchors.embeddings, count, similarity, first)
    roles = Roles(anchors, candidates, same_label, True, without_positives, first)
    scale = 1.0 / temperature
    losses = cross_entropy(roles, scale, similarity, label_smoothing, tile_size, own)
    return item_losses(mean_of_views(losses, count), views, valid, items, memory)
