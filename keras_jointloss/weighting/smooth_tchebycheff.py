"""SmoothTchebycheff: smooth weights that focus on the worst term."""

from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import keras
import numpy as np

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Numbers, Tensor
from keras_jointloss._core.validation import validate_list, validate_number
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting._options import Options
from keras_jointloss.weighting.base import Weighting


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SmoothTchebycheff(Weighting):
    """Gives the largest weight to the term that is farthest above its best loss so far.

    The objective is a smooth maximum of the excess losses, multiplied by the preferences,

        smoothness * log(sum_i exp(preference_i (loss_i - z_i) / smoothness))

    where `z_i` is the lowest loss so far. Its gradient is that of `sum_i weight_i loss_i` for

        weight_i = preference_i * softmax_i(preference_i (loss_i - z_i) / smoothness)

    with the losses of the previous step, or smoothed losses. In the first step each softmax value
    is 1/k for k terms. With equal preferences, the weights sum to that preference.

    Args:
        preference: The importance of each term: numbers > 0, in the order of the terms (outputs in
            the order of the losses, then layers). `None` for 1 each.
        smoothness: Smaller values concentrate the weights on the worst term.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If an argument is not made of numbers > 0, and as in `Weighting`; when bound to
            the terms, if their number differs from that of the preferences.

    References:
        - Lin et al., 2024, Smooth Tchebycheff Scalarization for Multi-Objective Optimization

    Example:

    >>> SmoothTchebycheff(smoothness=0.5).initial_weight(2)
    0.5
    """

    initial_state: ClassVar = {"least": float("inf")}
    # The rule concentrates on the worst term, whatever the weights of the others are.
    small_weight_remedy = None
    small_loss_remedy = (
        "This rule compares the losses themselves: raise `smoothness`, or scale the losses with "
        "`preference`."
    )

    def __init__(
        self, preference: Numbers | None = None, smoothness: float = 1.0, **kwargs: Unpack[Options]
    ):
        super().__init__(**kwargs)
        self.preference = None
        if preference is not None:
            self.preference = [
                validate_number(value, f"preference[{index}]", 0, exclusive=True)
                for index, value in enumerate(validate_list(preference, "preference", "numbers"))
            ]
        self.smoothness = validate_number(smoothness, "smoothness", 0, exclusive=True)

    def bind(self, terms: Mapping[str, TermWeight]) -> bool:
        if self.preference is not None and len(self.preference) != len(terms):
            raise ValueError(
                f"Invalid value for argument `preference`. Expected {len(terms)} numbers, one for "
                f"each of {list(terms)}. Received: preference={self.preference}"
            )
        return super().bind(terms)

    def initial_weight(self, count: int) -> float | Numbers:
        return (np.array(self.preference or 1.0) / count).tolist()

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        least = self.state["least"] = ops.minimum(self.state["least"], losses)
        preference: Any = 1.0
        if self.preference is not None:
            preference = ops.convert_to_tensor(np.array(self.preference), dtype=losses.dtype)
        return preference * ops.softmax(preference * (losses - least) / self.smoothness)

    def get_config(self) -> Config:
        config = super().get_config()
        return {**config, "preference": self.preference, "smoothness": self.smoothness}
