"""Nash-MTL: the bargaining solution in which all terms gain the same share."""

import keras

from keras_jointloss._core.types import Tensor
from keras_jointloss.aggregators.base import Aggregator
from keras_jointloss.aggregators.fair_grad import fair_coefficients


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
        return fair_coefficients(gramian, alpha=1.0)
