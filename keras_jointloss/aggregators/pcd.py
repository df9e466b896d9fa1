"""PCD: follows the gradient of a main term, as far as the others still make progress."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_jointloss._core.types import Config, Numbers, Tensor
from keras_jointloss._core.validation import (
    invalid,
    validate_by_name,
    validate_count,
    validate_fraction,
    validate_list,
    validate_names,
    validate_share,
)
from keras_jointloss.aggregators._gramian import (
    active_terms,
    correlation,
    epsilon,
    nonnegative_minimizer,
    nonzero,
    product,
    quadratic_form,
    regularize,
    ridge,
)
from keras_jointloss.aggregators.base import Aggregator


@keras.saving.register_keras_serializable(package="keras_jointloss")
class PCD(Aggregator):
    """Priority-constrained descent: a main term, and auxiliary terms that still make progress.

    With the gradients in units of their usual length, `n_i = g_i / r_i`, the direction is

        d = argmin |d - n_main|^2    where    n_j . d >= tau |n_j|^2    for all auxiliary j

    so that each auxiliary term makes at least the share `tau` of the progress that a step along
    its own gradient would make. The combined gradient has this direction and the length of the main
    gradient. `r_i` is the root of the moving mean of `|g_i|^2`, without bias at the start.

    With `tau` 0 the result does not conflict with any auxiliary gradient; it is the main gradient
    if that keeps all conditions. If no direction keeps them all, as for two opposed auxiliary
    gradients and `tau` > 0, they are dropped and the result is the main gradient, too. If the main
    term has no gradient, or the direction is 0, the result is 0.

    The rule has a state, the moving means: the layers keep it and save it with the model, and so
    it is the same after training resumes. In a custom loop, see `solve_next`; a direct call,
    `solve` included, is a first step, in which `r_i = |g_i|`. A step without gradient counts as 0
    in the mean of its term. A step with a gradient that is not finite leaves the means as they are.

    Args:
        main: The main term: its place among the gradients, or, in a layer that knows the names of
            its terms, its name.
        tau: The share of its own progress that each auxiliary term keeps, >= 0 and <= 1: a number
            for all, a list in the order of the auxiliary terms, or, in a layer, a dict by name.
        beta: The weight of the previous mean in the moving mean of `|g_i|^2`, >= 0 and < 1.
        rescale, ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If an argument is anything else or `ema` is not a number >= 0 and < 1; when
            called, if there is no such main term, the number of auxiliary terms differs from that
            in `tau`, or an argument is given by name; in a layer, if a name is not that of such a
            term, or an auxiliary term has no `tau`.

    References:
        - Varam and Alhajri, 2026, Not All Objectives Are Born Equal: Priority-Constrained Descent
          for Hierarchical Multi-Objective Optimization

    Example:

    >>> [round(float(x), 3) for x in PCD(tau=0.0)([[0.0, 3.0], [4.0, -4.0]])]
    [2.121, 2.121]
    """

    def __init__(
        self,
        main: str | int = 0,
        tau: float | Numbers | Mapping[str, float] = 0.02,
        beta: float = 0.999,
        rescale: bool = False,
        ema: float = 0.0,
    ):
        super().__init__(rescale=rescale, ema=ema)
        self.main: Any = main
        if not isinstance(main, str):
            self.main = validate_count(main, "main", minimum=0)
        self.beta = validate_share(beta, "beta")
        self.tau: Any
        if isinstance(tau, Mapping):
            self.tau = validate_by_name(tau, "tau", validate_fraction)
        elif hasattr(tau, "__len__") and not isinstance(tau, str):
            values = validate_list(tau, "tau", "numbers")
            self.tau = [validate_fraction(value, f"tau[{i}]") for i, value in enumerate(values)]
        else:
            self.tau = validate_fraction(tau, "tau")

    def for_terms(self, terms: Sequence[str]) -> Aggregator:
        main, tau, terms = self.main, self.tau, list(terms)
        if isinstance(main, str):
            if main not in terms:
                raise invalid("main", f"one of the terms {terms}", main)
            main = terms.index(main)
        self._validate_main(main, len(terms))
        others = [term for place, term in enumerate(terms) if place != main]
        if isinstance(tau, Mapping):
            validate_names(tau, "tau", others, is_complete=True)
            tau = [tau[term] for term in others]
        if main is self.main and tau is self.tau:
            return self
        return PCD(main, tau, self.beta, self.rescale, self.ema)

    def state_rows(self, count: int) -> int:
        return 2  # The discounted number of steps, in each column, and `r`.

    def next_coefficients(
        self, gramian: Tensor, state: Tensor, size: Tensor
    ) -> tuple[Tensor, Tensor]:
        count = gramian.shape[0]
        main, taus = self._by_place(count, gramian)
        is_active = active_terms(gramian)
        lengths, cosines = correlation(gramian)
        lengths = ops.cast(is_active, lengths.dtype) * lengths
        state = self._next_state(state, size * lengths)
        own = size * lengths / nonzero(state[1])  # |n_i|
        least, toward_main = taus * own, product(cosines, main)

        # In terms of unit vectors, d = n_main + sum_j x_j u_j with x >= 0, the multipliers of the
        # conditions. The second problem is that of a main gradient of length 0.
        is_other = is_active & (main == 0)
        identity = ops.eye(count, dtype=gramian.dtype)
        among_others = ops.where(is_other[:, None] & is_other, cosines, identity)
        linear = ops.stack([toward_main * ops.sum(main * own) - least, -least])
        linear = ops.where(is_other, linear, ops.zeros_like(linear))
        x, alone = ops.unstack(nonnegative_minimizer(regularize(among_others), linear), 2)
        # If no direction keeps the conditions, only the ridge bounds the multipliers.
        bound = ridge(alone) * ops.sum(ops.square(alone))
        is_possible = bound <= 0.5 * ops.sum(alone * least)
        parts = main * own + ops.where(is_possible, x, ops.zeros_like(x))

        square = quadratic_form(parts, cosines)
        rounding = 4 * count * epsilon(parts) * ops.square(ops.sum(abs(parts)))
        is_direction = square > rounding
        square = ops.where(is_direction, square, ops.ones_like(square))
        factor = ops.sum(main * lengths) / ops.sqrt(square)
        factor = ops.where(is_direction, factor, ops.zeros_like(factor))
        return factor * parts / nonzero(lengths), state

    def _next_state(self, state, lengths):
        """Returns the state of the next step; the lengths are those of the gradients themselves."""
        number, roots = self.beta * state[0] + 1, state[1]
        # Squares of the lengths could leave the range of the dtype.
        unit = nonzero(ops.max(ops.concatenate([lengths, roots])))
        squares = self.beta * state[0] * ops.square(roots / unit) + ops.square(lengths / unit)
        return ops.stack([number, unit * ops.sqrt(squares / number)])

    def _validate_main(self, main: int, count: int) -> None:
        if main >= count:
            raise invalid("main", f"the place of one of {count} terms, from 0", main)

    def _by_place(self, count, gramian):
        """Returns the main term, one-hot, and `tau` for each term, 0 for the main one."""
        for argument, value in (("main", self.main), ("tau", self.tau)):
            if isinstance(value, str | Mapping):
                expected = "no names, which are known in a layer only"
                raise invalid(argument, expected, value)
        self._validate_main(self.main, count)
        taus = self.tau if isinstance(self.tau, list) else [self.tau] * (count - 1)
        if len(taus) != count - 1:
            expected = f"{count - 1} numbers, one for each auxiliary term"
            raise invalid("tau", expected, self.tau)
        taus = [*taus[: self.main], 0.0, *taus[self.main :]]
        main = ops.one_hot(self.main, count, dtype=gramian.dtype)
        return main, ops.convert_to_tensor(taus, dtype=gramian.dtype)

    def get_config(self) -> Config:
        return {"main": self.main, "tau": self.tau, "beta": self.beta, **super().get_config()}
