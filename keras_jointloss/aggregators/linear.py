"""Sum and mean of the gradients."""

import keras
from keras import ops

from keras_jointloss._core.types import Tensor
from keras_jointloss.aggregators.base import Aggregator
from keras_jointloss.aggregators.preference import PreferenceAggregator


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Sum(Aggregator):
    """Sums the gradients, as training on the sum of the losses does.

        w_i = 1

    Args:
        rescale, ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If `ema` is not a number >= 0 and < 1.

    Example:

    >>> [float(x) for x in Sum()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [2.0, 2.0, 2.0]
    """

    def coefficients(self, gramian: Tensor) -> Tensor:
        return ops.ones_like(gramian[0])


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Mean(PreferenceAggregator):
    """Averages the gradients.

        w_i = 1/k    or, with a preference,    w_i = p_i / sum_j p_j

    Args:
        preference, rescale, ema: As in `PreferenceAggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: As in `PreferenceAggregator`.

    Example:

    >>> [float(x) for x in Mean()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [1.0, 1.0, 1.0]
    """

    def coefficients(self, gramian: Tensor) -> Tensor:
        return self.preferences(gramian)
