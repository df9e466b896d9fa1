"""ConFIG: equal cosines with all gradients, as long as the sum of the projections."""

import keras
from keras import ops

from keras_jointloss._core.types import Tensor
from keras_jointloss.aggregators._gramian import (
    active_terms,
    at_least,
    correlation,
    epsilon,
    equal_projections,
    nonzero,
    product,
)
from keras_jointloss.aggregators.preference import PreferenceAggregator


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ConFIG(PreferenceAggregator):
    """Conflict-free update: the same cosine with all gradients.

        u = d / |d|,    d = sum_i c_i g_i / |g_i|    where    C c = p

    with the cosines `C` between the gradients and `p_i = 1`. The combined gradient is
    `(sum_i g_i . u) u`. If the gradients are linearly independent, its cosines with them are in
    proportion to `p`, so it conflicts with none. Otherwise `c` is the least-squares solution, and
    it can. The direction is that of `IMTLG`; the length is the sum of the projections of all
    gradients on it, so it is short where they conflict and that of the sum where they agree. The
    result is 0 where the gradients cancel, as two opposed ones do.

    Args:
        preference: The `p`, as in `PreferenceAggregator`: the ratios of the cosines.
        rescale, ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: As in `PreferenceAggregator`.

    References:
        - Liu et al., 2024, ConFIG: Towards Conflict-free Training of Physics Informed Neural
          Networks

    Example:

    >>> [round(float(x), 3) for x in ConFIG()([[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]])]
    [0.159, 2.071, 2.071]
    """

    def coefficients(self, gramian: Tensor) -> Tensor:
        lengths, cosines = correlation(gramian)
        targets = self.preferences(gramian)
        targets = targets / nonzero(ops.max(targets))
        # Other terms than these can have parts, too, but none that is absent.
        active = ops.cast(active_terms(gramian), cosines.dtype)
        parts = active * equal_projections(cosines, targets)
        # |d|^2, in units of the sum of the parts. A square below `least` is only rounding error.
        parts = parts / nonzero(ops.sum(abs(parts)))
        products = product(cosines, parts)
        least = 4 * cosines.shape[0] * epsilon(cosines)
        square = at_least(ops.sum(parts * products), least)
        return parts * (ops.sum(active * lengths * products) / square) / lengths
