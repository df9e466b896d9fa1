"""SmoothTchebycheff: the weights follow the worst term, smoothly."""

from typing import ClassVar

import keras
import numpy as np
from keras import ops

from keras_jointloss._validation import validate_number
from keras_jointloss.weighting.base import Weighting


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SmoothTchebycheff(Weighting):
    """Weighs most the term that is farthest above its best loss so far.

    The objective is a smooth form of the largest preferred excess

        smoothness * log(sum_i exp(preference_i (loss_i - z_i) / smoothness))

    where `z_i` is the least loss so far, and its gradient that of `sum_i weight_i loss_i` for

        weight_i = preference_i * softmax_i(preference_i (loss_i - z_i) / smoothness)

    with the losses of the step before, or smoothed ones. In the first step the softmax is 1/k each
    for k terms. With equal preferences the sum of the weights is that preference.

    Args:
        preference: How much each term counts: numbers > 0, in the order of the terms (outputs in
            the order of the losses, then layers). `None` for 1 each.
        smoothness: The smaller, the more the worst term takes all.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If an argument is not made of numbers > 0, and as in `Weighting`; when tied to
            the terms, if there are more or fewer.

    References:
        - Lin et al., 2024, Smooth Tchebycheff Scalarization for Multi-Objective Optimization

    Example:

    >>> SmoothTchebycheff(smoothness=0.5).initial_weight(2)
    0.5
    """

    initial_state: ClassVar = {"least": float("inf")}

    def __init__(self, preference: list[float] | None = None, smoothness: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.preference = None
        if preference is not None:
            self.preference = [
                validate_number(value, f"preference[{index}]", 0, exclusive=True)
                for index, value in enumerate(preference)
            ]
        self.smoothness = validate_number(smoothness, "smoothness", 0, exclusive=True)

    def bind(self, terms):
        if self.preference is not None and len(self.preference) != len(terms):
            raise ValueError(
                f"Invalid value for argument `preference`. Expected {len(terms)} numbers, one for "
                f"each of {list(terms)}. Received: preference={self.preference}"
            )
        return super().bind(terms)

    def initial_weight(self, count):
        return (np.array(self.preference or 1.0) / count).tolist()

    def update(self, losses, step):
        least = self.state["least"] = ops.minimum(self.state["least"], losses)
        preference = ops.convert_to_tensor(
            self.preference or [1.0] * len(self.terms), dtype=losses.dtype
        )
        return preference * ops.softmax(preference * (losses - least) / self.smoothness)

    def get_config(self) -> dict:
        config = super().get_config()
        return {**config, "preference": self.preference, "smoothness": self.smoothness}
