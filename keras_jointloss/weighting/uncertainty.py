"""Uncertainty: weights each term by the noise of its task."""

from collections.abc import Mapping
from typing import ClassVar, Unpack

import keras
import numpy as np

from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_bool, validate_number
from keras_jointloss.weighting._options import OptionsWithLimits
from keras_jointloss.weighting.base import Weighting

#: Smaller losses count as this.
_SMALLEST_LOSS = 1e-12


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Uncertainty(Weighting):
    """Weighs each term by the learned precision of its task.

    With the logarithm `s_i` of the variance of task i, the objective is

        sum_i 1/2 exp(-s_i) loss_i + 1/2 s_i

    The model minimizes it over its parameters, hence `weight_i = 1/2 exp(-s_i)`. The rule minimizes
    it over `s`, with one step of gradient descent per training step, starting at `s = 0`:

        s_i <- s_i - learning_rate * 1/2 (1 - exp(-s_i) loss_i)

    A step that would go past the minimizer `log(loss_i)` ends there. A large loss thus contributes
    its share, 1/2, from the second step on. The weight of a small loss grows by at most the factor
    `exp(learning_rate / 2)` in a step: with the default, that of a loss of 1e-3 takes 550 steps.

    With `analytic=True`, `s_i` is the minimizer `log(loss_i)` itself, for the smoothed loss: a loss
    of any size contributes its share from the second step on.

    In the first step all weights are 1/2: the gradient of a loss of 1e5 is 1e5 times as long as
    later. Optimizers such as Adam remember it for thousands of steps. Give them a
    `global_clipnorm`, or scale such a loss or its targets.

    The logs include `<term>_noise`, `exp(s_i / 2)`: the standard deviation of the task's noise if
    its loss is a mean squared error. The weight of a loss that approaches 0 grows until the loss
    counts as 1e-12, unless `max_weight` limits it.

    Args:
        learning_rate: The step size for `s`.
        analytic: Whether `s` is the minimizer for the smoothed losses.
        ema: The smoothing of the losses, >= 0 and < 1; by default 0.9 with `analytic`, else 0.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If `learning_rate` is not a number > 0, and as in `Weighting`.

    References:
        - Kendall, Gal and Cipolla, 2018, Multi-Task Learning Using Uncertainty to Weigh Losses for
          Scene Geometry and Semantics

    Example:

    >>> Uncertainty().initial_weight(2)
    0.5
    """

    initial_state: ClassVar = {"log_variance": 0.0}
    minimum_loss = 0.0
    small_weight_remedy = (
        "Its loss fell faster than its weight grows: set `analytic=True`, a larger `learning_rate` "
        "or `min_weight`."
    )

    def __init__(
        self,
        learning_rate: float = 0.025,
        analytic: bool = False,
        ema: float | None = None,
        **kwargs: Unpack[OptionsWithLimits],
    ):
        super().__init__(ema=(0.9 if analytic else 0.0) if ema is None else ema, **kwargs)
        self.learning_rate = validate_number(learning_rate, "learning_rate", 0, exclusive=True)
        self.analytic = validate_bool(analytic, "analytic")

    def initial_weight(self, count: int) -> float:
        return 0.5

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        losses = ops.maximum(losses, _SMALLEST_LOSS)
        minimizer = log_variance = ops.log(losses)
        if not self.analytic:
            ratio = ops.exp(-self.state["log_variance"]) * losses
            decrement = self.learning_rate * (0.5 * (1 - ratio))
            # Both from the same ratio, so that rounding near the minimizer is no step past it.
            is_past = ops.abs(decrement) > ops.abs(ops.log(ratio))
            descended = self.state["log_variance"] - decrement
            log_variance = ops.where(is_past, minimizer, descended)
        self.state["log_variance"] = log_variance
        return 0.5 * ops.exp(-log_variance)

    def describe_limit(self, losses: Mapping[str, float], forgets: bool) -> str | None:
        largest = max(losses, key=losses.__getitem__, default=None)
        if forgets or largest is None or losses[largest] < 1e3 or int(to_numpy(self.epoch)) > 1:
            return None
        return (
            f"the loss of the term {largest!r} is {losses[largest]:.3g}. With the weight of the "
            "first step, its gradient was about as many times as long as later. Optimizers such as "
            "Adam remember it for thousands of steps, in which they hardly train. Set "
            "`global_clipnorm=1.0` in the optimizer, or scale that loss or its targets."
        )

    def readout(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"noise": np.exp(state["log_variance"] / 2)}

    def get_config(self) -> Config:
        config = super().get_config()
        return {**config, "learning_rate": self.learning_rate, "analytic": self.analytic}
