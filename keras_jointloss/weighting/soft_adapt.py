"""SoftAdapt: larger weights for the losses that rise, or fall less."""

import math
from typing import ClassVar, Literal, Unpack

import keras
import numpy as np

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import (
    invalid,
    validate_choice,
    validate_count,
    validate_number,
)
from keras_jointloss.weighting._epochs import EPOCH_STATE, add_to_epoch
from keras_jointloss.weighting._options import Options
from keras_jointloss.weighting.base import Weighting

_MOST_POINTS = 5
# The latest losses, the last one first.
_LOSSES = [f"loss_{i}" for i in range(_MOST_POINTS)]


def _slope_coefficients() -> np.ndarray:
    """Returns the coefficients of the slope of n points, in the row n: `(6, 5)`.

    A forward difference of the highest order, at the oldest of the n points. The newest is first.
    """
    table = np.zeros((_MOST_POINTS + 1, _MOST_POINTS))
    for order in range(1, _MOST_POINTS):
        for i in range(1, order + 1):
            table[order + 1, order - i] = -((-1) ** i) * math.comb(order, i) / i
        table[order + 1, order] = -table[order + 1].sum()
    return table


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SoftAdapt(Weighting):
    """Weighs the terms by the slopes of their losses.

    The slope `s_i` is that of the last losses of term i, up to `points` of them, by the forward
    difference of the highest order. With two points it is the last change of the loss. The weights
    are

        weight_i = softmax_i(beta s_i)
        weight_i = softmax_i(beta s_i / sum_j s_j)
        weight_i = m_i exp(beta s_i) / sum_j m_j exp(beta s_j)

    in the variants `original`, `normalized` and `loss_weighted`, with the mean `m_i` of these
    losses. They sum to 1. Before there are two losses they are 1/k for k terms.

    By default, a loss is the mean of an epoch, and the weights change once an epoch, in its second
    step. `frequency=n` changes them once in n epochs. `interval="step"` takes the losses of
    training steps: with `update_every=n` the means of n steps.

    With the `original` variant, slopes are in the units of the losses: a term whose slope is
    `10 / beta` below that of another has a weight of 5e-5 times the other's. Scale the losses, or
    lower `beta`, if losses are large. The `normalized` variant divides by the sum with its sign, as
    the authors' library does: while most losses fall, the sum is negative, and the loss that falls
    fastest has the largest weight. A negative `beta` gives the opposite order.

    The library softadapt 0.2 takes the losses since the last change of the weights: two if they
    change each epoch, and n if they change each n epochs, at the first time n + 1. Here, this is
    `points=2`, and `points=n` with `frequency=n`, for n up to 5.

    Args:
        variant: `"original"`, `"normalized"` or `"loss_weighted"`.
        beta: How strongly slopes differ in weight. Positive values favor losses that rise or fall
            slowly, negative ones those that fall fast.
        points: The largest number of losses in a slope, from 2 to 5.
        interval: Whether a loss is that of an `"epoch"` or a `"step"`.
        frequency: The weights change once in this many epochs or steps.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If an argument is invalid, and as in `Weighting`.

    References:
        - Heydari, Thompson and Mehmood, 2019, SoftAdapt: Techniques for Adaptive Loss Weighting of
          Neural Networks with Multi-Part Loss Functions

    Example:

    >>> SoftAdapt("loss_weighted", interval="step", update_every=100).initial_weight(2)
    0.5
    """

    # Besides the losses: their number, and the slope and the mean at the latest change.
    initial_state: ClassVar = {
        **EPOCH_STATE,
        **dict.fromkeys(_LOSSES, 0.0),
        "seen_losses": 0.0,
        "slope": 0.0,
        "mean": 1.0,
    }
    nonnegative_state = frozenset({"epoch", "steps", "seen_losses"})
    small_weight_remedy = (
        "Its loss fell faster than others: lower `beta`, scale the losses, or limit the weights "
        "with `min_weight`."
    )
    small_loss_remedy = (
        "This rule compares the slopes of the losses and not their size: scale the losses with the "
        "`weights` of `joint_loss`, or take a rule that makes up for it, such as `Uncertainty`."
    )

    def __init__(
        self,
        variant: Literal["original", "normalized", "loss_weighted"] = "original",
        beta: float = 0.1,
        points: int = 5,
        interval: Literal["epoch", "step"] = "epoch",
        frequency: int = 1,
        **kwargs: Unpack[Options],
    ):
        super().__init__(**kwargs)
        variants = ("original", "normalized", "loss_weighted")
        self.variant = validate_choice(variant, "variant", variants)
        self.beta = validate_number(beta, "beta")
        self.points = validate_count(points, "points", minimum=2)
        if self.points > _MOST_POINTS:
            raise invalid("points", f"a whole number >= 2 and <= {_MOST_POINTS}", points)
        self.interval = validate_choice(interval, "interval", ("epoch", "step"))
        self.frequency = validate_count(frequency, "frequency")
        if self.variant == "loss_weighted":
            self.minimum_loss = 0.0

    def initial_weight(self, count: int) -> float:
        return 1.0 / count

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        state, is_new = self.state, ops.ones_like(losses) > 0
        if self.interval == "epoch":
            is_new, losses = add_to_epoch(state, self.epoch, losses)
        before = [state[name] for name in _LOSSES]
        latest = ops.where(is_new, ops.stack([losses, *before[:-1]]), ops.stack(before))
        state.update(dict(zip(_LOSSES, ops.unstack(latest), strict=True)))
        count = state["seen_losses"] = state["seen_losses"] + ops.cast(is_new, latest.dtype)

        points = ops.minimum(count, self.points)
        rows = ops.convert_to_tensor(_slope_coefficients(), dtype=latest.dtype)
        coefficients = ops.transpose(ops.take(rows, ops.cast(points, "int32"), axis=0))
        # The coefficients sum to 0: differences keep what losses would lose to rounding.
        slope = ops.sum(coefficients * (latest - latest[:1]), axis=0)
        ages = ops.convert_to_tensor(np.arange(_MOST_POINTS)[:, None], dtype=latest.dtype)
        mean = ops.sum(ops.where(ages < points, latest, 0), axis=0) / ops.maximum(points, 1)
        is_due = is_new & (points >= 2) & (count % self.frequency == 0)
        for name, value in (("slope", slope), ("mean", mean)):
            state[name] = ops.where(is_due, value, state[name])
        return self._weights_of(state["slope"], state["mean"])

    def _weights_of(self, slope, mean):
        """Returns the weights for slopes and mean losses, `(terms,)` each."""
        if self.variant == "normalized":
            slope = ops.divide_no_nan(slope, ops.sum(slope))
        weight = ops.softmax(self.beta * slope)
        if self.variant != "loss_weighted":
            return weight
        weighted = weight * mean
        total = ops.sum(weighted)
        return ops.where(total > 0, ops.divide_no_nan(weighted, total), weight)

    def get_config(self) -> Config:
        options = ("variant", "beta", "points", "interval", "frequency")
        return {**super().get_config(), **{name: getattr(self, name) for name in options}}
