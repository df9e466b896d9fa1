"""Shares: every gradient contributes the asked share of the length."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import keras

from keras_jointloss._core.math import mean_where
from keras_jointloss._core.types import Config, Numbers, Tensor
from keras_jointloss._core.validation import (
    invalid,
    validate_by_name,
    validate_names,
    validate_number,
)
from keras_jointloss.aggregators._gramian import active_terms, correlation
from keras_jointloss.aggregators.base import Aggregator
from keras_jointloss.aggregators.preference import PreferenceAggregator


# `Shares` is the registered name of the weighting.
@keras.saving.register_keras_serializable(package="keras_jointloss", name="GradientShares")
class Shares(PreferenceAggregator):
    """Scales each gradient to the asked share of the length, then sums them.

        w_i = share_i R / |g_i|

    where `R` is the mean of the lengths `|g_i|`, so that `|w_i g_i| = share_i R`, whatever the
    scales of the terms. It is the balancer of EnCodec with two differences: its `R` is a constant,
    by default 1, and its lengths are running means. Here the combined gradient keeps the scale of
    the gradients, and each step has lengths of its own; `ema` smooths the coefficients. The rule
    does not look at the angles of the gradients, so the result can conflict with some of them. It
    lengthens a gradient however short it is.

    Args:
        shares: A number >= 0 for each term, not all 0: a list in the order of the terms, or, in a
            layer that knows the names of its terms, a dict by name. Only their ratios matter; they
            are divided by the sum of those of the terms that have a gradient. `None` for equal
            shares.
        rescale, ema: As in `Aggregator`.

    Input shape:
        `(k, m)`, one gradient per row; or `(k, k)` in `solve`, their Gramian.

    Output shape:
        `(m,)`, the combined gradient; or `(k,)` from `solve`, the coefficients.

    Raises:
        ValueError: If `shares` is anything else or `ema` is not a number >= 0 and < 1; when called,
            if the number of terms differs or `shares` is a dict; in a layer, if a term has no share
            or a name is not that of a term.

    References:
        - Defossez et al., 2022, High Fidelity Neural Audio Compression (the loss balancer)

    Example:

    >>> [round(float(x), 2) for x in Shares([0.8, 0.2])([[3.0, 0.0], [0.0, 1.0]])]
    [1.6, 0.4]
    """

    argument = "shares"

    def __init__(
        self,
        shares: Numbers | Mapping[str, float] | None = None,
        rescale: bool = False,
        ema: float = 0.0,
    ):
        if not isinstance(shares, Mapping):
            super().__init__(shares, rescale=rescale, ema=ema)
            self.shares: Any = self.preference
            return
        super().__init__(rescale=rescale, ema=ema)
        self.shares = validate_by_name(shares, "shares", partial(validate_number, minimum=0))
        if not sum(self.shares.values()):
            raise self._invalid(shares)

    def for_terms(self, terms: Sequence[str]) -> Aggregator:
        if not isinstance(self.shares, Mapping):
            return self
        validate_names(self.shares, "shares", terms, is_complete=True)
        return Shares([self.shares[term] for term in terms], self.rescale, self.ema)

    def coefficients(self, gramian: Tensor) -> Tensor:
        if isinstance(self.shares, Mapping):
            raise invalid(
                "shares",
                "a list of numbers in the order of the gradients, whose names are known in a "
                "layer only",
                self.shares,
            )
        lengths, _ = correlation(gramian)
        return self.preferences(gramian) * mean_where(lengths, active_terms(gramian), 0) / lengths

    def get_config(self) -> Config:
        return {"shares": self.shares, "rescale": self.rescale, "ema": self.ema}
