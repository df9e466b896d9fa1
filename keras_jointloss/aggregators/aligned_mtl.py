"""Aligned-MTL: makes the gradients orthogonal and equally long before averaging."""

import keras
from keras import ops

from keras_jointloss._core.types import Tensor
from keras_jointloss.aggregators._gramian import active_terms, correlation, epsilon, product
from keras_jointloss.aggregators.preference import PreferenceAggregator


@keras.saving.register_keras_serializable(package="keras_jointloss")
class AlignedMTL(PreferenceAggregator):
    """Aligns the principal components of the gradients before averaging.

        w = sqrt(lambda_min) V L^(-1/2) V^T p

    with the eigenvalues `L` and eigenvectors `V` of `G`, and `p_i = 1 / k`. The result is the mean
    of the orthogonal gradients that are nearest to the given ones, each as long as the shortest
    principal component. Components within rounding error of 0 are left out. The rule therefore
    ignores terms whose gradients are shorter than the longest by a factor of about 1e5 in float32,
    or 1e13 in float64, although it takes its length from the shortest component.

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
        - Senushkin et al., 2023, Independent Component Alignment for Multi-Task Learning

    Example:

    >>> [round(float(x), 3) for x in AlignedMTL()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [0.213, 0.967, 0.967]
    """

    def coefficients(self, gramian: Tensor) -> Tensor:
        # The eigenvalues of G are the squares of the singular values of R, where G = R R^T. With
        # the lengths factored out, the rounding error does not depend on how much they differ.
        lengths, cosines = correlation(gramian)
        tolerance = 8 * gramian.shape[0] * epsilon(gramian)
        values, vectors = ops.eigh(cosines)
        values = ops.where(values > tolerance * ops.max(values), values, 0)
        active = ops.cast(active_terms(gramian), lengths.dtype)
        root = (active * lengths)[:, None] * vectors * ops.sqrt(values)
        vectors, values, _ = ops.svd(root)
        largest = ops.max(values)
        is_kept = values > tolerance * largest
        smallest = ops.min(ops.where(is_kept, values, largest))
        ratio = ops.where(is_kept, smallest / ops.where(is_kept, values, 1), 0)
        return product(vectors, ratio * product(ops.transpose(vectors), self.preferences(gramian)))
