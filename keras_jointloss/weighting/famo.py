"""FAMO: all losses fall at the same relative rate, without one gradient per loss."""

from collections.abc import Mapping
from typing import ClassVar, Unpack

import keras

from keras_jointloss._core.adam import ADAM_STATE, adam_step
from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.weighting._by_term import (
    FLOOR_REMEDY,
    ByTerm,
    describe_default_floor,
    raise_to_floor,
    validate_floor,
)
from keras_jointloss.weighting._options import Options
from keras_jointloss.weighting.base import Weighting


@keras.saving.register_keras_serializable(package="keras_jointloss")
class FAMO(Weighting):
    """Weighs the terms so that their losses fall at the same relative rate.

    With logits `x`, `z = softmax(x)` and a lower bound `b` of the losses,

        weight_i = c z_i / (loss_i - b),    c = 1 / sum_i z_i / (loss_i - b)

    with the losses of the previous step, or smoothed losses. The weights sum to 1; in the first
    step they are 1/k for k terms. After each step Adam updates `x` with the gradient

        z_i (d_i - sum_j z_j d_j) + decay x_i,    d_i = log(loss_i(t) - b) - log(loss_i(t+1) - b)

    so that a loss that fell more than the others gets a smaller weight. The paper computes both
    losses on the same batch, at the cost of one more forward pass; here `loss_i(t+1)` is that of
    the next step's batch. A loss scaled by a constant contributes the same share (if `b` is 0).
    Losses below `b + floor` count as that.

    A loss that can reach its bound, such as that of the boundary of a differential equation, takes
    all the weight: its logarithm falls without end. Give all terms a `min_weight`, such as
    0.1, or that term a `floor` on the scale of the losses of the others, below which it counts as
    solved.

    Args:
        learning_rate: The learning rate of Adam.
        decay: Pulls the logits towards 0; `gamma` in the paper.
        minimum_loss: The bound `b`, one number for all terms.
        floor: The smallest `loss_i - b` that counts: a number > 0 for all terms, or a dict with a
            number or a schedule by the name of the term. `None`, as for a name that is not in the
            dict, is `keras.config.epsilon()`.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If `learning_rate` is not a number > 0, `decay` not a number >= 0 or
            `minimum_loss` not a number, if `floor` is not such a number or dict, and as in
            `Weighting`; when bound to the terms, if a name in `floor` is not that of a term.

    References:
        - Liu et al., 2023, FAMO: Fast Adaptive Multitask Optimization

    Example:

    >>> FAMO().initial_weight(4)
    0.25
    """

    initial_state: ClassVar = {
        "logit": 0.0,
        **ADAM_STATE,
        "log_loss": float("inf"),  # None yet.
    }
    nonnegative_state: ClassVar = frozenset({"second_moment", "updates"})
    by_term: ClassVar = {"floor": False}
    small_weight_remedy = FLOOR_REMEDY

    def __init__(
        self,
        learning_rate: float = 0.025,
        decay: float = 1e-3,
        minimum_loss: float = 0.0,
        floor: float | ByTerm | None = None,
        **kwargs: Unpack[Options],
    ):
        super().__init__(**kwargs)
        self.learning_rate = validate_number(learning_rate, "learning_rate", 0, exclusive=True)
        self.decay = validate_number(decay, "decay", minimum=0)
        self.minimum_loss = validate_number(minimum_loss, "minimum_loss")
        self.floor = validate_floor(floor)

    def initial_weight(self, count: int) -> float:
        return 1.0 / count

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        excess = raise_to_floor(losses - self.minimum_loss, self.floor, self.terms, step)
        log_loss = ops.log(excess)
        state, logit = self.state, self.state["logit"]
        has_previous = ops.isfinite(state["log_loss"])
        fall = ops.where(has_previous, state["log_loss"] - log_loss, 0)
        share = ops.softmax(logit)
        gradient = share * (fall - ops.sum(share * fall)) + self.decay * logit
        logit = logit - adam_step(state, gradient, self.learning_rate, has_previous)
        state.update({"logit": logit, "log_loss": log_loss})
        return ops.softmax(logit - log_loss)

    def describe_limit(self, losses: Mapping[str, float], forgets: bool) -> str | None:
        return describe_default_floor(self, losses)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "learning_rate": self.learning_rate,
            "decay": self.decay,
            "minimum_loss": self.minimum_loss,
        }
