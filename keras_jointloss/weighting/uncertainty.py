"""Uncertainty: weights each term by the noise of its task."""

from collections.abc import Mapping
from typing import ClassVar, Unpack

import keras
import numpy as np

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import invalid, validate_bool, validate_number
from keras_jointloss.weighting._log_variance import SMALLEST_LOSS, descend
from keras_jointloss.weighting._options import OptionsWithLimits
from keras_jointloss.weighting._remedies import describe_first_gradient
from keras_jointloss.weighting.base import Weighting


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

    With `softmax=True`, the weights are the softmax of the inverse losses (UW-SO):

        weight_i = softmax_i(1 / (temperature loss_i))

    They sum to 1; in the first step they are 1/k for k terms. The smallest loss has the largest
    weight. The size of the losses decides how much: a `temperature` of the size of the inverse
    losses keeps the weights near each other, and a much smaller one leaves all to the smallest
    loss. The paper searches for the temperature of each problem.

    Without `softmax`, all weights are 1/2 in the first step: the gradient of a loss of 1e5 is 1e5
    times as long as later. Optimizers such as Adam remember it for thousands of steps. Give them a
    `global_clipnorm`, or scale such a loss or its targets.

    The logs include `<term>_noise`, `exp(s_i / 2)`: the standard deviation of the task's noise if
    its loss is a mean squared error. The weight of a loss that approaches 0 grows until the loss
    counts as 1e-12, unless `max_weight` limits it.

    Args:
        learning_rate: The step size for `s`.
        analytic: Whether `s` is the minimizer for the smoothed losses.
        ema: The smoothing of the losses, >= 0 and < 1; by default 0.9 with `analytic`, else 0.
        softmax: Whether the weights are the softmax of the inverse losses. Not with `analytic`.
        temperature: With `softmax`, larger values make the weights more equal.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If `learning_rate` or `temperature` is not a number > 0, if both `analytic` and
            `softmax` are set, and as in `Weighting`.

    References:
        - Kendall, Gal and Cipolla, 2018, Multi-Task Learning Using Uncertainty to Weigh Losses for
          Scene Geometry and Semantics
        - Kirchdorfer et al., 2024, Analytical Uncertainty-Based Loss Weighting in Multi-Task
          Learning (`softmax`)

    Example:

    >>> Uncertainty().initial_weight(2)
    0.5
    """

    initial_state: ClassVar = {"log_variance": 0.0}
    minimum_loss = 0.0
    small_weight_remedy = (
        "Its loss fell faster than its weight grows: set `analytic=True`, a larger `learning_rate` "
        "or `min_weight`; with `softmax`, a larger `temperature`."
    )

    def __init__(
        self,
        learning_rate: float = 0.025,
        analytic: bool = False,
        ema: float | None = None,
        softmax: bool = False,
        temperature: float = 1.0,
        **kwargs: Unpack[OptionsWithLimits],
    ):
        analytic = validate_bool(analytic, "analytic")
        super().__init__(ema=(0.9 if analytic else 0.0) if ema is None else ema, **kwargs)
        self.learning_rate = validate_number(learning_rate, "learning_rate", 0, exclusive=True)
        self.analytic = analytic
        self.softmax = validate_bool(softmax, "softmax")
        self.temperature = validate_number(temperature, "temperature", 0, exclusive=True)
        if self.analytic and self.softmax:
            raise invalid("softmax", "False with `analytic`", softmax)

    def initial_weight(self, count: int) -> float:
        return 1.0 / count if self.softmax else 0.5

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        losses = ops.maximum(losses, SMALLEST_LOSS)
        if self.analytic or self.softmax:
            log_variance = ops.log(losses)
        else:
            log_variance = descend(self.state["log_variance"], losses, 0.5 * self.learning_rate)
        self.state["log_variance"] = log_variance
        if self.softmax:
            return ops.softmax(1 / (self.temperature * losses))
        return 0.5 * ops.exp(-log_variance)

    def describe_limit(self, losses: Mapping[str, float], forgets: bool) -> str | None:
        return None if self.softmax else describe_first_gradient(self, losses, forgets)

    def readout(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"noise": np.exp(state["log_variance"] / 2)}

    def get_config(self) -> Config:
        options = ("learning_rate", "analytic", "softmax", "temperature")
        return {**super().get_config(), **{name: getattr(self, name) for name in options}}
