"""Residual-based attention: points whose residual stays large weigh more."""

from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.math import divide_or_0
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_number, validate_share
from keras_jointloss.points.base import PointRule


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Residual(PointRule):
    """Weighs the points by their residuals so far (residual-based attention).

    In each step, for the points `j` of the batch,

        l_j = gamma l_j + eta |r_j| / max_i |r_i|,    w_j = l_j^2

    so that the loss is the mean of `(l_j r_j)^2`. A multiplier `l_j` approaches a number from 0 to
    `eta / (1 - gamma)`, which is 10 by default, and forgets in about `1 / (1 - gamma)` visits of
    the point. The multipliers begin at 0, so that the first losses are small: in short trainings
    begin at another number, or take a larger `eta` with a smaller `gamma`, such as 0.1 and 0.99.

    Args:
        gamma: The decay of the multipliers, >= 0 and < 1.
        eta: What the point of the largest residual adds to its multiplier, > 0.
        initial: The multipliers before the first step, >= 0.

    Raises:
        ValueError: If an argument is out of range.

    References:
        - Anagnostopoulos et al., 2023, Residual-based Attention and Connection to Information
          Bottleneck Theory in PINNs

    Example:

    >>> rule = Residual(gamma=0.5, eta=1.0)
    >>> state = rule.update({"multiplier": [4.0, 4.0]}, [1.0, 2.0], [True, True])
    >>> [float(x) for x in rule.weights(state)]
    [6.25, 9.0]
    """

    minimum: ClassVar = {"multiplier": 0.0}

    def __init__(self, gamma: float = 0.999, eta: float = 0.01, initial: float = 0.0):
        self.gamma = validate_share(gamma, "gamma")
        self.eta = validate_number(eta, "eta", 0, exclusive=True)
        self.initial = validate_number(initial, "initial", 0)

    def initial_state(self, points: int) -> dict[str, np.ndarray]:
        return {"multiplier": np.full(points, self.initial)}

    def update(
        self, state: dict[str, Tensor], residual: Tensor, is_seen: Tensor
    ) -> dict[str, Tensor]:
        residual = ops.convert_to_tensor(residual)
        multiplier = ops.cast(state["multiplier"], residual.dtype)
        moved = self.gamma * multiplier + self.eta * divide_or_0(residual, ops.max(residual))
        return {"multiplier": ops.where(is_seen, moved, multiplier)}

    def weights(self, state: dict[str, Tensor], **scheduled: Tensor) -> Tensor:
        return ops.square(state["multiplier"])

    def get_config(self) -> Config:
        return {"gamma": self.gamma, "eta": self.eta, "initial": self.initial}
