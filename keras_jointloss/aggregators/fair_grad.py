"""FairGrad: the gains of the terms are in proportion to a power of their coefficients."""

import keras
from keras import ops

from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.aggregators._gramian import correlation, epsilon, product, regularize
from keras_jointloss.aggregators.base import Aggregator

_MOST_ITERATIONS = 50  # Ten suffice, except for gradients that nearly cancel.


@keras.saving.register_keras_serializable(package="keras_jointloss")
class FairGrad(Aggregator):
    """Shares the gains between the terms with alpha-fairness.

        G w = w^(-1/alpha)    where    w > 0

    which is the minimum of `1/2 w^T G w - sum_i w_i^(1 - 1/alpha) / (1 - 1/alpha)`, a convex
    function. Among all `d` of its length, the combined gradient maximizes the sum of
    `(g_i . d)^(1 - alpha) / (1 - alpha)`, so it conflicts with no gradient. With `alpha` near 0
    it is the mean; 1 is proportional fairness, the bargain of `NashMTL`; a large `alpha` raises the
    smallest gain, as `MGDA` does. The combined gradient is short or 0 where the gradients cancel in
    every such division.

    Args:
        alpha: How much fairness counts, a number > 0.
        rescale: As in `Aggregator`. If false, the combined gradient `J^T w` has the length of the
            formula: its square is `sum_i w_i^(1 - 1/alpha)`.
        ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If `alpha` is not a number > 0, or `ema` is not a number >= 0 and < 1.

    References:
        - Ban and Ji, 2024, Fair Resource Allocation in Multi-Task Learning

    Example:

    >>> [round(float(x), 3) for x in FairGrad(2.0)([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [0.048, 1.224, 1.224]
    """

    def __init__(self, alpha: float = 1.0, rescale: bool = True, ema: float = 0.0):
        super().__init__(rescale=rescale, ema=ema)
        self.alpha = validate_number(alpha, "alpha", minimum=0, exclusive=True)
        #: The scale of the formula's solution.
        self.degree = -2 * self.alpha / (1 + self.alpha)

    def coefficients(self, gramian: Tensor) -> Tensor:
        return fair_coefficients(gramian, self.alpha)

    def get_config(self) -> Config:
        return {"alpha": self.alpha, **super().get_config()}


def fair_coefficients(gramian, alpha: float):
    """Returns the `w` > 0 with `G w = w^(-1/alpha)` by Newton's method.

    In terms of unit vectors, `y_i = w_i |g_i|`, the equation is `C y = b y^(-p)` with the cosines
    `C`, `p = 1/alpha` and `b_i = |g_i|^(p - 1)`. With `y = u v`, where `u^(1 + p) = b` solves it
    for orthogonal gradients, that is `v^p (C y) / u = 1`, and the lengths only enter through `u`.
    """
    lengths, cosines = correlation(gramian)
    regular = regularize(cosines)
    p, count, precision = 1 / alpha, cosines.shape[0], epsilon(cosines)
    identity = ops.eye(count, dtype=cosines.dtype)
    u = lengths ** ((p - 1) / (p + 1))

    def residual_of(matrix, v):
        return 1 - v**p * product(matrix, u * v) / u

    def scaled(v):
        """Returns the best multiple of `v` and its residual."""
        shares, gains = u**2 * v ** (1 - p), u * v * product(regular, u * v)
        power = ops.sum(shares) / ops.sum(gains)  # of the factor
        return v * power ** (1 / (1 + p)), 1 - power * gains / shares

    def newton(v, residual):
        root, scale = u * v ** ((1 - p) / 2), v ** ((1 + p) / 2)
        hessian = scale[:, None] * regular * scale + p * identity
        # Relative to v.
        direction = ops.solve(hessian, (root * residual)[:, None])[:, 0] / root
        # No longer than the function surely falls: its curvature grows where v does not.
        decline = ops.max(ops.relu(-direction))
        is_long = decline > 0.1
        decline = ops.where(is_long, decline, ops.ones_like(decline))
        shorter = (1 - (1 + p * decline) ** -alpha) / decline
        return v * (1 + ops.where(is_long, shorter, ops.ones_like(shorter)) * direction)

    def goes_on(v, residual, last_error):
        error = ops.max(abs(residual))
        # The error falls until rounding dominates.
        is_falling = (error > 0.01) | (error < 0.5 * last_error)
        return (error > 8 * precision) & is_falling

    def step(v, residual, last_error):
        next_v, remaining = scaled(newton(v, residual))
        # Powers of gradients that are too unlike leave the range of the dtype: end before.
        is_finite = ops.isfinite(ops.sum(remaining))
        remaining = ops.where(is_finite, remaining, ops.zeros_like(remaining))
        return ops.where(is_finite, next_v, v), remaining, ops.max(abs(residual))

    start = *scaled(ops.ones_like(lengths)), 2 * ops.ones((), dtype=cosines.dtype)
    v, _, _ = ops.while_loop(goes_on, step, start, maximum_iterations=_MOST_ITERATIONS)
    # A last step removes the effect of the regularization, if that reduces the residual.
    before = residual_of(cosines, v)
    last = newton(v, before)
    after = residual_of(cosines, last)
    is_nearer = (ops.min(last) > 0) & (ops.max(abs(after)) < ops.max(abs(before)))
    return u * ops.where(is_nearer, last, v) / lengths
