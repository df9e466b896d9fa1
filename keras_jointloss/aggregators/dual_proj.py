"""DualProj: the mean of the gradients, projected to conflict with none."""

import keras

from keras_jointloss._core.types import Tensor
from keras_jointloss.aggregators._gramian import (
    correlation,
    nonnegative_minimizer,
    product,
    regularize,
)
from keras_jointloss.aggregators.preference import PreferenceAggregator


@keras.saving.register_keras_serializable(package="keras_jointloss")
class DualProj(PreferenceAggregator):
    """Projects the mean of the gradients onto the directions without conflict.

        w = argmin w^T G w    over    w >= p

    with `p_i = 1 / k`. `J^T w` is the vector nearest to the mean `J^T p` that conflicts with no
    gradient. It is the mean itself if that conflicts with none, and 0 where no direction improves
    all terms. `UPGrad` projects each gradient instead, and then averages.

    Args:
        preference: The `p`, as in `PreferenceAggregator`.
        rescale, ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: As in `PreferenceAggregator`.

    References:
        - Lopez-Paz and Ranzato, 2017, Gradient Episodic Memory for Continual Learning (the
          projection of a gradient)

    Example:

    >>> [round(float(x), 3) for x in DualProj()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [0.556, 1.111, 1.111]
    """

    def coefficients(self, gramian: Tensor) -> Tensor:
        lengths, cosines = correlation(gramian)
        # With w = p + u, in terms of unit vectors: x_i = u_i |g_i|.
        parts = self.preferences(gramian) * lengths
        linear = product(cosines, parts)[None, :]
        return (parts + nonnegative_minimizer(regularize(cosines), linear)[0]) / lengths
