"""Constraint: keeps the losses of named terms at or below a bound."""

from typing import ClassVar, Unpack

import keras
import numpy as np

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import invalid, validate_number
from keras_jointloss.weighting._by_term import ByTerm, tensor_by_term, validate_by_term
from keras_jointloss.weighting._options import CommonOptions
from keras_jointloss.weighting.base import Weighting


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Constraint(Weighting):
    """Keeps the losses of some terms at or below a bound, by weights that are Lagrange multipliers.

    The model minimizes the sum of the other terms, whose weight is 1, subject to
    `loss_i <= bound_i` for the named terms. The weight of a named term is a multiplier, 1 in the
    first step, that moves in each step:

        weight_i <- weight_i exp(learning_rate excess_i)
        excess_i = clip((mean_i - bound_i) / |bound_i|, -1, 1)

    with the smoothed loss `mean_i`. It grows while the loss is above the bound and falls while it
    is below. Where the bound matters, it settles at the multiplier that holds the loss at the
    bound; where it does not, the weight falls to `min_weight`.

    The paper moves the multiplier by `exp(learning_rate (mean_i - bound_i))`. Here the excess is
    relative to the bound, so that one learning rate suits losses of any scale, and limited, so that
    the large losses at the beginning of a training do not carry the multiplier to its end. For a
    bound of 0 the excess is `clip(mean_i, -1, 1)`, as in the paper: only a loss that can be
    negative should have such a bound.

    The bound holds for the loss itself, without weight. A weight that the user gives a named term
    multiplies the multiplier: it is where the product starts. The logs include
    `<term>_multiplier` of each named term.

    Args:
        bounds: The bound of each constrained term by name: a finite number, or a
            `keras.optimizers.schedules.LearningRateSchedule`, a function of the training step.
        learning_rate: By how much the logarithm of a multiplier moves in a step, at most. Lower it
            if the loss swings about the bound.
        ema: The smoothing of the losses, >= 0 and < 1.
        min_weight: The smallest multiplier, > 0 and <= 1.
        max_weight: The largest multiplier, >= 1, or `None` for no limit.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If an argument is invalid, and as in `Weighting`; when bound to the terms, if a
            name is not that of a term.

    References:
        - Rezende and Viola, 2018, Taming VAEs (GECO)

    Example:

    >>> Constraint({"kl": 10.0}).get_config()["bounds"]
    {'kl': 10.0}
    """

    initial_state: ClassVar = {"multiplier": 1.0}
    nonnegative_state: ClassVar = frozenset({"multiplier"})
    by_term: ClassVar = {"bounds": False}
    # A multiplier falls where its constraint holds without it.
    intended_below = 1.0
    small_weight_remedy = "A bound out of reach causes this: raise it, or set `max_weight`."

    def __init__(
        self,
        bounds: ByTerm,
        learning_rate: float = 0.01,
        ema: float = 0.9,
        min_weight: float = 1e-6,
        max_weight: float | None = 1e6,
        **kwargs: Unpack[CommonOptions],
    ):
        super().__init__(ema=ema, min_weight=min_weight, max_weight=max_weight, **kwargs)
        self.bounds = validate_by_term(bounds, "bounds")
        self.learning_rate = validate_number(learning_rate, "learning_rate", 0, exclusive=True)
        # The multipliers begin at 1, which is the weight of the other terms, too.
        if not 0 < self.min_weight <= 1:
            raise invalid("min_weight", "a number > 0 and <= 1", min_weight)
        if self.max_weight is not None and self.max_weight < 1:
            raise invalid("max_weight", "a number >= 1, or None", max_weight)

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        bounds = tensor_by_term(self.bounds, self.terms, 0.0, step, losses.dtype)
        scale = ops.where(bounds == 0, 1, ops.abs(bounds))
        excess = ops.clip((losses - bounds) / scale, -1, 1)
        moved = self.state["multiplier"] * ops.exp(self.learning_rate * excess)
        moved = ops.maximum(moved, self.min_weight)
        if self.max_weight is not None:
            moved = ops.minimum(moved, self.max_weight)
        is_named = ops.convert_to_tensor(np.array([name in self.bounds for name in self.terms]))
        multiplier = self.state["multiplier"] = ops.where(is_named, moved, 1)
        return multiplier

    def readout(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"multiplier": state["multiplier"]}

    def read(self) -> dict[str, dict[str, float]]:
        return {name: values for name, values in super().read().items() if name in self.bounds}

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "learning_rate": self.learning_rate,
        }
