"""DynamicWeightAverage: gives larger weights to terms that learn slowly."""

from typing import ClassVar, Unpack

import keras

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.weighting._epochs import EPOCH_STATE, add_to_epoch
from keras_jointloss.weighting._options import Options
from keras_jointloss.weighting._remedies import SCALE_REMEDY
from keras_jointloss.weighting.base import Weighting


@keras.saving.register_keras_serializable(package="keras_jointloss")
class DynamicWeightAverage(Weighting):
    """Weighs each term by how slowly its loss fell from one epoch to the next.

    With the mean `L_i(t)` of the loss over the training steps of epoch t, and k terms,

        weight_i = k softmax_i(L_i(t-1) / L_i(t-2) / temperature)

    in epoch t, from its second step on. In the first two epochs all weights are 1. The weights sum
    to k. Scaling a loss by a constant does not change its weight.

    Args:
        temperature: Larger values make the weights more equal.
        **kwargs: As in `Weighting`. `update_every` reduces the number of losses in each mean.

    Raises:
        ValueError: If `temperature` is not a number > 0, and as in `Weighting`.

    References:
        - Liu, Johns and Davison, 2019, End-to-End Multi-Task Learning with Attention

    Example:

    >>> DynamicWeightAverage(temperature=1.0).get_config()["temperature"]
    1.0
    """

    # The means of the two epochs before, 0 if there was none.
    initial_state: ClassVar = {**EPOCH_STATE, "last": 0.0, "before_last": 0.0}
    nonnegative_state = frozenset(initial_state)
    minimum_loss = 0.0
    small_loss_remedy = SCALE_REMEDY

    def __init__(self, temperature: float = 2.0, **kwargs: Unpack[Options]):
        super().__init__(**kwargs)
        self.temperature = validate_number(temperature, "temperature", 0, exclusive=True)

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        state = self.state
        is_new, mean = add_to_epoch(state, self.epoch, losses)
        before_last = ops.where(is_new, state["last"], state["before_last"])
        last = ops.where(is_new, mean, state["last"])
        state.update({"last": last, "before_last": before_last})
        ratio = ops.where(before_last > 0, ops.divide_no_nan(last, before_last), 1)
        return len(self.terms) * ops.softmax(ratio / self.temperature)

    def get_config(self) -> Config:
        return {**super().get_config(), "temperature": self.temperature}
