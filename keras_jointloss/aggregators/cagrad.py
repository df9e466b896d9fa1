"""CAGrad: maximizes the smallest gain of a term, near the mean gradient."""

import keras
from keras import ops

from keras_jointloss._core.types import Config, Numbers, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.aggregators._gramian import (
    active_terms,
    at_least,
    correlation,
    epsilon,
    first_right,
    length,
    nonnegative_minimizer,
    optimality_error,
    product,
    regularize,
    restricted_solutions,
)
from keras_jointloss.aggregators.preference import PreferenceAggregator

_MOST_ITERATIONS = 20  # Three to six suffice, except for gradients that nearly cancel.


@keras.saving.register_keras_serializable(package="keras_jointloss")
class CAGrad(PreferenceAggregator):
    """Conflict-averse descent: maximizes the smallest gain of a term, near the mean gradient.

        max over d of min_i g_i . d    where    |d - g_0| <= c |g_0|,    g_0 = sum_i b_i g_i

    with `b_i = 1 / k`. By duality `d = J^T (b + c |g_0| / |J^T w| w)`, where `w` minimizes
    `w^T G b + c |g_0| |J^T w|` over `w >= 0`, `sum_i w_i = 1`. A single gradient stays unchanged.

    Args:
        c: The largest distance from the mean gradient, a number >= 0, relative to its length. 0
            gives the mean itself; with 1 or more, the result conflicts with no gradient.
        preference: The `b`, as in `PreferenceAggregator`.
        rescale, ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If `c` is not a number >= 0, and as in `PreferenceAggregator`.

    References:
        - Liu et al., 2021, Conflict-Averse Gradient Descent for Multi-Task Learning

    Example:

    >>> [round(float(x), 3) for x in CAGrad()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [0.184, 1.204, 1.204]
    """

    def __init__(
        self,
        c: float = 0.5,
        preference: Numbers | None = None,
        rescale: bool = False,
        ema: float = 0.0,
    ):
        super().__init__(preference=preference, rescale=rescale, ema=ema)
        self.c = validate_number(c, "c", minimum=0)

    def coefficients(self, gramian: Tensor) -> Tensor:
        shares = self.preferences(gramian)
        if not self.c:
            return shares
        lengths, cosines = correlation(gramian)
        parts = shares * lengths
        mean_length = length(parts, cosines)  # |g_0|
        # The direction of a mean that cancels is only rounding error.
        least = gramian.shape[0] * epsilon(gramian) * ops.sum(parts)
        target = product(cosines, parts) / at_least(mean_length, least)
        is_active = active_terms(gramian)
        shortest = ops.min(ops.where(is_active, lengths, ops.max(lengths)))
        inverse = ops.where(is_active, shortest / lengths, ops.zeros_like(lengths))
        added = self._added(regularize(cosines), target, inverse, is_active)
        is_single = ops.sum(ops.cast(is_active, lengths.dtype)) <= 1
        added = ops.where(is_single, ops.zeros_like(added), added)
        return shares + mean_length * added / lengths

    def _added(self, cosines, target, inverse, is_active):
        """Returns the `x >= 0` that, added to the mean, gives `d / |g_0|`.

        All quantities are in terms of unit vectors `u_i` and in units of `|g_0|`. Among the `d`
        with all `g_i . d >= t`, the nearest to the mean is given by `x(t)`, the minimizer of
        `1/2 x^T C x + x^T (p - t q)`, where `p_i = u_i . g_0` and `q_i = 1 / |g_i|`. Its distance
        from the mean is a convex function of `t`; the solution is the `t` with distance `c`. If
        the `x_i` that are free to exceed 0 are known, it solves a quadratic equation. If guessing
        them does not converge, Newton's method descends to `t`. It uses the derivative of the
        distance, `q^T x / distance`.
        """
        # No term gains more than along its own gradient, so this is not below the solution.
        bounds = (target + self.c) / ops.where(is_active, inverse, ops.ones_like(inverse))
        bound = ops.min(ops.where(is_active, bounds, ops.max(bounds)))
        tolerance = 64 * epsilon(cosines) * self.c

        def guess(is_free, x):
            # x = t u - v
            right = ops.stack([inverse, target])
            solutions = restricted_solutions(cosines, right, ops.concatenate([is_free, is_free]))
            u, v = solutions[:1], solutions[1:]
            products = solutions @ ops.transpose(right)
            a, b, d = products[0, 0], products[0, 1], products[1, 1]
            t = (b + ops.sqrt(ops.relu(b * b - a * (d - self.c**2)))) / a
            x, linear = t * u - v, target - t * inverse
            z = x @ cosines + linear
            is_optimal = optimality_error(x, z) <= 16 * epsilon(x) * ops.max(abs(linear))
            distance = ops.sqrt(ops.relu(ops.sum(x * (z - linear))))
            is_right = is_optimal[0, 0] & (abs(distance - self.c) <= tolerance)
            return x > z, x, ~is_right

        def goes_on(t, x, distance):
            return abs(distance - self.c) > tolerance

        def step(t, x, distance):
            x = nonnegative_minimizer(cosines, (target - t * inverse)[None, :])
            distance = length(x[0], cosines)
            slope = ops.sum(inverse * x)
            slope = ops.where(slope > 0, slope, ops.ones_like(slope))
            return t - (distance - self.c) * distance / slope, x, distance

        def descended():
            start = bound, ops.zeros_like(is_free, dtype=cosines.dtype), ops.zeros_like(bound)
            return ops.while_loop(goes_on, step, start, maximum_iterations=_MOST_ITERATIONS)[1]

        is_free = (target < bound * inverse)[None, :]
        start = is_free, ops.zeros_like(inverse)[None, :], ops.any(is_active)
        x = ops.relu(first_right(guess, start, descended)[0])
        return x * (self.c / at_least(length(x, cosines), epsilon(x)))

    def get_config(self) -> Config:
        return {"c": self.c, **super().get_config()}
