"""MGDA: the shortest convex combination of the gradients."""

from typing import Literal, TypeAlias

import keras
from keras import ops

from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_choice
from keras_jointloss.aggregators._gramian import (
    active_terms,
    at_least,
    correlation,
    epsilon,
    nonnegative_minimizer,
    regularize,
)
from keras_jointloss.aggregators.base import Aggregator

Normalization: TypeAlias = Literal["l2", "loss", "loss+"] | None
_NORMALIZATIONS = (None, "l2", "loss", "loss+")


@keras.saving.register_keras_serializable(package="keras_jointloss")
class MGDA(Aggregator):
    """Multiple-gradient descent: the shortest convex combination of the gradients.

        w = argmin w^T G w    over    w >= 0,    sum_i w_i = 1

    The result conflicts with no gradient: `g_i . J^T w >= |J^T w|^2`. It is 0 where no direction
    improves all terms. Short gradients dominate it unless they are normalized.

    Args:
        normalize: The divisors of the gradients in the search for the coefficients, which then
            apply to the original gradients: `None` for no division, `"l2"` for their lengths,
            `"loss"` for the losses, `"loss+"` for the products of both. Losses should be > 0.
        rescale, ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian. `losses`: `(k,)`,
        required with `"loss"` and `"loss+"`.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If `normalize` is none of these or `ema` is not a number >= 0 and < 1; when
            called, if required losses are missing.

    References:
        - Desideri, 2012, Multiple-Gradient Descent Algorithm (MGDA) for Multiobjective Optimization
        - Sener and Koltun, 2018, Multi-Task Learning as Multi-Objective Optimization

    Example:

    >>> import numpy as np
    >>> jacobian = np.array([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]], "float32")
    >>> [round(float(w), 3) for w in MGDA().solve(jacobian @ jacobian.T)]
    [0.6, 0.4]
    """

    def __init__(self, normalize: Normalization = None, rescale: bool = False, ema: float = 0.0):
        super().__init__(rescale=rescale, ema=ema)
        self.normalize = validate_choice(normalize, "normalize", _NORMALIZATIONS)
        self.inputs = ("losses",) if normalize in ("loss", "loss+") else ()

    def coefficients(self, gramian: Tensor, losses: Tensor | None = None) -> Tensor:
        lengths, cosines = correlation(gramian)
        # The lengths of the normalized gradients, whose shortest combination is computed.
        if self.normalize in ("l2", "loss+"):
            lengths = ops.ones_like(lengths)
        if losses is not None:
            lengths = lengths / at_least(losses, epsilon(losses) * ops.max(losses))

        # In terms of unit vectors, x_i = w_i |g_i|, the sum of w is q^T x with q_i = 1 / |g_i|.
        # The minimizer of x^T C x where q^T x = 1 has the same direction as the minimizer of
        # x^T C x + (q^T x - 1)^2, which is always bounded.
        is_active = active_terms(gramian)
        shortest = ops.min(ops.where(is_active, lengths, ops.max(lengths)))
        inverse = ops.where(is_active, shortest / lengths, ops.zeros_like(lengths))
        matrix = regularize(cosines) + inverse[:, None] * inverse[None, :]
        result = nonnegative_minimizer(matrix, -inverse[None, :])[0] * inverse
        return result / ops.sum(result)

    def get_config(self) -> Config:
        return {"normalize": self.normalize, **super().get_config()}
