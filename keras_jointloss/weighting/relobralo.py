"""ReLoBRaLo: larger weights for the losses that fell less, with a random look back."""

from typing import ClassVar, Unpack

import keras

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.random import random_uniform
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import (
    invalid,
    validate_number,
    validate_seed,
    validate_share,
)
from keras_jointloss.weighting._options import Options
from keras_jointloss.weighting._remedies import SCALE_REMEDY
from keras_jointloss.weighting.base import Weighting

#: Smaller losses count as this where a loss is divided by them.
_SMALLEST_LOSS = 1e-12


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ReLoBRaLo(Weighting):
    """Weighs the terms by how little their losses fell: relative loss balancing, random lookback.

    With k terms, the losses of step t are compared with those of another step u,

        b_i(t, u) = k softmax_i(loss_i(t) / (temperature loss_i(u)))

    and the weights are a moving mean of this balance with the previous step, which looks back to
    the first step at random:

        weight_i <- alpha (r weight_i + (1 - r) b_i(t, 0)) + (1 - alpha) b_i(t, t - 1)

    In each step r is 1 with the probability `beta`, or else 0, for all terms. The weights sum to k;
    in the first step they are 1. Scaling a loss by a constant does not change its weight. The
    random numbers depend only on the seed and the training step, so a resumed training draws the
    same numbers as an uninterrupted one.

    The defaults are those of PhysicsNeMo, whose `tau` is the temperature here.

    Args:
        alpha: The part of the previous weights in the next, >= 0 and < 1.
        beta: The probability of not looking back, from 0 to 1.
        temperature: Larger values make the weights more equal.
        seed: An integer, >= 0 and < 2**31.
        **kwargs: As in `Weighting`. With `warmup_steps`, `loss_i(0)` is the first loss after these.

    Raises:
        ValueError: If `alpha`, `beta` or `seed` is not such a number or `temperature` not a number
            > 0, and as in `Weighting`.

    References:
        - Bischof and Kraus, 2021, Multi-Objective Loss Balancing for Physics-Informed Deep Learning

    Example:

    >>> ReLoBRaLo(temperature=0.1).get_config()["temperature"]
    0.1
    """

    initial_state: ClassVar = {
        "mean": 1.0,
        "initial_loss": float("inf"),  # None yet.
        "last_loss": float("inf"),
    }
    nonnegative_state = frozenset(initial_state)
    minimum_loss = 0.0
    small_weight_remedy = "Raise `temperature`, or limit the weights with `min_weight`."
    small_loss_remedy = SCALE_REMEDY

    def __init__(
        self,
        alpha: float = 0.95,
        beta: float = 0.99,
        temperature: float = 1.0,
        seed: int = 0,
        **kwargs: Unpack[Options],
    ):
        super().__init__(**kwargs)
        self.alpha = validate_share(alpha, "alpha")
        expected = "a number >= 0 and <= 1"
        self.beta = validate_number(beta, "beta", 0, expected=expected)
        if self.beta > 1:
            raise invalid("beta", expected, beta)
        self.temperature = validate_number(temperature, "temperature", 0, exclusive=True)
        self.seed = validate_seed(seed)

    def _balance(self, losses, earlier):
        """Returns `b` for the losses of two steps: `(terms,)`."""
        ratio = losses / ops.maximum(earlier, _SMALLEST_LOSS)
        return len(self.terms) * ops.softmax(ratio / self.temperature)

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        state = self.state
        initial, last = (
            ops.where(ops.isfinite(state[name]), state[name], losses)
            for name in ("initial_loss", "last_loss")
        )
        keeps = random_uniform(1, self.seed, step) < self.beta
        history = ops.where(keeps, state["mean"], self._balance(losses, initial))
        mean = self.alpha * history + (1 - self.alpha) * self._balance(losses, last)
        state.update({"mean": mean, "initial_loss": initial, "last_loss": losses})
        return mean

    def get_config(self) -> Config:
        options = ("alpha", "beta", "temperature", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in options}}
