"""UPGrad: the mean of the gradients, each projected to conflict with none."""

import keras
from keras import ops

from keras_jointloss._core.types import Tensor
from keras_jointloss.aggregators._gramian import correlation, nonnegative_minimizer, regularize
from keras_jointloss.aggregators.preference import PreferenceAggregator


@keras.saving.register_keras_serializable(package="keras_jointloss")
class UPGrad(PreferenceAggregator):
    """Projects each gradient onto the directions without conflict, then averages.

        w = sum_i p_i v_i    where    v_i = argmin v^T G v    over    v >= e_i

    with `p_i = 1 / k` and the unit vector `e_i`. `J^T v_i` is the vector nearest to `g_i` that
    conflicts with no gradient, so the result conflicts with none either.

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
        - Quinton and Rey, 2024, Jacobian Descent for Multi-Objective Optimization

    Example:

    >>> [round(float(x), 3) for x in UPGrad()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [0.292, 1.901, 1.901]
    """

    def coefficients(self, gramian: Tensor) -> Tensor:
        lengths, cosines = correlation(gramian)
        # With v = e_i + u, in terms of unit vectors: x_j = u_j |g_j| / |g_i|.
        added = nonnegative_minimizer(regularize(cosines), cosines)  # (k, k), row i for g_i
        rows = ops.eye(gramian.shape[0], dtype=gramian.dtype) + added
        return ((self.preferences(gramian) * lengths)[None, :] @ rows)[0] / lengths
