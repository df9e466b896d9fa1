"""The statistics of a logit matrix, of some of its rows at a time.

The gradient recomputes the rows: 4 matrix products in place of 3, in memory that grows with the
batch and not with its square.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_jointloss._core.backend import custom_gradient, decided
from keras_jointloss._core.math import divide_or_0, dot_matrix, matrix_product, max_along
from keras_jointloss.losses._candidates import Selection
from keras_jointloss.losses._pairs import Roles, Samples, for_allowed
from keras_jointloss.losses._softmax_matrix import Matrix, logsumexp_among
from keras_jointloss.losses._tiles import for_rows, put_rows

#: The largest |logit| for which the sums over rows and over columns can share their exponentials
#: without underflow in float32: exp(-2 * 40) is still a normal number.
_NARROW = 40.0


def tiled(matrix: Matrix, x, y, scale, tile_size):
    """Computes the same as `matrix.dense(x, y, scale)`, from `tile_size` rows at a time."""

    def compute(x, y, scale):
        tiles = _Tiles.of(_copied(matrix), x, y, scale, tile_size)
        sums = tiles.forward()
        return tiles.statistics(sums), lambda upstream: tiles.backward(sums, upstream)

    return custom_gradient(compute, x, y, scale)


def _copied(matrix: Matrix) -> Matrix:
    """Returns the matrix with copies of the floats with which it selects negatives.

    If TensorFlow knows the batch size only during a step, the tiles are one branch of a condition.
    In the gradient of the branch, their loop does not always get a float tensor from outside of it:
    TensorFlow 2.21 then misses the value of a placeholder.
    """
    if matrix.selection is None:
        return matrix

    def copied(x):
        return None if x is None else ops.stop_gradient(x)

    def of_samples(samples: Samples) -> Samples:
        return Samples(*samples[:4], copied(samples.log_probability), copied(samples.guide))

    roles, (limit, largest, hardness) = matrix.roles, matrix.selection
    roles = Roles(of_samples(roles.anchors), of_samples(roles.candidates), *roles[2:])
    return Matrix(roles, *matrix[1:-1], Selection(copied(limit), largest, copied(hardness)))


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
        similarity = ops.sqrt(ops.relu(squares[0]) * ops.relu(squares[1]))
        bound = ops.abs(scale) * similarity
        if matrix.selection is not None:
            bound = bound + matrix.selection.bound(similarity, matrix.roles)
        return cls(matrix, x, y, scale, tile_size, bound, decided(bound <= _NARROW))

    def tile(self, rows):
        """Returns the anchors of the given rows, their logits and the two masks."""
        x_tile = ops.take(self.x, rows, axis=0)
        logits = dot_matrix(self.scale * x_tile, self.y)
        return (x_tile, *self.matrix.selected(logits, self.scale, rows))

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
        row_lse = logsumexp_among(logits, denominator, 1)
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


def _log(total, shift):
    """Returns `log(total) + shift`, 0 where the sum is empty."""
    is_empty = total <= 0
    return ops.where(is_empty, 0, ops.log(ops.where(is_empty, 1, total)) + shift)
