"""The gradient statistics that the backward pass records, and their means over an epoch."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.backend import trains_functionally
from keras_jointloss._core.keras import overwrite_with_gradient
from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.state import constant, layer_state

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
        """Returns the statistics by the names used in logs.

        Args:
            terms: The names of the terms.
        """
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


class StepRecord(NamedTuple):
    """The statistics of one step, as rows of a matrix `(3 + terms, terms)`.

    Attributes:
        number: `(1, terms)`, the number of the step, from 1, in each column; 0 for no step.
        lengths: `(1, terms)`, -1 for a gradient that is not finite.
        coefficients: `(1, terms)`.
        cosines: `(terms, terms)`.
    """

    number: Any
    lengths: Any
    coefficients: Any
    cosines: Any

    @classmethod
    def of(cls, rows) -> "StepRecord":
        """Returns the record with these rows."""
        return cls(rows[:1], rows[1:2], rows[2:3], rows[3:])

    def rows(self):
        """Returns the matrix."""
        return ops.concatenate(list(self))


class _Sums(NamedTuple):
    """Sums over the steps of an epoch, as rows of a matrix `(6 + 3 * terms, terms)`.

    Attributes:
        steps: `(1, terms)`, the number of steps, in each column.
        any_conflict: `(1, terms)`, the number of steps in which any two gradients conflicted.
        lengths: `(1, terms)`.
        coefficients: `(1, terms)`.
        cosines: `(terms, terms)`.
        both: `(terms, terms)`, the number of steps in which both terms had a gradient.
        conflicts: `(terms, terms)`, the number of steps in which two gradients conflicted.
        first_nonfinite: `(1, terms)`, not a sum: the first step with a non-finite gradient.
        latest: `(1, terms)`, not a sum: the number of the step that was added last.
    """

    steps: Any
    any_conflict: Any
    lengths: Any
    coefficients: Any
    cosines: Any
    both: Any
    conflicts: Any
    first_nonfinite: Any
    latest: Any

    @classmethod
    def of(cls, rows, terms: int) -> "_Sums":
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


class GradientRecord:
    """Keeps the statistics of the latest step, and sums of them, in variables of a layer.

    On JAX only gradients leave the backward pass. There the record is the "gradient" of a variable
    that counts as trainable in Keras and that optimizers overwrite with the record. Elsewhere the
    backward pass assigns it. The next forward pass in training adds it to the sums.

    The variable holds the positive and the negative part of the rows of the `StepRecord`, since
    Keras takes the maximum over the steps whose gradients an optimizer accumulates.

    Args:
        terms: The number of terms.
        name: Prefix of the names of the variables.
        dtype: The dtype of the variables.
    """

    def __init__(self, terms: int, name: str, dtype: str):
        self.terms = terms
        self.is_trained = trains_functionally()
        shape = (2, 3 + terms, terms)
        replicated = {"dtype": dtype, "aggregation": "only_first_replica"}
        if self.is_trained:
            # Created by a function, as Keras may build the model before it creates variables.
            self.latest = keras.Variable(
                constant(0.0), shape=shape, dtype=dtype, autocast=False, name=f"{name}_latest"
            )
            overwrite_with_gradient(self.latest)
        else:
            self.latest = layer_state(f"{name}_latest", shape, 0.0, is_watched=True, **replicated)
        self.sums = layer_state(f"{name}_sums", (6 + 3 * terms, terms), 0.0, **replicated)

    @property
    def state(self) -> list:
        """The variables that are not weights."""
        return [self.sums] if self.is_trained else [self.latest, self.sums]

    @property
    def trained(self) -> list:
        """The variable that an optimizer overwrites; it must be one that the optimizer trains."""
        return [self.latest] if self.is_trained else []

    # Within the compiled step.

    @staticmethod
    def decode(latest) -> StepRecord:
        """Returns the record that `latest` holds."""
        return StepRecord.of(latest[0] - latest[1])

    def latest_lengths(self):
        """Returns the number of the latest step, 0 if there was none, and its lengths, `(terms,)`.

        On JAX this is the previous step.
        """
        record = self.decode(ops.stop_gradient(ops.copy(self.latest)))
        return record.number[0, 0], record.lengths[0]

    def encode(self, step, lengths, coefficients, cosines, is_finite, before, accumulated_steps):
        """Returns the record of a step, encoded as in `latest`.

        Args:
            step: The number of the step, from 0, an int32 scalar tensor.
            lengths: `(terms,)`.
            coefficients: `(terms,)`.
            cosines: `(terms, terms)`, 0 for a term without gradient.
            is_finite: `(terms,)`, whether the gradient of a term is finite.
            before: The previous `StepRecord`, which stays if this one is not finite. If a term's
                gradient is the cause, the number of the step and the lengths are updated.
            accumulated_steps: Over how many steps the optimizer accumulates gradients.
        """
        dtype = before.number.dtype
        number = ops.cast(step % 2**23 + 1, dtype)  # exact in single precision
        number = before.number * 0 + number
        values = ops.concatenate([lengths[None, :], coefficients[None, :], cosines])
        rows = ops.concatenate([number, ops.cast(values, dtype)])
        # `ops.where`, since a product with a non-finite value would not be finite.
        rows = ops.where(ops.all(ops.isfinite(rows)), rows, before.rows())
        marks = ops.cast(is_finite, dtype)[None, :] - 1
        nonfinite = StepRecord(number, marks, before.coefficients, before.cosines).rows()
        rows = ops.where(ops.all(is_finite), rows, nonfinite)
        if self.is_trained and accumulated_steps > 1:
            # All other records are 0, so that the maximum is the record of the last step.
            is_last = number[0, 0] >= before.number[0, 0] + accumulated_steps
            rows = ops.where(is_last, rows, 0)
        return ops.relu(ops.stack([rows, -rows]))

    def add(self) -> None:
        """Adds the record of the latest step to the sums, unless they include it already."""
        record = self.decode(ops.stop_gradient(ops.copy(self.latest)))
        self.sums.assign(self._extended(ops.copy(self.sums), record))

    def _extended(self, rows, record: StepRecord):
        """Returns the rows of the sums with a record added, if it is new."""
        sums, dtype = _Sums.of(rows, self.terms), rows.dtype
        is_new = (record.number != sums.latest) & (record.number > 0)
        is_nonfinite = is_new & (record.lengths < 0)
        is_counted = is_new & ~ops.any(is_nonfinite)
        # Once a weight is not finite, nothing is: only the first such step shows the cause.
        is_first = is_nonfinite & (ops.max(sums.first_nonfinite) == 0)
        one = record.number * 0 + 1
        is_there = ops.cast(record.lengths[0] > 0, dtype)
        conflicts = ops.cast(record.cosines < -_ROUNDING, dtype)
        summands = [
            one,
            one * ops.max(conflicts),
            record.lengths,
            record.coefficients,
            record.cosines,
            is_there[:, None] * is_there,
            conflicts,
        ]
        changes = [
            ops.cast(is_counted, dtype) * ops.concatenate(summands),
            ops.cast(is_first, dtype) * record.number,
            ops.cast(is_new, dtype) * (record.number - sums.latest),
        ]
        return rows + ops.concatenate(changes)

    # From the host.

    @property
    def is_empty(self) -> bool:
        """Whether no step has been recorded."""
        return not to_numpy(self.latest).any()

    def totals(self) -> np.ndarray:
        """Returns the rows of the sums since the last `reset`, with the latest step."""
        rows = to_numpy(self.sums).astype("float64")
        record = self.decode(ops.convert_to_tensor(to_numpy(self.latest).astype("float64")))
        return ops.convert_to_numpy(self._extended(ops.convert_to_tensor(rows), record))

    def read(self, rows: np.ndarray | None = None) -> GradientStatistics | None:
        """Returns the means over the steps since the last `reset`; `None` if there were none.

        Args:
            rows: What `totals` returns, or the difference of two of its values, for the steps
                between them.
        """
        rows = self.totals() if rows is None else rows
        if not rows[:-1].any():
            return None
        sums = _Sums.of(rows, self.terms)
        steps = sums.steps[0, 0] or np.nan
        both = np.where(sums.both, sums.both, np.nan)
        return GradientStatistics(
            norms=sums.lengths[0] / steps,
            coefficients=sums.coefficients[0] / steps,
            cosines=sums.cosines / both,
            conflicts=sums.conflicts / both,
            conflict=float(sums.any_conflict[0, 0] / steps),
            nonfinite_step=sums.first_nonfinite[0].astype("int64"),
        )

    def reset(self) -> None:
        """Resets the means."""
        record = self.decode(to_numpy(self.latest))
        rows = np.zeros(self.sums.shape)
        sums = _Sums.of(rows, self.terms)  # Views of the rows.
        sums.latest[:] = record.number
        if np.any(record.lengths < 0):
            # The first non-finite term may be the cause of what is not finite now.
            sums.first_nonfinite[:] = self._first_nonfinite()
        self.sums.assign(rows)

    def _first_nonfinite(self):
        statistics = self.read()
        return 0 if statistics is None else statistics.nonfinite_step

    def load(self, latest) -> None:
        """Loads a record that is encoded as in `latest`."""
        self.latest.assign(latest)
        self.reset()
