"""GeometricMean: the gradient of the geometric mean of the losses."""

from collections.abc import Mapping
from typing import ClassVar, Unpack

import keras

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Tensor
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
class GeometricMean(Weighting):
    """Weighs the terms to minimize the geometric mean of their losses.

    With k terms, the gradient of `(prod_i loss_i)^(1/k)` is that of `sum_i weight_i loss_i` for

        weight_i = (prod_j loss_j)^(1/k) / (k loss_i)

    with the losses of the previous step, or smoothed losses. The weights are not normalized to a
    fixed sum; in the first step they are 1/k. A loss scaled by a constant contributes the same
    share. Losses below `floor` count as that.

    A loss that can reach 0, such as that of the boundary of a differential equation, takes all the
    weight: the geometric mean is 0 as soon as one loss is, whatever the others are. Give all
    terms a `min_weight`, such as 0.1, or that term a `floor` on the scale of the losses of the
    others, below which it counts as solved.

    Args:
        floor: The smallest loss that counts: a number > 0 for all terms, or a dict with a number or
            a schedule by the name of the term. `None`, as for a name that is not in the dict, is
            `keras.config.epsilon()`.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If `floor` is anything else, and as in `Weighting`; when bound to the terms, if
            a name in `floor` is not that of a term.

    References:
        - Chennupati et al., 2019, MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss
          Strategy for Multi-Task Learning

    Example:

    >>> GeometricMean().initial_weight(4)
    0.25
    """

    minimum_loss = 0.0
    by_term: ClassVar = {"floor": False}
    small_weight_remedy = FLOOR_REMEDY

    def __init__(self, floor: float | ByTerm | None = None, **kwargs: Unpack[Options]):
        super().__init__(**kwargs)
        self.floor = validate_floor(floor)

    def initial_weight(self, count: int) -> float:
        return 1.0 / count

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        count = len(self.terms)
        logarithms = ops.log(raise_to_floor(losses, self.floor, self.terms, step))
        return ops.exp(ops.sum(logarithms) / count - logarithms) / count

    def describe_limit(self, losses: Mapping[str, float], forgets: bool) -> str | None:
        return describe_default_floor(self, losses)
