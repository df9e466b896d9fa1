"""The scale of a gradient that follows a schedule, by the clock of the weights."""

import math
from typing import Any, ClassVar

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.state import layer_state
from keras_jointloss._core.types import Tensor
from keras_jointloss.terms.clocked_value import ClockedValue


class Scale(ClockedValue):
    """A number of a layer that follows a schedule and belongs to no term.

    The layer owns its variables, `state`, reads `current` and calls `advance` once in each step of
    training.

    Args:
        schedule: The schedule.
        prefix: Prefix of the names of the variables.
    """

    _stands_still: ClassVar[str] = "The scales of gradients that follow a schedule do not move"

    def __init__(self, schedule: LearningRateSchedule, prefix: str):
        def add_variable(name: str, *arguments: Any, **options: Any) -> Any:
            options["aggregation"] = "only_first_replica"
            return layer_state(f"{prefix}_{name}", *arguments, **options)

        self.dtype = float_dtype(keras.config.floatx())
        self._create_value(schedule, self.dtype, add_variable, minimum=-math.inf)
        #: The variables.
        self.state = [x.variable for x in (self._value, self._step, self._mode)]
        #: The logged value by name, as a function that returns a scalar tensor.
        self.tensors = {"scale": self.tensor}

    def current(self) -> Tensor | float:
        """Returns the scale of this step, as a number if the host knows it."""
        return self._value.read()

    def tensor(self) -> Tensor:
        """Returns the current scale as a scalar tensor."""
        return ops.convert_to_tensor(self.current(), dtype=self.dtype)

    def load(self, step: int) -> None:
        """Continues at a step of the schedule."""
        self._step.assign(step)
        self._value.assign(self.given.number_at(step))

    def __float__(self) -> float:
        return self._value.on_host()
