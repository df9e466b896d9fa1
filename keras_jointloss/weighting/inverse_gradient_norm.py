"""InverseGradientNorm: all terms contribute equally long gradients."""

from typing import Unpack

import keras

from keras_jointloss._core.types import Tensor
from keras_jointloss.weighting._gradient_lengths import InverseGradientRule
from keras_jointloss.weighting._options import Options


@keras.saving.register_keras_serializable(package="keras_jointloss")
class InverseGradientNorm(InverseGradientRule):
    """Weighs the terms inversely to the lengths of their gradients.

    With the lengths `G_i` of the gradients of the losses without any weight,

        weight_i <- alpha weight_i + (1 - alpha) (sum_j G_j) / G_i

    so that all terms contribute equally long gradients once the mean has settled; in the first step
    the weights are 1. Scaling a loss by a constant does not change its share. The weights of the
    user multiply those of the rule: they are the ratios of the lengths.

    This is the weighting by gradient norms of the guide of Wang et al. (2023), with a moving mean;
    `SelfAdaptiveWeighting` of PINA is `alpha=0`. It is not the annealing of Wang, Teng and
    Perdikaris (2021), which divides the largest *entry* of the gradient of one term by the mean
    absolute entry of that of another: no layer here reports entries.

    The lengths come from a layer of the model that reports the gradients of all terms: a
    `keras_jointloss.layers.GradientBalancer` or, at the level of parameters, a
    `keras_jointloss.layers.SharedTrunk`, whose `terms` have the same names as here. With
    `aggregator=None` that layer changes nothing else, and no additional backward pass is needed.
    The paper takes the gradients of all parameters; those of the heads are not among them here. On
    JAX the lengths are those of the previous step. A term without gradient in a step keeps its
    weight, and its last length counts in the sum. Several losses of one output have one gradient
    at that layer, so each needs an output of its own:
    `keras.layers.Identity(name=term)(head(z[term]))`.

    The weight of a loss that reaches 0, and its gradient with it, grows without end: set
    `max_weight`.

    Args:
        alpha: The weight of the previous weight in the next, >= 0 and < 1.
        **kwargs: As in `Weighting`. The paper has `update_every=1000`.

    Raises:
        ValueError: If `alpha` is not such a number, and as in `Weighting`; at the start of `fit`,
            if no layer reports the gradients of all terms.
        RuntimeError: At the end of an epoch, if no gradient has reached that layer.

    References:
        - Wang et al., 2023, An Expert's Guide to Training Physics-Informed Neural Networks

    Example:

    >>> InverseGradientNorm(update_every=1000, max_weight=1e4).get_config()["alpha"]
    0.9
    """

    def __init__(self, alpha: float = 0.9, **kwargs: Unpack[Options]):
        super().__init__(alpha, **kwargs)

    def measure(self, lengths: Tensor, losses: Tensor) -> Tensor:
        return lengths
