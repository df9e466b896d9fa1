"""The cross-entropy that picks each anchor's positives out of its candidates, dense or in tiles.

With logits `l_ij = scale * x_i . y_j`, a mask of positives and a mask of those in the denominator,
all that the softmax losses need of the matrix are three numbers an anchor:

    lse_i       log sum_{j in denominator} exp(l_ij)
    positive_i  mean_{j in positives} l_ij
    average_i   mean_{j in denominator} l_ij                   (for label smoothing)

The tiled form holds some rows of the matrix at a time and computes them anew for the gradient: 4
products of matrices in place of 3, in memory that grows with the batch and not with its square.
"""

import math
from typing import Any, NamedTuple

from keras import ops

from keras_jointloss._math import (
    divide_or_0,
    dot_matrix,
    logsumexp_where,
    matrix_of_prepared,
    matrix_product,
    paired_similarity,
    upstream_of,
)
from keras_jointloss.losses._pairs import Roles, as_views, mean_of_views, remembered, samples_of
from keras_jointloss.losses._tiles import choose, for_rows, put_rows

#: Up to which |logit| the exponentials in the sums over rows and over columns may be the same
#: ones, and yet none is lost in float32: exp(-2 * 40) is still a normal number.
_NARROW = 40.0


def cross_entropy(
    roles: Roles,
    scale,
    similarity="cosine",
    label_smoothing=0.0,
    tile_size=None,
    own_positive=None,
    both_ways=False,
):
    """Returns the loss of each anchor, `lse - positive` without label smoothing.

    Args:
        roles: Who is what to whom. Cosines are the dot products of what it holds.
        scale: By what similarities are multiplied, a scalar.
        similarity: `"cosine"`, `"dot"` or `"euclidean"`.
        label_smoothing: The share of the target that all in the denominator have alike.
        tile_size: As in `choose`.
        own_positive: `(anchors,)`, the mean similarity of the positives where that is known
            without the matrix.
        both_ways: Whether the candidates, too, are anchors, and look for theirs.

    Returns:
        `(anchors,)`, or `(2, anchors)` if `both_ways`. 0 for an anchor without a positive or
        without a denominator.
    """
    x, y = roles.anchors.embeddings, roles.candidates.embeddings
    matrix = _Matrix(roles, similarity, own_positive is None, label_smoothing > 0, both_ways)
    scale = ops.convert_to_tensor(scale, dtype=x.dtype)
    statistics = choose(
        lambda: matrix.dense(x, y, scale),
        lambda tile_size: matrix.tiled(x, y, scale, tile_size),
        x,
        y,
        math.inf if similarity == "euclidean" else tile_size,
    )  # (directions, 4, anchors)
    lse, positive, average, is_defined = (statistics[:, i] for i in range(4))
    if own_positive is not None:
        positive = scale * own_positive
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
    own_positive = None
    if same_label != "positive":
        others = [
            sum(
                paired_similarity(views[:, i], views[:, j], similarity)
                for j in range(count)
                if j != i
            )
            for i in range(count)
        ]
        own_positive = ops.reshape(ops.stack(others, axis=1), (-1,)) / (count - 1)
    roles = Roles(anchors, candidates, same_label, True, without_positives)
    scale = 1.0 / temperature
    losses = cross_entropy(roles, scale, similarity, label_smoothing, tile_size, own_positive)
    return mean_of_views(losses, count, valid)


class _Matrix(NamedTuple):
    """The logits of anchors, its rows, and candidates, its columns.

    `dense` and `tiled` return lse, positive, average and, as 1 or 0, whether these are defined, for
    rows and, with `both_ways`, columns: `(1 or 2, 4, anchors)`.
    """

    roles: Roles
    similarity: str
    needs_positive: bool
    needs_average: bool
    both_ways: bool

    def masks(self, rows):
        """Returns the masks of positives and denominators, `None` if these are not needed."""
        if self.roles.trivial and not self.needs_positive:
            return None, None
        return self.roles.masks(rows)

    def totals(self, logits, positive, denominator, axis, weights=None):
        """Returns sums over positives and denominator of the logits and of 1, `(4, others)`."""
        weights = ops.ones_like(logits[:, 0]) if weights is None else weights
        weights = ops.broadcast_to(weights[:, None], ops.shape(logits))
        nothing = ops.sum(ops.zeros_like(logits[:1] if axis == 0 else logits[:, :1]), axis=axis)

        def total(mask, values):
            return ops.sum(values if mask is None else ops.where(mask, values, 0), axis=axis)

        return ops.stack(
            [
                total(positive, logits * weights) if self.needs_positive else nothing,
                total(positive, weights) if self.needs_positive else nothing + 1,
                total(denominator, logits * weights) if self.needs_average else nothing,
                nothing + 1
                if denominator is None and not self.needs_average
                else total(denominator, weights),
            ]
        )

    def statistics(self, lse, totals):
        """Returns lse, positive, average and whether these are defined, `(4, others)`."""
        is_defined = ops.logical_and(totals[1] > 0, totals[3] > 0)
        return ops.stack(
            [
                lse,
                divide_or_0(totals[0], totals[1]),
                divide_or_0(totals[2], totals[3]),
                ops.cast(is_defined, lse.dtype),
            ]
        )

    def dense(self, x, y, scale):
        logits = scale * matrix_of_prepared(x, y, self.similarity)
        positive, denominator = self.masks(ops.arange(ops.shape(x)[0], dtype="int32"))
        result = []
        for axis in (1, 0) if self.both_ways else (1,):
            lse = (
                ops.logsumexp(logits, axis=axis)
                if denominator is None
                else logsumexp_where(logits, denominator, axis)
            )
            result.append(self.statistics(lse, self.totals(logits, positive, denominator, axis)))
        return ops.stack(result)

    def tiled(self, x, y, scale, tile_size):
        return ops.custom_gradient(lambda x, y, scale: self._tiled(x, y, scale, tile_size))(
            x, y, scale
        )

    def _tiled(self, x, y, scale, tile_size):
        count = ops.shape(x)[0]
        # No logit is larger.
        bound = ops.abs(scale) * ops.sqrt(
            ops.max(ops.sum(ops.square(x), axis=1)) * ops.max(ops.sum(ops.square(y), axis=1))
        )
        is_narrow = bound <= _NARROW

        def tile(rows):
            x_tile = ops.take(x, rows, axis=0)
            return (x_tile, dot_matrix(scale * x_tile, y), *self.masks(rows))

        def where(mask, values):
            return values if mask is None else ops.where(mask, values, 0)

        def forward(rows, fresh, lse, totals, column_shift, column_sum, column_totals):
            _, logits, positive, denominator = tile(rows)

            def narrow():
                exponentials = where(denominator, ops.exp(logits - bound))
                row_lse = _log(ops.sum(exponentials, axis=1), bound)
                if not self.both_ways:
                    return row_lse, column_shift, column_sum
                total = ops.einsum("i,ij->j", fresh, exponentials)
                return row_lse, column_shift, column_sum + total

            def wide():
                if denominator is None:
                    row_lse = ops.logsumexp(logits, axis=1)
                else:
                    row_lse = logsumexp_where(logits, denominator, 1)
                if not self.both_ways:
                    return row_lse, column_shift, column_sum
                allowed = logits if denominator is None else ops.where(denominator, logits, -bound)
                shift = ops.maximum(column_shift, ops.max(allowed, axis=0))
                exponentials = where(denominator, ops.exp(allowed - shift))
                total = ops.einsum("i,ij->j", fresh, exponentials)
                return row_lse, shift, column_sum * ops.exp(column_shift - shift) + total

            row_lse, column_shift, column_sum = ops.cond(is_narrow, narrow, wide)
            row_totals = self.totals(logits, positive, denominator, 1)
            totals = put_rows(totals, rows, ops.transpose(row_totals))
            if self.both_ways:
                column_totals += self.totals(logits, positive, denominator, 0, fresh)
            return put_rows(lse, rows, row_lse), totals, column_shift, column_sum, column_totals

        zeros = ops.zeros_like(y[:, 0])
        carry = (
            ops.zeros_like(x[:, 0]),
            ops.zeros((count, 4), dtype=x.dtype),
            zeros + ops.where(is_narrow, bound, -bound),
            zeros,
            ops.stack([zeros] * 4),
        )
        lse, totals, column_shift, column_sum, column_totals = for_rows(
            count, tile_size, forward, carry
        )
        totals = ops.transpose(totals)
        result = [self.statistics(lse, totals)]
        column_lse = _log(column_sum, column_shift)
        if self.both_ways:
            result.append(self.statistics(column_lse, column_totals))

        def gradient(*arguments, upstream=None):
            upstream = upstream_of(arguments, upstream)
            row = _Upstream.of(upstream[0], totals)
            column: Any = _Upstream.of(upstream[1], column_totals) if self.both_ways else None

            def backward(rows, fresh, x_gradient, y_gradient, scale_gradient):
                x_tile, logits, positive, denominator = tile(rows)
                row_lse = ops.take(lse, rows, axis=0)[:, None]
                mine = _Upstream(*(ops.take(values, rows, axis=0)[:, None] for values in row))

                def narrow():
                    factor = mine.lse * ops.exp(bound - row_lse)
                    if self.both_ways:
                        factor = factor + column.lse * ops.exp(bound - column_lse)
                    return ops.exp(logits - bound) * factor

                def wide():
                    result = mine.lse * ops.exp(logits - row_lse)
                    if self.both_ways:
                        result = result + column.lse * ops.exp(logits - column_lse)
                    return result

                slope = ops.cond(is_narrow, narrow, wide)
                if self.needs_average:
                    slope = slope + mine.average + (column.average if self.both_ways else 0)
                slope = where(denominator, slope)
                if self.needs_positive:
                    share = mine.positive + (column.positive if self.both_ways else 0)
                    slope = slope + ops.where(positive, share, 0)
                towards = matrix_product(slope, y)
                return (
                    put_rows(x_gradient, rows, scale * towards),
                    y_gradient
                    + matrix_product(ops.transpose(slope), scale * fresh[:, None] * x_tile),
                    scale_gradient + ops.sum(fresh * ops.sum(x_tile * towards, axis=1)),
                )

            carry = (ops.zeros_like(x), ops.zeros_like(y), ops.zeros_like(scale))
            return for_rows(count, tile_size, backward, carry)

        return ops.stack(result), gradient


class _Upstream(NamedTuple):
    """The gradients with respect to the statistics, the means' divided by what they are over."""

    lse: Any
    positive: Any
    average: Any

    @classmethod
    def of(cls, upstream, totals):
        return cls(
            upstream[0],
            divide_or_0(upstream[1], totals[1]),
            divide_or_0(upstream[2], totals[3]),
        )


def _log(total, shift):
    """Returns `log(total) + shift`, 0 where the sum is empty."""
    is_empty = total <= 0
    return ops.where(is_empty, 0, ops.log(ops.where(is_empty, 1, total)) + shift)
