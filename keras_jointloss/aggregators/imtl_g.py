"""IMTL-G: a combination whose projections on all gradients are equal."""

import keras
from keras import ops

from keras_jointloss._core.types import Tensor
from keras_jointloss.aggregators._gramian import (
    active_terms,
    at_least,
    correlation,
    epsilon,
    equal_projections,
)
from keras_jointloss.aggregators.base import Aggregator


@keras.saving.register_keras_serializable(package="keras_jointloss")
class IMTLG(Aggregator):
    """Impartial learning: the result has equal projections on all gradients.

        w = v / sum_i v_i,    v = G^+ sqrt(diag G)

    with the pseudo-inverse `G^+`. If the gradients are linearly independent,
    `g_i . J^T v / |g_i|` is the same for all `i`. Otherwise `v` is the least-squares solution in
    terms of the gradients scaled to length 1. Coefficients can be negative.

    Args:
        rescale: As in `Aggregator`. If true, the common projection is always positive. If false,
            the coefficients sum to 1, and the result opposes all gradients where the sum of
            `v` is negative.
        ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If `ema` is not a number >= 0 and < 1.

    References:
        - Liu et al., 2021, Towards Impartial Multi-task Learning

    Example:

    >>> jacobian = [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]
    >>> [round(float(x), 3) for x in IMTLG(rescale=False)(jacobian)]
    [0.077, 1.0, 1.0]
    """

    def __init__(self, rescale: bool = True, ema: float = 0.0):
        super().__init__(rescale=rescale, ema=ema)

    def coefficients(self, gramian: Tensor) -> Tensor:
        lengths, cosines = correlation(gramian)
        active = ops.cast(active_terms(gramian), cosines.dtype)
        result = active * equal_projections(cosines, active) / lengths
        total = ops.sum(result)
        least = cosines.shape[0] * epsilon(cosines) * ops.sum(abs(result))
        size = at_least(abs(total), least)
        size = ops.where(size > 0, size, ops.ones_like(size))
        return result / (size if self.rescale else ops.where(total < 0, -size, size))
