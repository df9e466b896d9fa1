"""The statistics of the terms' gradients: of a step, their sums over an epoch, and their means."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_jointloss.aggregators._gramian import correlation

# The computed cosine of orthogonal gradients can be this far below 0.
_ROUNDING = 1e-6


class GradientStatistics(NamedTuple):
    """Statistics of the terms' gradients, in one step or averaged over steps.

    Attributes:
        norms: `(terms,)`, the lengths of the gradients of the weighted losses.
        coefficients: `(terms,)`, the factors with which the gradients were combined.
        cosines: `(terms, terms)`, the cosines of the angles between two gradients, over the steps
            in which both were nonzero.
        conflicts: `(terms, terms)`, the share of these steps in which the cosine was negative by
            more than rounding.
        conflict: The share of all steps in which any cosine was negative.
        nonfinite_step: `(terms,)`, the number of the first step in which any gradient was not
            finite, counted from 1 at the layer's first training, for the terms whose gradient was
            not finite in it; 0 for other terms. The means exclude such steps and are `nan` if there
            were no others. While gradients stay non-finite, this remains the first step of all.
    """

    norms: np.ndarray
    coefficients: np.ndarray
    cosines: np.ndarray
    conflicts: np.ndarray
    conflict: float
    nonfinite_step: np.ndarray

    def to_tags(self, terms: Sequence[str]) -> dict[str, float]:
        """Returns the statistics by the names used in logs, from those of the terms."""
        numbers = {"conflict": self.conflict}
        for i, term in enumerate(terms):
            numbers[f"{term}/norm"] = float(self.norms[i])
            numbers[f"{term}/coefficient"] = float(self.coefficients[i])
            for j in range(i + 1, len(terms)):
                pair = f"{term}~{terms[j]}"
                numbers[f"{pair}/cosine"] = float(self.cosines[i, j])
                numbers[f"{pair}/conflict"] = float(self.conflicts[i, j])
        return numbers

    @classmethod
    def unknown(cls, terms: int) -> "GradientStatistics":
        """Returns what stands for the statistics of no step: `nan`."""
        nan, square = np.full(terms, np.nan), np.full((terms, terms), np.nan)
        return cls(nan, nan, square, square, math.nan, np.zeros(terms, "int64"))


def number_of(step, dtype):
    """Returns the number of a step, from 1, as a float. It is exact in single precision."""
    return ops.cast(step % 2**23 + 1, dtype)


class StepRecord(NamedTuple):
    """The statistics of one step, as rows of a matrix `(3 + terms + rows of the state, terms)`."""

    number: Any  # `(1, terms)`, the number of the step, from 1, in each column; 0 for no step
    lengths: Any  # `(1, terms)`, -1 for a gradient that is not finite
    coefficients: Any  # `(1, terms)`
    cosines: Any  # `(terms, terms)`
    state: Any  # `(rows, terms)`, what the aggregator keeps for the next step

    @classmethod
    def of(cls, rows) -> "StepRecord":
        """Returns the record with these rows."""
        end = 3 + rows.shape[1]
        return cls(rows[:1], rows[1:2], rows[2:3], rows[3:end], rows[end:])

    @classmethod
    def rows_of_step(cls, step, gramian, scale, coefficients, state, is_finite, before):
        """Returns the matrix of a step.

        Args:
            step: The number of the step, from 0, an int32 scalar tensor.
            gramian: `(terms, terms)`, of gradients that are divided by `scale`.
            scale: A scalar tensor.
            coefficients: `(terms,)`.
            state: `(rows, terms)`.
            is_finite: `(terms,)`, whether the gradient of a term is finite.
            before: The previous `StepRecord`, which stays if this one is not finite. If a term's
                gradient is the cause, the number of the step and the lengths are updated.
        """
        dtype = before.number.dtype
        lengths, cosines = correlation(gramian)
        is_there = ops.cast(ops.diagonal(gramian) > 0, gramian.dtype)
        # 0 for a term without gradient.
        cosines = ops.clip(cosines, -1, 1) * (is_there[:, None] * is_there)
        number = before.number * 0 + number_of(step, dtype)
        lengths = scale * lengths * is_there
        values = ops.concatenate([lengths[None, :], coefficients[None, :], cosines])
        rows = ops.concatenate([number, ops.cast(values, dtype), ops.cast(state, dtype)])
        # `ops.where`, since a product with a non-finite value would not be finite.
        rows = ops.where(ops.all(ops.isfinite(rows)), rows, before.rows())
        marks = ops.cast(is_finite, dtype)[None, :] - 1
        nonfinite = cls(number, marks, before.coefficients, before.cosines, before.state).rows()
        return ops.where(ops.all(is_finite), rows, nonfinite)

    def rows(self):
        """Returns the matrix."""
        return ops.concatenate(list(self))

    def summands(self):
        """Returns the rows that the step adds to `Sums` up to `conflicts`."""
        one = self.number * 0 + 1
        is_there = ops.cast(self.lengths[0] > 0, one.dtype)
        conflicts = ops.cast(self.cosines < -_ROUNDING, one.dtype)
        both = is_there[:, None] * is_there
        any_conflict = one * ops.max(conflicts)
        summands = [one, any_conflict, self.lengths, self.coefficients, self.cosines]
        return ops.concatenate([*summands, both, conflicts])


class Sums(NamedTuple):
    """Sums over the steps of an epoch, as rows of a matrix `(6 + 3 * terms, terms)`."""

    steps: Any  # `(1, terms)`, the number of steps, in each column
    any_conflict: Any  # `(1, terms)`, the number of steps in which any two gradients conflicted
    lengths: Any  # `(1, terms)`
    coefficients: Any  # `(1, terms)`
    cosines: Any  # `(terms, terms)`
    both: Any  # `(terms, terms)`, the number of steps in which both terms had a gradient
    conflicts: Any  # `(terms, terms)`, the number of steps in which two gradients conflicted
    first_nonfinite: Any  # `(1, terms)`, not a sum: the first step with a non-finite gradient
    latest: Any  # `(1, terms)`, not a sum: the number of the step that was added last

    @classmethod
    def of(cls, rows) -> "Sums":
        """Returns the sums with these rows."""
        terms = rows.shape[1]
        cosines, both, conflicts = (4 + i * terms for i in range(3))
        return cls(
            steps=rows[:1],
            any_conflict=rows[1:2],
            lengths=rows[2:3],
            coefficients=rows[3:4],
            cosines=rows[cosines:both],
            both=rows[both:conflicts],
            conflicts=rows[conflicts:-2],
            first_nonfinite=rows[-2:-1],
            latest=rows[-1:],
        )

    @classmethod
    def extended(cls, rows, record: StepRecord):
        """Returns the rows with a record added, if it is new."""
        sums, dtype = cls.of(rows), rows.dtype
        is_new = (record.number != sums.latest) & (record.number > 0)
        is_nonfinite = is_new & (record.lengths < 0)
        is_counted = is_new & ~ops.any(is_nonfinite)
        # Once a weight is not finite, nothing is: only the first such step shows the cause.
        is_first = is_nonfinite & (ops.max(sums.first_nonfinite) == 0)
        changes = [
            ops.cast(is_counted, dtype) * record.summands(),
            ops.cast(is_first, dtype) * record.number,
            ops.cast(is_new, dtype) * (record.number - sums.latest),
        ]
        return rows + ops.concatenate(changes)

    def means(self) -> GradientStatistics:
        """Returns the means over the steps, on the host."""
        steps = self.steps[0, 0] or np.nan
        both = np.where(self.both, self.both, np.nan)
        return GradientStatistics(
            norms=self.lengths[0] / steps,
            coefficients=self.coefficients[0] / steps,
            cosines=self.cosines / both,
            conflicts=self.conflicts / both,
            conflict=float(self.any_conflict[0, 0] / steps),
            nonfinite_step=self.first_nonfinite[0].astype("int64"),
        )
