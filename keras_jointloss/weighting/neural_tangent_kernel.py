"""NeuralTangentKernel: larger weights for terms that learn slowly, by the tangent kernel."""

from typing import Unpack

import keras

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.weighting._gradient_lengths import InverseGradientRule
from keras_jointloss.weighting._options import Options


@keras.saving.register_keras_serializable(package="keras_jointloss")
class NeuralTangentKernel(InverseGradientRule):
    """Weighs the terms inversely to the traces of their neural tangent kernels.

    The eigenvalues of the kernel of a term are the rates at which its residuals decay, and the
    trace is their sum. It is estimated from the length `G_i` of the gradient of the loss without
    any weight,

        trace_i = G_i^2 / (4 loss_i)
        weight_i <- alpha weight_i + (1 - alpha) (sum_j trace_j^power) / trace_i^power

    In the first step the weights are 1. Scaling a loss by a constant does not change its share, if
    `power` is 1. The weights of the user multiply those of the rule.

    For a loss that is the mean of n squared residuals r, and the Jacobian J of these, the estimate
    is `|J^T r|^2 / (n |r|^2)`: a mean of the eigenvalues of the kernel `J J^T` in the directions of
    the residuals, over n, where the paper takes the sum of all of them. PhysicsNeMo has the same
    estimate, but weighs by its root: `power=0.5`, with `update_every=1000`. The class of this name
    in PINA weighs by the share of `G_i` itself, without a trace, and is not this rule.

    The lengths come from a `keras_jointloss.layers.GradientBalancer` or
    `keras_jointloss.layers.SharedTrunk`, as those of
    `keras_jointloss.weighting.InverseGradientNorm` do. For the kernel of the parameters take a
    `SharedTrunk`. On JAX, the lengths are those of the previous step, and so are the losses, unless
    the rule runs once in several steps. The weight of a term whose trace falls to 0 grows without
    end: set `max_weight`.

    Args:
        alpha: The weight of the previous weight in the next, >= 0 and < 1; 0 as in the paper. With
            small batches, a value such as 0.9 evens out the noise.
        power: The power of the trace: 1 as in the paper, 0.5 as in PhysicsNeMo.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If `alpha` is not such a number or `power` not a number > 0, and as in
            `Weighting`; at the start of `fit`, if no layer reports the gradients of all terms.
        RuntimeError: At the end of an epoch, if no gradient has reached that layer.

    References:
        - Wang, Yu and Perdikaris, 2022, When and Why PINNs Fail to Train: A Neural Tangent Kernel
          Perspective

    Example:

    >>> NeuralTangentKernel(power=0.5, update_every=1000).get_config()["power"]
    0.5
    """

    minimum_loss = 0.0

    def __init__(self, alpha: float = 0.0, power: float = 1.0, **kwargs: Unpack[Options]):
        super().__init__(alpha, **kwargs)
        self.power = validate_number(power, "power", 0, exclusive=True)
        # The measure is the root of the trace: its square may leave the range of the dtype.
        self.exponent = 2 * self.power

    def measure(self, lengths: Tensor, losses: Tensor) -> Tensor:
        return ops.divide_no_nan(lengths, 2 * ops.sqrt(ops.maximum(losses, 0)))

    def get_config(self) -> Config:
        return {**super().get_config(), "power": self.power}
