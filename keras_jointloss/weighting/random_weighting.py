"""RandomWeighting: new random weights in each step."""

from typing import Unpack

import keras

from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.random import random_normal
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_seed
from keras_jointloss.weighting._options import Options
from keras_jointloss.weighting._remedies import SCALE_REMEDY
from keras_jointloss.weighting.base import Weighting


@keras.saving.register_keras_serializable(package="keras_jointloss")
class RandomWeighting(Weighting):
    """Draws new random weights in each training step.

    For k terms, regardless of the losses,

        weight = k softmax(normal(0, 1))

    It is the baseline that every other rule should beat. The numbers depend only on the seed and
    the training step, so a resumed training draws the same numbers as an uninterrupted one. In the
    first step the weights are 1.

    Args:
        seed: An integer, >= 0 and < 2**31.
        **kwargs: As in `Weighting`.

    Raises:
        ValueError: If `seed` is not such an integer, and as in `Weighting`.

    References:
        - Lin et al., 2022, Reasonable Effectiveness of Random Weighting: A Litmus Test for
          Multi-Task Learning

    Example:

    >>> RandomWeighting(seed=1).get_config()["seed"]
    1
    """

    small_loss_remedy = SCALE_REMEDY

    def __init__(self, seed: int = 0, **kwargs: Unpack[Options]):
        super().__init__(**kwargs)
        self.seed = validate_seed(seed)

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        count = len(self.terms)
        normal = random_normal(count, self.seed, step)
        return count * ops.softmax(ops.cast(normal, losses.dtype))

    def get_config(self) -> Config:
        return {**super().get_config(), "seed": self.seed}
