"""The accepted values of a weight: a number or a schedule."""

import math
from typing import Any, TypeAlias

import keras
import numpy as np
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.validation import invalid, validate_number

Weight: TypeAlias = float | LearningRateSchedule


def validate_weight(weight: Any, name: str = "weight") -> float:
    """Returns `weight` as a float, or raises `ValueError` if it cannot weight a loss."""
    return validate_number(
        weight,
        name,
        minimum=0,
        expected="a finite number >= 0 or a `keras.optimizers.schedules.LearningRateSchedule`",
    )


def deserialize_weight(config: Any) -> Any:
    """Returns the number or the schedule from a config."""
    is_schedule = isinstance(config, dict)
    return keras.optimizers.schedules.deserialize(config) if is_schedule else config


def validate_schedule(
    schedule: LearningRateSchedule, name: str = "weight", minimum: float = 0
) -> float:
    """Returns the value of `schedule` at step 0.

    Args:
        schedule: A schedule.
        name: The name of the argument, for the error message.
        minimum: The smallest valid value.

    Raises:
        ValueError: If the value is not a finite scalar that is large enough.
    """
    start = to_numpy(schedule(0))
    if start.shape != () or not np.isfinite(start) or start < minimum:
        bound = "" if minimum == -math.inf else f" >= {minimum:g}"
        raise invalid(
            name,
            f"a schedule that returns a finite scalar{bound}",
            schedule,
            f", which returns {start!r} at step 0",
        )
    return float(start)
