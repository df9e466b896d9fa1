"""What the backward pass leaves of the gradients of several terms, and its means over an epoch."""

import weakref
from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_jointloss._backend import trains_functionally
from keras_jointloss._math import to_numpy
from keras_jointloss._state import layer_state

# A cosine of gradients that are orthogonal can be this far below 0.
_ROUNDING = 1e-6


class GradientStatistics(NamedTuple):
    """What is known of the terms' gradients, in one step or on average.

    Attributes:
        norms: `(terms,)`, their lengths, of the losses weighted as they are.
        coefficients: `(terms,)`, with which they were combined.
        cosines: `(terms, terms)`, of the angles between them, over the steps in which both were
            there: not 0.
        conflicts: `(terms, terms)`, in which share of these steps the cosine was negative, by more
            than rounding.
        conflict: In which share of all steps any cosine was negative.
        nonfinite_step: `(terms,)`, the number of the first step, counted from 1 at the layer's
            first training, in which any gradient was not finite, for the terms whose gradient it
            was; 0 for others. Such a step is in none of the means, which are `nan` if no other
            was taken. As long as the gradients stay so, this is the first step of all.
    """

    norms: np.ndarray
    coefficients: np.ndarray
    cosines: np.ndarray
    conflicts: np.ndarray
    conflict: float
    nonfinite_step: np.ndarray

    def to_tags(self, terms: Sequence[str]) -> dict[str, float]:
        """Returns the numbers by the names they are logged under; none that is `nan`.

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
        return {tag: number for tag, number in numbers.items() if not np.isnan(number)}


class GradientRecord:
    """Keeps the statistics of the latest step, and sums of them, in variables of a layer.

    Nothing but gradients leaves the backward pass on JAX: there the record is the "gradient" of a
    variable that optimizers overwrite with it, trainable in the eyes of Keras. Elsewhere the
    backward pass assigns it. The next forward pass of training adds it to the sums.

    The record is a matrix `(3 + terms, terms)` of the number of the step, the lengths, the
    coefficients and the cosines. The length of a gradient that is not finite is -1. The record is
    held as its positive and its negative part, since of the steps whose gradients an optimizer
    accumulates Keras takes the maximum.

    Args:
        terms: How many.
        name: Goes before the names of the variables.
        dtype: Their dtype.
    """

    def __init__(self, terms: int, name: str, dtype: str):
        self.terms = terms
        self.is_trained = trains_functionally()
        shape = (2, 3 + terms, terms)
        replicated = {"dtype": dtype, "aggregation": "only_first_replica"}
        if self.is_trained:
            self.latest = keras.Variable(
                np.zeros(shape), dtype=dtype, autocast=False, name=f"{name}_latest"
            )
            self.latest.overwrite_with_gradient = True
        else:
            self.latest = layer_state(f"{name}_latest", shape, 0.0, **replicated)
        # Of: 1, any conflict, lengths, coefficients; cosines, both there, conflicts. At last, no
        # sums, the step in which a gradient was not finite first and the step that was added last.
        self.sums = layer_state(f"{name}_sums", (6 + 3 * terms, terms), 0.0, **replicated)
        self._get_differentiated = lambda: None

    @property
    def state(self) -> list:
        """The variables that are no weights."""
        return [self.sums] if self.is_trained else [self.latest, self.sums]

    @property
    def trained(self) -> list:
        """The variable that an optimizer overwrites, which has to be among what it trains."""
        return [self.latest] if self.is_trained else []

    # Within the compiled step.

    def begin(self) -> bool:
        """Returns whether the call that begins is the one of its step that is recorded.

        On JAX that is the first: gradients of a variable add up. A step has a tracer of its own
        for the variable. Elsewhere the backward pass that comes last overwrites the others.
        """
        if not self.is_trained:
            return True
        differentiated = self.latest.value
        is_first = self._get_differentiated() is not differentiated
        self._get_differentiated = weakref.ref(differentiated)
        return is_first

    @staticmethod
    def decode(latest):
        """Returns the record that `latest` holds."""
        return latest[0] - latest[1]

    def latest_lengths(self):
        """Returns the number of the latest step, 0 if there was none, and its lengths, `(terms,)`.

        On JAX that is the step before.
        """
        record = ops.stop_gradient(self.decode(ops.copy(self.latest)))
        return record[0, 0], record[1]

    def made(self, step, lengths, coefficients, cosines, is_sound, before, accumulated_steps):
        """Returns the record of a step in the form that is kept.

        Args:
            step: The number of the step, from 0, an int32 scalar tensor.
            lengths: `(terms,)`.
            coefficients: `(terms,)`.
            cosines: `(terms, terms)`, 0 for a term without gradient.
            is_sound: `(terms,)`, whether the gradient of a term is finite.
            before: The record before, which stays if this one is not finite, but for the number
                of the step and the lengths if that is for the gradient of a term.
            accumulated_steps: From how many steps the optimizer accumulates gradients.
        """
        number = ops.cast(step % 2**23 + 1, before.dtype)  # exact in single precision
        number = before[:1] * 0 + number
        rows = ops.concatenate([lengths[None, :], coefficients[None, :], cosines])
        record = ops.concatenate([number, ops.cast(rows, before.dtype)])
        # A product with what is not finite would not be finite, where a choice is.
        record = ops.where(ops.all(ops.isfinite(record)), record, before)
        marks = ops.cast(is_sound, before.dtype)[None, :] - 1
        unsound = ops.concatenate([number, marks, before[2:]])
        record = ops.where(ops.all(is_sound), record, unsound)
        if self.is_trained and accumulated_steps > 1:
            # The maximum is then the record of the last step, as all others are 0.
            is_last = number[0, 0] >= before[0, 0] + accumulated_steps
            record = ops.where(is_last, record, 0)
        return ops.relu(ops.stack([record, -record]))

    def add(self) -> None:
        """Adds the record of the latest step to the sums, if it is not there yet."""
        record = ops.stop_gradient(self.decode(ops.copy(self.latest)))
        self.sums.assign(self._extended(ops.copy(self.sums), record))

    def _extended(self, sums, record):
        """Returns the sums with a further record, if it is new."""
        number, first, added = record[:1], sums[-2:-1], sums[-1:]
        is_new = (number != added) & (number > 0)
        one = number * 0 + 1
        is_there = ops.cast(record[1] > 0, record.dtype)
        both = is_there[:, None] * is_there
        conflicts = ops.cast(record[3:] < -_ROUNDING, record.dtype)
        summands = ops.concatenate([one, one * ops.max(conflicts), record[1:], both, conflicts])
        is_unsound = is_new & (record[1:2] < 0)
        is_counted = is_new & ~ops.any(is_unsound)
        # Once a weight is not finite nothing is: where that comes from the first step tells.
        is_first = is_unsound & (ops.max(first) == 0)
        is_new, is_counted, is_first = (
            ops.cast(x, record.dtype) for x in (is_new, is_counted, is_first)
        )
        changes = [is_counted * summands, is_first * number, is_new * (number - added)]
        return sums + ops.concatenate(changes)

    # From the host.

    @property
    def is_empty(self) -> bool:
        """Whether no step has been taken down."""
        return not to_numpy(self.latest).any()

    def read(self) -> GradientStatistics | None:
        """Returns the means over the steps since the last `reset`; `None` if there was none."""
        sums = to_numpy(self.sums).astype("float64")
        record = self.decode(to_numpy(self.latest).astype("float64"))
        extended = self._extended(ops.convert_to_tensor(sums), ops.convert_to_tensor(record))
        sums = ops.convert_to_numpy(extended)[:-1]
        if not sums.any():
            return None
        steps = sums[0, 0] or np.nan
        cosines, both, conflicts = np.split(sums[4:-1], 3)
        both = np.where(both, both, np.nan)
        return GradientStatistics(
            norms=sums[2] / steps,
            coefficients=sums[3] / steps,
            cosines=cosines / both,
            conflicts=conflicts / both,
            conflict=float(sums[1, 0] / steps),
            nonfinite_step=sums[-1].astype("int64"),
        )

    def reset(self) -> None:
        """Starts the means anew."""
        record = self.decode(to_numpy(self.latest))
        sums = np.zeros(self.sums.shape)
        sums[-1] = record[0]
        if np.any(record[1] < 0):
            # What is not finite now may be due to a term that was the first.
            sums[-2] = self._first_nonfinite()
        self.sums.assign(sums)

    def _first_nonfinite(self):
        statistics = self.read()
        return 0 if statistics is None else statistics.nonfinite_step

    def load(self, latest) -> None:
        """Takes over a record, as `latest` holds it."""
        self.latest.assign(np.array(latest))
        self.reset()
