"""GeometricMean: the gradient of the geometric mean of the losses."""

import keras
from keras import ops

from keras_jointloss.weighting.base import Weighting


@keras.saving.register_keras_serializable(package="keras_jointloss")
class GeometricMean(Weighting):
    """Weighs the terms to minimize the geometric mean of their losses.

    With k terms, the gradient of `(prod_i loss_i)^(1/k)` is that of `sum_i weight_i loss_i` for

        weight_i = (prod_j loss_j)^(1/k) / (k loss_i)

    with the losses of the previous step, or smoothed losses. The weights are not normalized to a
    fixed sum; in the first step they are 1/k. A loss scaled by a constant contributes the same
    share. Losses below `keras.config.epsilon()` count as that.

    Args:
        **kwargs: As in `Weighting`.

    References:
        - Chennupati et al., 2019, MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss
          Strategy for Multi-Task Learning

    Example:

    >>> GeometricMean().initial_weight(4)
    0.25
    """

    minimum_loss = 0.0

    def initial_weight(self, count):
        return 1.0 / count

    def update(self, losses, step):
        count = len(self.terms)
        logarithms = ops.log(ops.maximum(losses, keras.config.epsilon()))
        return ops.exp(ops.sum(logarithms) / count - logarithms) / count
