"""What the backward pass leaves of the gradients of several terms, and its means over an epoch."""

from collections.abc import Sequence
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from keras_jointloss._math import to_numpy
from keras_jointloss.loss_weight import layer_state

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
    """

    norms: np.ndarray
    coefficients: np.ndarray
    cosines: np.ndarray
    conflicts: np.ndarray
    conflict: float

    def by_tag(self, terms: Sequence[str]) -> dict[str, float]:
        """Returns the numbers by the names they are logged under; none that is `nan`.

        Args:
            terms: The names of the terms.
        """
        numbers = {"conflict": self.conflict}
        for i, term in enumerate(terms):
            numbers[f"{term}/norm"] = float(self.norms[i])
            numbers[f"{term}/coefficient"] = float(self.coefficients[i])
            for j in range(i + 1, len(terms)):
                if not np.isnan(self.cosines[i, j]):
                    pair = f"{term}~{terms[j]}"
                    numbers[f"{pair}/cosine"] = float(self.cosines[i, j])
                    numbers[f"{pair}/conflict"] = float(self.conflicts[i, j])
        return numbers


class GradientRecord:
    """Keeps the statistics of the latest step, and sums of them, in variables of a layer.

    Nothing but gradients leaves the backward pass on JAX: there the record is the "gradient" of a
    variable that optimizers overwrite with it, trainable in the eyes of Keras. Elsewhere the
    backward pass assigns it. The next forward pass of training adds it to the sums.

    The record is a matrix `(3 + terms, terms)` of the number of the step, the lengths, the
    coefficients and the cosines. It is held as its positive and its negative part, since of the
    steps whose gradients an optimizer accumulates Keras takes the maximum.

    Args:
        terms: How many.
        name: Goes before the names of the variables.
        dtype: Their dtype.
    """

    def __init__(self, terms: int, name: str, dtype: str):
        self.terms = terms
        self.is_trained = keras.backend.backend() == "jax"
        shape = (2, 3 + terms, terms)
        replicated = {"dtype": dtype, "aggregation": "only_first_replica"}
        if self.is_trained:
            self.latest = keras.Variable(
                np.zeros(shape), dtype=dtype, autocast=False, name=f"{name}_latest"
            )
            self.latest.overwrite_with_gradient = True
        else:
            self.latest = layer_state(f"{name}_latest", shape, 0.0, **replicated)
        # Of: 1, any conflict, lengths, coefficients; cosines, both there, conflicts.
        self.sums = layer_state(f"{name}_sums", (4 + 3 * terms, terms), 0.0, **replicated)
        # The number of the step that was added last.
        self.added = layer_state(f"{name}_added", (), 0.0, **replicated)

    @property
    def state(self) -> list:
        """The variables."""
        return [self.latest, self.sums, self.added]

    # Within the compiled step.

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

    def made(self, step, lengths, coefficients, cosines, before, accumulated_steps):
        """Returns the record of a step in the form that is kept.

        Args:
            step: The number of the step, from 0, an int32 scalar tensor.
            lengths: `(terms,)`.
            coefficients: `(terms,)`.
            cosines: `(terms, terms)`, 0 for a term without gradient.
            before: The record before, which stays if this one is not finite.
            accumulated_steps: From how many steps the optimizer accumulates gradients.
        """
        number = ops.cast(step % 2**23 + 1, lengths.dtype)  # exact in single precision
        rows = [number * ops.ones_like(lengths), lengths, coefficients]
        record = ops.cast(ops.concatenate([ops.stack(rows), cosines]), before.dtype)
        is_finite = ops.all(ops.isfinite(record))
        # A product with what is not finite would not be finite, where a choice is.
        record = ops.where(is_finite, record, before)
        if self.is_trained and accumulated_steps > 1:
            # The maximum is then the record of the last step, as all others are 0.
            is_last = number >= before[0, 0] + accumulated_steps
            record = ops.where(is_last, record, 0)
        return ops.stack([ops.maximum(record, 0), ops.maximum(-record, 0)])

    def add(self) -> None:
        """Adds the record of the latest step to the sums, if it is not there yet."""
        record = ops.stop_gradient(self.decode(ops.copy(self.latest)))
        number = record[0, 0]
        is_new = ops.not_equal(number, ops.copy(self.added))
        is_new = ops.logical_and(is_new, number > 0)
        self.sums.assign_add(ops.where(is_new, self._summands(record), 0))
        self.added.assign(ops.where(is_new, number, ops.copy(self.added)))

    def _summands(self, record):
        one = ops.ones_like(record[0])
        is_there = ops.cast(record[1] > 0, record.dtype)
        both = is_there[:, None] * is_there[None, :]
        conflicts = ops.cast(record[3:] < -_ROUNDING, record.dtype)
        head = ops.stack([one, one * ops.max(conflicts), record[1], record[2]])
        return ops.concatenate([head, record[3:], both, conflicts])

    # From the host.

    @property
    def is_empty(self) -> bool:
        """Whether no step has been taken down."""
        return not to_numpy(self.latest).any()

    def read(self) -> GradientStatistics | None:
        """Returns the means over the steps since the last `reset`; `None` if there was none."""
        sums = to_numpy(self.sums).astype("float64")
        record = self.decode(to_numpy(self.latest).astype("float64"))
        if record[0, 0] not in (0, to_numpy(self.added)):
            sums = sums + ops.convert_to_numpy(self._summands(ops.convert_to_tensor(record)))
        steps = sums[0, 0]
        if not steps:
            return None
        cosines, both, conflicts = np.split(sums[4:], 3)
        both = np.where(both, both, np.nan)
        return GradientStatistics(
            norms=sums[2] / steps,
            coefficients=sums[3] / steps,
            cosines=cosines / both,
            conflicts=conflicts / both,
            conflict=float(sums[1, 0] / steps),
        )

    def reset(self) -> None:
        """Starts the means anew."""
        latest = to_numpy(self.latest)
        self.sums.assign(np.zeros(self.sums.shape))
        self.added.assign(latest[0, 0, 0])

    def load(self, latest) -> None:
        """Takes over a record, as `latest` holds it."""
        self.latest.assign(np.array(latest))
        self.reset()
