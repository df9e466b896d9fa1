"""The logit matrix of a softmax loss: its statistics, of the whole matrix or some rows at a time.

The gradient of the latter recomputes the rows: 4 matrix products in place of 3, in memory that
grows with the batch and not with its square.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_jointloss._core.backend import custom_gradient, decided
from keras_jointloss._core.math import (
    divide_or_0,
    dot_matrix,
    logsumexp_where,
    matrix_of_prepared,
    matrix_product,
    max_along,
)
from keras_jointloss.losses._pairs import Roles, for_allowed
from keras_jointloss.losses._tiles import for_rows, put_rows

#: The largest |logit| for which the sums over rows and over columns can share their exponentials
#: without underflow in float32: exp(-2 * 40) is still a normal number.
_NARROW = 40.0


class Matrix(NamedTuple):
    """The logits of anchors (rows) and candidates (columns).

    `dense`, like `tiled`, returns lse, positive, average and whether these are defined (1 or 0),
    for rows and, with `both_ways`, for columns: `(1 or 2, 4, anchors)`.
    """

    roles: Roles
    similarity: str
    #: `(anchors, positives)`, int32, the columns of the positives, or `None` if the masks select
    #: them. With `own`, the mean of the positives is used without its gradient.
    own: Any
    needs_average: bool
    both_ways: bool

    @property
    def needs_positive(self) -> bool:
        """Whether the mask selects the positives."""
        return self.own is None

    def masks(self, rows):
        """Returns the masks of positives and denominators, `None` if they are not needed."""
        if self.roles.trivial and not self.needs_positive:
            return None, None
        return self.roles.masks(rows)

    def own_logits(self, logits, rows):
        """Returns the mean logit of the own pairs in the given rows, 0 if there are none.

        No gradient flows: TensorFlow would add a matrix of zeros to that of the logits.
        """
        if self.own is None:
            return 0
        columns = ops.take(self.own, rows, axis=0)
        own = ops.take_along_axis(ops.stop_gradient(logits), columns, axis=1)
        return ops.sum(own, axis=1) / self.own.shape[1]

    def totals(self, logits, positive, denominator, axis, weights=None, own=0):
        """Returns sums of the logits and of 1 over positives and denominator, `(4, others)`."""
        weights = ops.ones_like(logits[:, 0]) if weights is None else weights
        weights = ops.broadcast_to(weights[:, None], ops.shape(logits))
        nothing = ops.sum(ops.zeros_like(logits[:1] if axis == 0 else logits[:, :1]), axis=axis)

        def total(mask, values):
            return ops.sum(values if mask is None else ops.where(mask, values, 0), axis=axis)

        return ops.stack(
            [
                total(positive, logits * weights) if self.needs_positive else nothing + own,
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
        positive, average = (divide_or_0(totals[i], totals[i + 1]) for i in (0, 2))
        return ops.stack([lse, positive, average, ops.cast(is_defined, lse.dtype)])

    def dense(self, x, y, scale):
        # Scales the vectors, not the logits: a compiler may fuse a product of logits with the
        # difference from their maximum and round only once, which puts that maximum above 0.
        others = scale * y if self.similarity == "euclidean" else y
        logits = matrix_of_prepared(scale * x, others, self.similarity)
        rows = ops.arange(ops.shape(x)[0], dtype="int32")
        positive, denominator = self.masks(rows)
        own = self.own_logits(logits, rows)  # Also for columns that are anchors.
        result = []
        for axis in (1, 0) if self.both_ways else (1,):
            lse = _logsumexp(logits, denominator, axis)
            totals = self.totals(logits, positive, denominator, axis, own=own)
            result.append(self.statistics(lse, totals))
        return ops.stack(result)


def tiled(matrix: Matrix, x, y, scale, tile_size):
    """Computes the same as `matrix.dense(x, y, scale)`, from `tile_size` rows at a time."""

    def compute(x, y, scale):
        tiles = _Tiles.of(matrix, x, y, scale, tile_size)
        sums = tiles.forward()
        return tiles.statistics(sums), lambda upstream: tiles.backward(sums, upstream)

    return custom_gradient(compute, x, y, scale)


class _Sums(NamedTuple):
    """The log-sum-exp and the `Matrix.totals` of rows and of columns."""

    row_lse: Any
    row_totals: Any
    column_lse: Any
    column_totals: Any


class _Upstream(NamedTuple):
    """The gradients with respect to the statistics; those of means are divided by their counts."""

    lse: Any
    positive: Any
    average: Any

    @classmethod
    def of(cls, upstream, totals):
        positive, average = (divide_or_0(upstream[i], totals[j]) for i, j in ((1, 1), (2, 3)))
        return cls(upstream[0], positive, average)

    def of_rows(self, rows):
        """Returns the gradients of the given rows, each `(rows, 1)`."""
        return _Upstream(*(ops.take(values, rows, axis=0)[:, None] for values in self))


class _Tiles(NamedTuple):
    """A logit matrix, held one tile of rows at a time.

    No logit exceeds `bound`. If it `is_narrow`, `exp(logit - bound)` never underflows.
    """

    matrix: Matrix
    x: Any
    y: Any
    scale: Any
    tile_size: int
    bound: Any
    is_narrow: Any

    @classmethod
    def of(cls, matrix, x, y, scale, tile_size):
        squares = [max_along(ops.sum(ops.square(vectors), axis=1), axis=0) for vectors in (x, y)]
        bound = ops.abs(scale) * ops.sqrt(ops.relu(squares[0]) * ops.relu(squares[1]))
        return cls(matrix, x, y, scale, tile_size, bound, decided(bound <= _NARROW))

    def tile(self, rows):
        """Returns the anchors of the given rows, their logits and the two masks."""
        x_tile = ops.take(self.x, rows, axis=0)
        return (x_tile, dot_matrix(self.scale * x_tile, self.y), *self.matrix.masks(rows))

    def forward(self) -> _Sums:
        """Returns the sums over all tiles."""
        both_ways = self.matrix.both_ways

        def add(rows, fresh, lse, totals, shift, total, column_totals):
            _, logits, positive, denominator = self.tile(rows)
            own = self.matrix.own_logits(logits, rows)
            row_totals = self.matrix.totals(logits, positive, denominator, 1, own=own)
            if both_ways:
                column_totals += self.matrix.totals(logits, positive, denominator, 0, fresh)
            row_lse, shift, total = ops.cond(
                self.is_narrow,
                lambda: self._exponentials_narrow(logits, denominator, fresh, shift, total),
                lambda: self._exponentials_wide(logits, denominator, fresh, shift, total),
            )
            return (
                put_rows(lse, rows, row_lse),
                put_rows(totals, rows, ops.transpose(row_totals)),
                shift,
                total,
                column_totals,
            )

        count, zeros = ops.shape(self.x)[0], ops.zeros_like(self.y[:, 0])
        carry = (
            ops.zeros_like(self.x[:, 0]),
            ops.zeros((count, 4), dtype=self.x.dtype),
            zeros + ops.where(self.is_narrow, self.bound, -self.bound),
            zeros,
            ops.stack([zeros] * 4),
        )
        lse, totals, shift, total, column_totals = for_rows(count, self.tile_size, add, carry)
        totals = ops.transpose(totals)
        if both_ways and self.matrix.own is not None:
            # A row and the column with the same index have the same own pair.
            column_totals = ops.concatenate([totals[:2], column_totals[2:]])
        return _Sums(lse, totals, _log(total, shift), column_totals)

    def _exponentials_narrow(self, logits, denominator, fresh, shift, total):
        """Returns the log-sum-exp of the rows and the columns' `shift` and `total` so far."""
        exponentials = for_allowed(denominator, ops.exp(logits - self.bound))
        row_lse = _log(ops.sum(exponentials, axis=1), self.bound)
        if self.matrix.both_ways:
            total = total + ops.einsum("i,ij->j", fresh, exponentials)
        return row_lse, shift, total

    def _exponentials_wide(self, logits, denominator, fresh, shift, total):
        """Computes the same as `_exponentials_narrow`, with a shift for each row and column."""
        row_lse = _logsumexp(logits, denominator, 1)
        if not self.matrix.both_ways:
            return row_lse, shift, total
        allowed = logits if denominator is None else ops.where(denominator, logits, -self.bound)
        new_shift = ops.maximum(shift, ops.max(allowed, axis=0))
        exponentials = for_allowed(denominator, ops.exp(allowed - new_shift))
        added = ops.einsum("i,ij->j", fresh, exponentials)
        return row_lse, new_shift, total * ops.exp(shift - new_shift) + added

    def statistics(self, sums: _Sums):
        """Returns the statistics of the rows and, if they are anchors, of the columns."""
        result = [self.matrix.statistics(sums.row_lse, sums.row_totals)]
        if self.matrix.both_ways:
            result.append(self.matrix.statistics(sums.column_lse, sums.column_totals))
        stacked = ops.stack(result)  # (directions, 4, anchors)
        if self.matrix.roles.without_positives:
            return stacked
        # The log-sum-exp contains the positives: only rounding puts them above it. No gradient
        # flows through here.
        lse = ops.maximum(stacked[:, :1], stacked[:, 1:2])
        return ops.concatenate([lse, stacked[:, 1:]], axis=1)

    def backward(self, sums: _Sums, upstream):
        """Returns the gradients with respect to `x`, `y` and `scale`."""
        matrix = self.matrix
        rows_upstream = _Upstream.of(upstream[0], sums.row_totals)
        column = _Upstream.of(upstream[1], sums.column_totals) if matrix.both_ways else None

        def add(rows, fresh, x_gradient, y_gradient, scale_gradient):
            x_tile, logits, positive, denominator = self.tile(rows)
            row = rows_upstream.of_rows(rows)
            row_lse = ops.take(sums.row_lse, rows, axis=0)[:, None]
            slope = ops.cond(
                self.is_narrow,
                lambda: self._slope_narrow(logits, row, row_lse, column, sums.column_lse),
                lambda: self._slope_wide(logits, row, row_lse, column, sums.column_lse),
            )
            if matrix.needs_average:
                slope = slope + row.average + (0 if column is None else column.average)
            slope = for_allowed(denominator, slope)
            if matrix.needs_positive:
                share = row.positive + (0 if column is None else column.positive)
                slope = slope + ops.where(positive, share, 0)
            towards = matrix_product(slope, self.y)
            scaled = self.scale * fresh[:, None] * x_tile
            return (
                put_rows(x_gradient, rows, self.scale * towards),
                y_gradient + matrix_product(ops.transpose(slope), scaled),
                scale_gradient + ops.sum(fresh * ops.sum(x_tile * towards, axis=1)),
            )

        carry = (ops.zeros_like(self.x), ops.zeros_like(self.y), ops.zeros_like(self.scale))
        return for_rows(ops.shape(self.x)[0], self.tile_size, add, carry)

    def _slope_narrow(self, logits, row, row_lse, column, column_lse):
        """Returns the gradient with respect to the logits through the log-sum-exps."""
        factor = row.lse * ops.exp(self.bound - row_lse)
        if column is not None:
            factor = factor + column.lse * ops.exp(self.bound - column_lse)
        return ops.exp(logits - self.bound) * factor

    def _slope_wide(self, logits, row, row_lse, column, column_lse):
        """Computes the same as `_slope_narrow`, even if `exp(bound)` is too large."""
        result = row.lse * ops.exp(logits - row_lse)
        if column is not None:
            result = result + column.lse * ops.exp(logits - column_lse)
        return result


def _logsumexp(x, mask, axis):
    return ops.logsumexp(x, axis=axis) if mask is None else logsumexp_where(x, mask, axis)


def _log(total, shift):
    """Returns `log(total) + shift`, 0 where the sum is empty."""
    is_empty = total <= 0
    return ops.where(is_empty, 0, ops.log(ops.where(is_empty, 1, total)) + shift)
