"""The base class of the aggregators."""

from collections.abc import Sequence
from typing import Self

import keras
from keras import ops

from keras_jointloss._core.batch import check_numbers
from keras_jointloss._core.registry import find
from keras_jointloss._core.types import Config, Step, Tensor
from keras_jointloss._core.validation import invalid, validate_bool, validate_share
from keras_jointloss.aggregators._gramian import (
    active_terms,
    at_least,
    correlation,
    epsilon,
    nonzero,
    quadratic_form,
    validate_symmetric,
)


class Aggregator:
    """Base class of the rules that combine the gradients of `k` terms into one.

    The gradients `g_i` are the rows of the Jacobian `J`. A rule sees only their Gramian
    `G = J J^T` and maps it to `k` coefficients `w`. The combined gradient is `J^T w`.

    A subclass implements `coefficients`, and `get_config` if it has arguments of its own. One that
    learns from step to step implements `next_coefficients` and `state_rows` in place of
    `coefficients`. The base class handles the rest:

    - The coefficients do not depend on the scale of the Jacobian: the rule receives the Gramian
      divided by the mean squared length of the gradients. With a nonzero `degree`, the
      coefficients are scaled afterwards.
    - A term whose gradient is 0 counts as absent: its coefficient is 0.
    - No gradient flows through the coefficients.
    - If an entry of the Gramian is not finite, no coefficient is finite.

    Args:
        rescale: Whether to scale the combined gradient to the length of the mean gradient. A
            combination that nearly cancels stays short.
        ema: The weight of the previous coefficients in `smooth`, >= 0 and < 1.

    Raises:
        ValueError: If `ema` is not a number >= 0 and < 1.

    References:
        - Zhou et al., 2022, On the Convergence of Stochastic Multi-Objective Gradient Manipulation
          and Beyond (CR-MOGM: the smoothing of coefficients)

    Example:

    >>> class Shortest(Aggregator):
    ...     def coefficients(self, gramian):
    ...         return ops.one_hot(ops.argmin(ops.diagonal(gramian)), gramian.shape[0])
    >>> [float(x) for x in Shortest()([[3.0, 4.0], [1.0, 2.0]])]
    [1.0, 2.0]
    """

    #: The arguments of `coefficients` besides the Gramian: any of `"losses"` and `"step"`.
    inputs: tuple[str, ...] = ()
    #: The coefficients grow with the scale of the Jacobian to this power.
    degree: float = 0

    def __init__(self, rescale: bool = False, ema: float = 0.0):
        self.rescale = validate_bool(rescale, "rescale")
        self.ema = validate_share(ema, "ema")

    def coefficients(self, gramian: Tensor) -> Tensor:
        """Returns the coefficients of the gradients.

        A rule with `inputs` receives them as further arguments, described in `solve`.

        Args:
            gramian: `(k, k)`, float32 or float64, with a mean diagonal of 1. Row and column of an
                absent term are 0.

        Returns:
            `(k,)`. The values for absent terms are ignored.
        """
        raise NotImplementedError

    def next_coefficients(
        self, gramian: Tensor, state: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the coefficients and the next state, in place of `coefficients`.

        A rule with a state implements it, and `state_rows`.

        Args:
            gramian: As in `coefficients`.
            state: `(rows, k)`, all 0 before the first step.
            size: A scalar, the length by which the gradients are divided in the Gramian.
        """
        raise NotImplementedError

    def solve(self, gramian: Tensor, losses: Tensor | None = None, step: Step = 0) -> Tensor:
        """Returns the coefficients for a Gramian of any scale.

        Args:
            gramian: `(k, k)`, the inner products of the gradients. `k` is static.
            losses: `(k,)`, the losses of the terms. Only rules with `"losses"` in `inputs` use it.
            step: An integer or an integer scalar tensor. Rules with `"step"` in `inputs` draw
                their random numbers from it: the same numbers for the same step.

        Returns:
            `(k,)`, with the dtype of `gramian`, but at least float32.

        Raises:
            ValueError: If `gramian` is not square, or not symmetric as far as the host can read
                it, or `losses` is required but missing or of another shape.
        """
        gramian = self._to_tensor(gramian, "gramian")
        validate_symmetric(gramian)
        return self.solve_next(gramian, None, losses, step)[0]

    def state_rows(self, count: int) -> int:
        """Returns how many rows of `count` numbers the rule keeps for that many terms: mostly 0."""
        return 0

    def solve_next(
        self,
        gramian: Tensor,
        state: Tensor | None,
        losses: Tensor | None = None,
        step: Step = 0,
        scale: float | Tensor = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the coefficients, and the state for the next step.

        The caller keeps the state, as the layers do: an aggregator has none. Rules without a state
        return it as it is.

        Args:
            gramian: As in `solve`.
            state: `(rows, k)`, what the previous step returned, or `None` for the first step.
            losses: As in `solve`.
            step: As in `solve`.
            scale: A positive number or scalar tensor by which the gradients were divided before
                the Gramian was computed, if a state has to compare them with those of other steps.

        Returns:
            `(k,)` and `(rows, k)`, with the dtype of `gramian`, but at least float32. The state
            stays as it is if an entry of the Gramian is not finite.

        Raises:
            ValueError: If `state` has another shape, and as in `solve`.
        """
        gramian = self._to_tensor(gramian, "gramian")
        count = gramian.shape[0]
        if count != gramian.shape[1]:
            received = f"shape={tuple(gramian.shape)}"
            raise invalid("gramian", "a square matrix of static shape", received=received)
        inputs = {"losses": losses, "step": step}
        if "losses" in self.inputs:
            inputs["losses"] = self._validate_losses(losses, gramian)

        is_finite = ops.all(ops.isfinite(gramian))
        # Some decompositions raise an error if an entry is not finite.
        identity = ops.eye(count, dtype=gramian.dtype)
        gramian = ops.where(is_finite, ops.stop_gradient(gramian), identity)
        is_active = active_terms(gramian)
        number = nonzero(ops.sum(ops.cast(is_active, gramian.dtype)))
        # Two steps, to keep the sum within the range of the dtype.
        square = ops.diagonal(gramian)
        largest = nonzero(ops.max(square))
        mean = nonzero(ops.sum(square / largest) / number)
        gramian = gramian / largest / mean

        chosen = {name: inputs[name] for name in self.inputs}
        if self.state_rows(count):
            shape = (self.state_rows(count), count)
            before = ops.zeros(shape) if state is None else ops.convert_to_tensor(state)
            if tuple(before.shape) != shape:
                received = f"shape={tuple(before.shape)}"
                raise invalid("state", f"an array of the shape {shape}", received=received)
            before = ops.stop_gradient(ops.cast(before, gramian.dtype))
            size = scale * ops.sqrt(largest) * ops.sqrt(mean)
            result, after = self.next_coefficients(gramian, before, size, **chosen)
            state = ops.where(is_finite, ops.stop_gradient(after), before)
        else:
            result = self.coefficients(gramian, **chosen)
        result = ops.cast(result, gramian.dtype)
        result = ops.where(is_active, result, ops.zeros_like(result))
        if self.rescale:
            result = result * self._scale(result, gramian, number)
        elif self.degree:
            result = result * (ops.sqrt(largest) * ops.sqrt(mean)) ** self.degree
        return ops.stop_gradient(ops.where(is_finite, result, result + float("nan"))), state

    def __call__(self, matrix: Tensor, losses: Tensor | None = None, step: Step = 0) -> Tensor:
        """Combines the rows of a matrix.

        Args:
            matrix: `(k, m)`, one gradient per row.
            losses: As in `solve`.
            step: As in `solve`.

        Returns:
            `(m,)`, with the dtype of `matrix`.

        Raises:
            ValueError: If `matrix` is not a matrix, and as in `solve`.
        """
        check_numbers(matrix, "matrix", type(self).__name__)
        dtype = ops.convert_to_tensor(matrix).dtype
        matrix = self._to_tensor(matrix, "matrix")
        # Squares of the entries could leave the range of the dtype.
        largest = nonzero(ops.stop_gradient(ops.max(abs(matrix))))
        unit = matrix / largest
        w = self.solve_next(unit @ ops.transpose(unit), None, losses, step)[0]
        result = (w[None, :] @ matrix)[0]
        if self.degree and not self.rescale:
            result = result * largest**self.degree
        return ops.cast(result, dtype)

    def smooth(self, previous: Tensor | None, new: Tensor) -> Tensor:
        """Returns `ema * previous + (1 - ema) * new`.

        The caller keeps the previous coefficients: an aggregator has no state.

        Args:
            previous: `(k,)`, the smoothed coefficients of the previous step, or `None` if there
                are none.
            new: `(k,)`, what `solve` returned.
        """
        if previous is None or not self.ema:
            return new
        return self.ema * ops.cast(previous, new.dtype) + (1 - self.ema) * new

    def for_terms(self, terms: Sequence[str]) -> "Aggregator":
        """Returns the aggregator for terms of these names, in the order of the gradients.

        It is another one if an argument was given by the names of the terms.

        Raises:
            ValueError: If such an argument does not fit the names.
        """
        return self

    def get_config(self) -> Config:
        return {"rescale": self.rescale, "ema": self.ema}

    @classmethod
    def from_config(cls, config: Config) -> Self:
        return cls(**config)

    def _to_tensor(self, value, name: str):
        """Returns a matrix with a static number of rows as a float32 or float64 tensor."""
        check_numbers(value, name, type(self).__name__)
        value = ops.convert_to_tensor(value)
        if len(value.shape) != 2 or value.shape[0] in (0, None) or value.shape[1] == 0:
            expected = "a matrix with one row per term, a static number of rows, and columns"
            raise invalid(name, expected, received=f"shape={tuple(value.shape)}")
        dtype = keras.backend.standardize_dtype(value.dtype)
        # Not `result_type`, which combines float64 and float32 to float32 on PyTorch.
        return ops.cast(value, "float64" if dtype == "float64" else "float32")

    def _validate_losses(self, losses, gramian):
        if losses is None:
            needs = f"{type(self).__name__} with these arguments needs the losses of the terms"
            raise ValueError(f"{needs}. Received: losses=None")
        check_numbers(losses, "losses", type(self).__name__)
        losses = ops.cast(losses, gramian.dtype)
        if tuple(losses.shape) != (gramian.shape[0],):
            expected = f"one loss for each of the {gramian.shape[0]} terms"
            raise invalid("losses", expected, received=f"shape={tuple(losses.shape)}")
        return ops.stop_gradient(losses)

    def _scale(self, coefficients, gramian, count):
        """Returns the factor that scales the combination to the length of the mean gradient."""
        lengths, cosines = correlation(gramian)
        mean = ops.relu(ops.sum(gramian)) / ops.square(count)
        # In units of the sum of lengths. A square below `least` is only rounding error.
        parts = coefficients * lengths
        total = nonzero(ops.sum(abs(parts)))
        least = 4 * gramian.shape[0] * epsilon(gramian)
        share = at_least(quadratic_form(parts / total, cosines), least)
        return ops.sqrt(mean / share) / total


def get(identifier: str | Config | Aggregator) -> Aggregator:
    """Returns an aggregator by instance, by name or by config.

    Args:
        identifier: An `Aggregator`, the name of a class of `keras_jointloss.aggregators` or of a
            registered custom class (`"PCGrad"`, `"pcgrad"`, `"NashMTL"`, `"nash_mtl"`: case
            and underscores do not matter), or the serialized form of an aggregator.

    Raises:
        ValueError: If there is no such aggregator.

    Example:

    >>> type(get("nash_mtl")).__name__
    'NashMTL'
    """
    return find(identifier, Aggregator, "aggregator", "aggregators")
