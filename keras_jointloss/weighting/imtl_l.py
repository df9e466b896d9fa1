"""IMTLL: each term contributes the same to the total."""

from collections.abc import Mapping
from typing import ClassVar, Unpack

import keras

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.weighting._log_variance import SMALLEST_LOSS, descend
from keras_jointloss.weighting._options import Options
from keras_jointloss.weighting._remedies import describe_first_gradient
from keras_jointloss.weighting.base import Weighting


@keras.saving.register_keras_serializable(package="keras_jointloss")
class IMTLL(Weighting):
    """Weighs the terms so that each contributes 1 to the total: the losses part of IMTL.

    With a learned number `s_i` for each term, the objective is

        sum_i exp(s_i) loss_i - s_i

    The model minimizes it over its parameters, hence `weight_i = exp(s_i)`. The rule minimizes it
    over `s`, with one step of gradient descent per training step, starting at `s = 0`:

        s_i <- s_i - learning_rate (exp(s_i) loss_i - 1)

    A step that would go past the minimizer `-log(loss_i)`, where the weight is `1 / loss_i`, ends
    there. The weight of a loss below 1 grows by at most the factor `exp(learning_rate)` in a step.
    This is the objective of `Uncertainty` times 2, with `s` for minus the logarithm of the
    variance: at the minimizer, the weights are twice those of `Uncertainty`.

    The gradients part of IMTL is the aggregator `keras_jointloss.aggregators.IMTLG`; the hybrid of
    the paper is both at once.

    In the first step all weights are 1: the gradient of a loss of 1e5 is 1e5 times as long as
    later. Optimizers such as Adam remember it for thousands of steps. Give them a
    `global_clipnorm`, or scale such a loss or its targets. The weight of a loss that approaches 0
    grows until the loss counts as 1e-12, unless `max_weight` limits it.

    Args:
        learning_rate: The step size for `s`.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If `learning_rate` is not a number > 0, and as in `Weighting`.

    References:
        - Liu et al., 2021, Towards Impartial Multi-Task Learning

    Example:

    >>> IMTLL(learning_rate=0.1).get_config()["learning_rate"]
    0.1
    """

    initial_state: ClassVar = {"log_scale": 0.0}
    minimum_loss = 0.0
    small_weight_remedy = (
        "Its loss fell faster than its weight grows: set a larger `learning_rate` or `min_weight`."
    )

    def __init__(self, learning_rate: float = 0.025, **kwargs: Unpack[Options]):
        super().__init__(**kwargs)
        self.learning_rate = validate_number(learning_rate, "learning_rate", 0, exclusive=True)

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        losses = ops.maximum(losses, SMALLEST_LOSS)
        scale = -descend(-self.state["log_scale"], losses, self.learning_rate)
        self.state["log_scale"] = scale
        return ops.exp(scale)

    def describe_limit(self, losses: Mapping[str, float], forgets: bool) -> str | None:
        return describe_first_gradient(self, losses, forgets)

    def get_config(self) -> Config:
        return {**super().get_config(), "learning_rate": self.learning_rate}
