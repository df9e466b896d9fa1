"""Self-adaptive weights: multipliers that are trained to make the loss larger."""

from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.adam import ADAM_STATE, adam_step
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.points.base import PointRule


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SelfAdaptive(PointRule):
    """Trains a multiplier of each point against the network (SA-PINN).

    The loss is the mean of `(l_j r_j)^2`, as with `Residual`: `w_j = l_j^2`. Adam moves the
    multipliers `l_j` of the points in the batch up its gradient, `2 l_j r_j^2`, so that they grow
    as long as the residual is not 0, and fastest where it falls least. They have no bound: lower
    the learning rate of the network if the training becomes unstable.

    Args:
        learning_rate: The learning rate of Adam, > 0.
        initial: The multipliers before the first step, > 0. The paper draws them from 0 to 1.

    Raises:
        ValueError: If an argument is out of range.

    References:
        - McClenny and Braga-Neto, 2020, Self-Adaptive Physics-Informed Neural Networks using a Soft
          Attention Mechanism

    Example:

    >>> rule = SelfAdaptive(learning_rate=0.5)
    >>> state = rule.update(rule.initial_state(2), [0.0, 3.0], [True, True])
    >>> [round(float(x), 3) for x in rule.weights(state)]
    [1.0, 2.25]
    """

    minimum: ClassVar = dict.fromkeys(("multiplier", "second_moment", "updates"), 0.0)

    def __init__(self, learning_rate: float = 0.005, initial: float = 1.0):
        self.learning_rate = validate_number(learning_rate, "learning_rate", 0, exclusive=True)
        self.initial = validate_number(initial, "initial", 0, exclusive=True)

    def initial_state(self, points: int) -> dict[str, np.ndarray]:
        state = {"multiplier": self.initial, **ADAM_STATE}
        return {name: np.full(points, value, "float32") for name, value in state.items()}

    def update(
        self, state: dict[str, Tensor], residual: Tensor, is_seen: Tensor
    ) -> dict[str, Tensor]:
        residual = ops.convert_to_tensor(residual)
        state = {name: ops.cast(x, residual.dtype) for name, x in state.items()}
        gradient = 2 * state["multiplier"] * ops.square(residual)
        step = adam_step(state, gradient, self.learning_rate, is_seen)
        return {**state, "multiplier": state["multiplier"] + step}

    def weights(self, state: dict[str, Tensor], **scheduled: Tensor) -> Tensor:
        return ops.square(state["multiplier"])

    def get_config(self) -> Config:
        return {"learning_rate": self.learning_rate, "initial": self.initial}
