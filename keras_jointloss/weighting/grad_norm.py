"""GradNorm: balances the gradient lengths so that all terms learn at the same rate."""

from typing import ClassVar, Unpack

import keras
import numpy as np

from keras_jointloss._core.adam import ADAM_STATE, adam_step
from keras_jointloss._core.math import mean, mean_where
from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.weighting._gradient_lengths import GradientRule
from keras_jointloss.weighting._options import Options


@keras.saving.register_keras_serializable(package="keras_jointloss")
class GradNorm(GradientRule):
    """Weighs the terms so that those that have learned less have longer gradients.

    With the lengths `G_i` of the gradients of the weighted terms, their mean `G`, and the relative
    inverse training rate of a term

        r_i = (loss_i / loss_i(0)) / mean_j (loss_j / loss_j(0))

    the weights follow gradient descent on

        sum_i | G_i - G r_i^alpha |

    in which `G r_i^alpha` is held constant. The weights are `k softmax(x)_i` for k terms, so they
    stay positive and sum to k, which the paper achieves by division. Adam updates `x`, and lengths
    are in units of `G`, so neither the scale of the losses nor the batch size matters.

    The lengths come from a layer of the model that reports the gradients of all terms: a
    `keras_jointloss.layers.GradientBalancer` or, at the level of parameters, a
    `keras_jointloss.layers.SharedTrunk`, whose `terms` have the same names as here. With
    `aggregator=None` that layer changes nothing else. GradNorm therefore needs no additional
    backward pass. On JAX the lengths are those of the previous step. A term without gradient in a
    step keeps its logit `x_i` and is excluded from `G`. Several losses of one output have one
    gradient at that layer, so each needs an output of its own:
    `keras.layers.Identity(name=term)(head(z[term]))`.

    Args:
        alpha: How strongly terms that have learned less get longer gradients; 0 for equal lengths.
        learning_rate: The learning rate of Adam.
        **kwargs: As in `Weighting`. With `warmup_steps`, `loss_i(0)` is the first loss after these.

    Raises:
        ValueError: If `alpha` is not a number >= 0 or `learning_rate` not a number > 0, and as in
            `Weighting`; at the start of `fit`, if no layer reports the gradients of all terms.
        RuntimeError: At the end of an epoch, if no gradient has reached that layer, for example
            because the trunk of a `SharedTrunk` is frozen.

    References:
        - Chen et al., 2018, GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
          Multitask Networks

    Example:

    >>> GradNorm(alpha=0.5).get_config()["alpha"]
    0.5
    """

    initial_state: ClassVar = {
        "logit": 0.0,
        **ADAM_STATE,
        "initial_loss": float("inf"),  # None yet.
        "training_rate": 1.0,
        # The number of the last gradient record used.
        "number": 0.0,
    }
    nonnegative_state: ClassVar = frozenset(
        {"second_moment", "updates", "initial_loss", "training_rate", "number"}
    )
    minimum_loss = 0.0
    small_weight_remedy = (
        "The logarithms of the weights move by about `learning_rate` in a step: raise it, or bring "
        "the losses nearer to each other with the `weights` of `joint_loss`."
    )

    def __init__(self, alpha: float = 1.5, learning_rate: float = 0.025, **kwargs: Unpack[Options]):
        super().__init__(**kwargs)
        self.alpha = validate_number(alpha, "alpha", minimum=0)
        self.learning_rate = validate_number(learning_rate, "learning_rate", 0, exclusive=True)

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        state = self.state
        number, lengths = self.latest_lengths()
        is_there = lengths > 0
        is_new = ops.logical_and(is_there, ops.not_equal(number, state["number"]))
        initial = state["initial_loss"]
        initial = ops.where(ops.isfinite(initial), initial, losses)
        remaining = ops.divide_no_nan(losses, initial)
        rate = ops.divide_no_nan(remaining, mean(remaining))
        # In units of their mean.
        lengths = ops.divide_no_nan(lengths, mean_where(lengths, is_there, axis=0))
        sign = ops.sign(lengths - ops.power(rate, self.alpha))
        slope = sign * lengths
        gradient = slope - ops.softmax(state["logit"]) * ops.sum(slope)
        logit = state["logit"] - adam_step(state, gradient, self.learning_rate, is_new)
        state.update({"logit": logit, "initial_loss": initial, "training_rate": rate})
        state["number"] = number + ops.zeros_like(logit)
        return len(self.terms) * ops.softmax(logit)

    def readout(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"training_rate": state["training_rate"]}

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "alpha": self.alpha,
            "learning_rate": self.learning_rate,
        }
