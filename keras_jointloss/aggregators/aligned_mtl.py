"""Aligned-MTL: gradients made orthogonal and of one length first."""

import keras
from keras import ops

from keras_jointloss.aggregators._gramian import epsilon, product
from keras_jointloss.aggregators.base import PreferenceAggregator


@keras.saving.register_keras_serializable(package="keras_jointloss")
class AlignedMTL(PreferenceAggregator):
    """Aligns the principal components of the gradients before it averages.

    `w = sqrt(lambda_min) V L^(-1/2) V^T p`

    with the eigenvalues `L` and eigenvectors `V` of `G`, and `p_i = 1 / k`: the mean of the
    orthogonal gradients that are nearest to the given ones, as long as the shortest principal
    component. Components that rounding cannot tell from 0 are left out. As the rule takes its
    length from the shortest component, that means: of terms whose gradients are shorter than the
    longest by a factor of about 1e3 in float32, or 1e7 in float64, it knows nothing.

    Args:
        preference: The `p`, as in `PreferenceAggregator`.
        rescale: As in `Aggregator`.
        ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, a gradient in each row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: As in `PreferenceAggregator`.

    References:
        - Senushkin et al., 2023, Independent Component Alignment for Multi-Task Learning

    Example:

    >>> [round(float(x), 3) for x in AlignedMTL()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [0.213, 0.967, 0.967]
    """

    def coefficients(self, gramian):
        values, vectors = ops.eigh(gramian)
        largest = ops.max(values)
        is_kept = values > 8 * gramian.shape[0] * epsilon(gramian) * largest
        values = ops.where(is_kept, values, largest)
        smallest = ops.min(values)
        ratio = ops.where(is_kept, ops.sqrt(smallest / values), ops.zeros_like(values))
        return product(vectors, ratio * product(ops.transpose(vectors), self.shares(gramian)))
