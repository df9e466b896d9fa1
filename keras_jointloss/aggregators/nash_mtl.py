"""Nash-MTL: the bargaining solution in which all terms gain the same share."""

import keras
from keras import ops

from keras_jointloss._core.types import Tensor
from keras_jointloss.aggregators._gramian import correlation, epsilon, product, regularize
from keras_jointloss.aggregators.base import Aggregator

_MOST_ITERATIONS = 50  # Ten suffice, except for gradients that nearly cancel.


@keras.saving.register_keras_serializable(package="keras_jointloss")
class NashMTL(Aggregator):
    """Nash bargaining solution between the terms.

        G w = 1 / w    where    w > 0

    which is the minimum of `1/2 w^T G w - sum_i log w_i`.

    Among all `d` of its length, the combined gradient maximizes the product of the gains
    `g_i . d`, so it conflicts with no gradient. It is short or 0 where the gradients cancel in
    every bargain.

    Args:
        rescale: As in `Aggregator`. If false, the combined gradient has the length `sqrt(k)`,
            regardless of the scale of the gradients.
        ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If `ema` is not a number >= 0 and < 1.

    References:
        - Navon et al., 2022, Multi-Task Learning as a Bargaining Game

    Example:

    >>> [round(float(x), 3) for x in NashMTL()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [0.094, 1.223, 1.223]
    """

    degree = -1

    def __init__(self, rescale: bool = True, ema: float = 0.0):
        super().__init__(rescale=rescale, ema=ema)

    def coefficients(self, gramian: Tensor) -> Tensor:
        # In terms of unit vectors, y_i = w_i |g_i|, the lengths cancel out: C y = 1 / y.
        lengths, cosines = correlation(gramian)
        regular = regularize(cosines)
        count, precision = cosines.shape[0], epsilon(cosines)
        identity = ops.eye(count, dtype=cosines.dtype)

        def residual_of(matrix, y):
            return 1 - y * product(matrix, y)

        def scaled(y):
            """Returns the best multiple of `y` and its residual."""
            gains = y * product(regular, y)
            square = count / ops.sum(gains)
            return y * ops.sqrt(square), 1 - square * gains

        def newton(y, residual):
            hessian = y[:, None] * regular * y + identity
            direction = ops.solve(hessian, residual[:, None])[:, 0]  # relative to y
            decrement = ops.sqrt(ops.relu(ops.sum(residual * direction)))
            length = ops.where(decrement > 0.25, 1 / (1 + decrement), ops.ones_like(decrement))
            return y * (1 + length * direction)

        def goes_on(y, residual, last_error):
            error = ops.max(abs(residual))
            # The error falls until rounding dominates.
            is_falling = (error > 0.01) | (error < 0.5 * last_error)
            return (error > 8 * precision) & is_falling

        def step(y, residual, last_error):
            return *scaled(newton(y, residual)), ops.max(abs(residual))

        start = *scaled(ops.ones_like(lengths)), 2 * ops.ones((), dtype=cosines.dtype)
        y, _, _ = ops.while_loop(goes_on, step, start, maximum_iterations=_MOST_ITERATIONS)
        # A last step removes the effect of the regularization, if that reduces the residual.
        before = residual_of(cosines, y)
        last = newton(y, before)
        after = residual_of(cosines, last)
        is_nearer = (ops.min(last) > 0) & (ops.max(abs(after)) < ops.max(abs(before)))
        return ops.where(is_nearer, last, y) / lengths
