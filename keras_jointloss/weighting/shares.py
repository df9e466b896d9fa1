"""Shares: every term contributes the asked share of the total loss."""

from typing import ClassVar, Unpack

import keras

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Tensor
from keras_jointloss.weighting._by_term import ByTerm, tensor_by_term, validate_by_term
from keras_jointloss.weighting._options import OptionsWithMinimum
from keras_jointloss.weighting.base import Weighting


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Shares(Weighting):
    """Weighs the terms so that each contributes the asked share of the total loss.

    With the running mean `m_i` of a loss and the weight `value_i` that the user gives it (1 by
    default),

        weight_i = share_i S / (value_i m_i),    S = sum_j value_j m_j

    so that `value_i weight_i m_i`, what the term contributes on average, is `share_i S`. The total
    keeps the scale `S` that it has without the rule. User weights therefore change the scale of the
    total and not the shares; a term whose user weight is 0 contributes nothing, and the others
    share the total in the asked ratios. In the first step all weights are 1.

    The running mean is corrected for its beginning: after n steps it is the mean of n losses in
    which the latest has the weight 1, the one before it `ema`, then `ema**2`. With constant losses
    the shares are exact from the second step on.

    The weight of a loss that approaches 0 grows, up to `max_weight`; from there on its share falls.
    A term counts as no less than 1e-7 of `S`, whatever `max_weight` is. A loss that can reach 0,
    such as that of the boundary of a differential equation, thus takes nearly all the weight: give
    a `max_weight`, such as 100.

    Args:
        shares: The share of each term by name, output terms and layer terms: a number > 0, or a
            `keras.optimizers.schedules.LearningRateSchedule` that gives the share (0 or more) in
            each training step. Only their ratios matter: they are divided by their sum.
        ema: The weight of the previous running mean in the next, >= 0 and < 1.
        max_weight: The largest weight, or `None` for no limit.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If `shares` is not a dict of such numbers and schedules, and as in `Weighting`;
            when bound to the terms, if a term has no share or a name is not that of a term.

    Example:

    >>> Shares({"label": 0.8, "pair": 0.2}).get_config()["shares"]
    {'label': 0.8, 'pair': 0.2}
    """

    minimum_loss = 0.0
    small_loss_remedy = (
        "This rule raises a weight no further than to `max_weight`, and for losses down to 1e-7 of "
        "the total: bring the losses nearer to each other with the `weights` of `joint_loss`."
    )
    by_term: ClassVar = {"shares": True}
    corrects_bias = True
    needs_given_weights = True

    def __init__(
        self,
        shares: ByTerm,
        ema: float = 0.99,
        max_weight: float | None = 1e6,
        **kwargs: Unpack[OptionsWithMinimum],
    ):
        super().__init__(ema=ema, max_weight=max_weight, **kwargs)
        self.shares = validate_by_term(shares, "shares", minimum=0, exclusive=True)

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        given = ops.where(self.has_loss, self.given_weights, 0)
        # The weights are those of the next step.
        shares = tensor_by_term(self.shares, self.terms, 0.0, step + 1, losses.dtype)
        shares = ops.where(given > 0, ops.maximum(shares, 0), 0)
        parts = given * losses
        total = ops.sum(parts)
        parts = ops.maximum(parts, 1e-7 * total)
        weight = ops.divide_no_nan(shares, ops.sum(shares)) * ops.divide_no_nan(total, parts)
        return ops.where((given > 0) & (total > 0), weight, 1)
