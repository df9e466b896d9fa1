"""Schedules that `keras.optimizers.schedules` lacks: a scalar as a function of the training step.

Each is a `LearningRateSchedule`, so it can set the weight of a loss term or the learning rate of an
optimizer.
"""

from collections.abc import Sequence

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core.registry import deserialized_list
from keras_jointloss._core.types import Config, Step, Tensor
from keras_jointloss._core.validation import MAX_COUNT, invalid, validate_count, validate_number

__all__ = ["Cyclical", "Linear", "Sequential", "Sigmoid"]


def _steps_since(begin: int, step):
    """Returns the number of steps since `begin`, or 0 before it."""
    return ops.maximum(step - begin, 0) if begin else step


def _to_float(step):
    """Casts to a float that can count steps, even if `floatx` is a half-precision dtype."""
    return ops.cast(step, keras.backend.result_type("float32", keras.config.floatx()))


def _ramp(start: float, end: float, steps: float, step):
    """Moves linearly from `start` at step 0 to `end` at step `steps`, both reached exactly."""
    step = _to_float(step)
    return ops.where(step < steps, start + (end - start) / steps * step, end)


class _Schedule(LearningRateSchedule):
    """Base class: a subclass computes its value, in any dtype, from the step tensor."""

    def __call__(self, step: Step) -> Tensor:
        return ops.cast(self._value(ops.convert_to_tensor(step)), keras.config.floatx())

    def _value(self, step):
        raise NotImplementedError


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Linear(_Schedule):
    """Moves linearly from one value to another and stays there.

    `start + (end - start) * clip((step - begin) / steps, 0, 1)`

    Args:
        start: The value up to step `begin`, a finite number.
        end: The value from step `begin + steps` on, a finite number.
        steps: The number of training steps of the ramp, an integer >= 1.
        begin: The training step at which the ramp begins, an integer >= 0.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    >>> schedule = Linear(0.0, 1.0, steps=4, begin=1)
    >>> [float(schedule(step)) for step in range(7)]
    [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    """

    def __init__(self, start: float, end: float, steps: int, begin: int = 0):
        self.start = validate_number(start, "start")
        self.end = validate_number(end, "end")
        self.steps = validate_count(steps, "steps")
        self.begin = validate_count(begin, "begin", minimum=0)

    def _value(self, step):
        return _ramp(self.start, self.end, self.steps, _steps_since(self.begin, step))

    def get_config(self) -> Config:
        return {"start": self.start, "end": self.end, "steps": self.steps, "begin": self.begin}


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Sigmoid(_Schedule):
    """Moves from one value to another along a logistic curve.

    `start + (end - start) / (1 + exp(-(step - midpoint) / width))`

    The value moves from 2 to 98 percent of the way in about 8 widths. It approaches the ends but
    does not reach them: at step 0 it is `start` only if `midpoint` is many widths away.

    Args:
        start: The value long before `midpoint`, a finite number.
        end: The value long after `midpoint`, a finite number.
        midpoint: The training step at which the value is halfway, a finite number.
        width: The time scale in training steps, a finite number > 0.

    Raises:
        ValueError: If an argument is not as described.

    References:
        - Bowman et al., 2016, Generating Sentences from a Continuous Space (the weight of a KL term
          annealed along a curve of this shape)

    Example:

    >>> schedule = Sigmoid(0.0, 1.0, midpoint=100, width=10)
    >>> [round(float(schedule(step)), 3) for step in (0, 80, 100, 120, 200)]
    [0.0, 0.119, 0.5, 0.881, 1.0]
    """

    def __init__(self, start: float, end: float, midpoint: float, width: float):
        self.start = validate_number(start, "start")
        self.end = validate_number(end, "end")
        self.midpoint = validate_number(midpoint, "midpoint")
        self.width = validate_number(width, "width", minimum=0, exclusive=True)

    def _value(self, step):
        share = ops.sigmoid((_to_float(step) - self.midpoint) * (1 / self.width))
        return self.start + (self.end - self.start) * share

    def get_config(self) -> Config:
        ends = {"start": self.start, "end": self.end}
        return {**ends, "midpoint": self.midpoint, "width": self.width}


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Cyclical(_Schedule):
    """Repeats a cycle: moves linearly from one value to another, then stays there.

    `start + (end - start) * min(1, (step mod cycle_steps) / (ramp * cycle_steps))`

    Args:
        start: The value at the beginning of each cycle, a finite number.
        end: The value for the rest of the cycle, a finite number.
        cycle_steps: The number of training steps in a cycle, an integer >= 1.
        ramp: The fraction of a cycle in which the value moves, > 0 and <= 1.
        cycles: The number of cycles, an integer >= 1; after them the value is `end`. `None` for no
            limit.

    Raises:
        ValueError: If an argument is not as described.

    References:
        - Fu et al., 2019, Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing

    Example:

    >>> schedule = Cyclical(0.0, 1.0, cycle_steps=4, cycles=2)
    >>> [float(schedule(step)) for step in range(10)]
    [0.0, 0.5, 1.0, 1.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        start: float,
        end: float,
        cycle_steps: int,
        ramp: float = 0.5,
        cycles: int | None = None,
    ):
        self.start = validate_number(start, "start")
        self.end = validate_number(end, "end")
        self.cycle_steps = validate_count(cycle_steps, "cycle_steps")
        expected = "a number > 0 and <= 1"
        self.ramp = validate_number(ramp, "ramp", minimum=0, exclusive=True, expected=expected)
        if self.ramp > 1:
            raise invalid("ramp", expected, ramp)
        self.cycles = None if cycles is None else validate_count(cycles, "cycles")

    def _value(self, step):
        in_cycle = step % self.cycle_steps
        if self.cycles is not None:
            stop = min(self.cycles * self.cycle_steps, MAX_COUNT)
            in_cycle = ops.where(step < stop, in_cycle, self.cycle_steps)
        return _ramp(self.start, self.end, self.ramp * self.cycle_steps, in_cycle)

    def get_config(self) -> Config:
        ends = {"start": self.start, "end": self.end}
        return {**ends, "cycle_steps": self.cycle_steps, "ramp": self.ramp, "cycles": self.cycles}


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Sequential(_Schedule):
    """Joins schedules: each takes over from the previous one at its boundary.

    `schedules[i](step - boundaries[i - 1])` while `boundaries[i - 1] <= step < boundaries[i]`

    Each schedule but the first counts its steps from its own boundary, as if training
    began there.

    Args:
        schedules: One or more `keras.optimizers.schedules.LearningRateSchedule` objects; a finite
            number is a constant schedule.
        boundaries: The training steps at which the second, third, ... schedule takes over:
            integers >= 0, strictly increasing, one fewer than `schedules`.

    Raises:
        ValueError: If an entry is invalid, the boundaries are not strictly increasing, or their
            number does not match that of the schedules.

    Example:

    >>> schedule = Sequential([0.0, Linear(0.0, 1.0, steps=2), 0.5], boundaries=[2, 6])
    >>> [float(schedule(step)) for step in range(8)]
    [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 0.5, 0.5]
    """

    def __init__(
        self, schedules: Sequence[float | LearningRateSchedule], boundaries: Sequence[int]
    ):
        for value, name in ((schedules, "schedules"), (boundaries, "boundaries")):
            if not isinstance(value, list | tuple):
                raise invalid(name, "a list", value)
        expected = "a finite number or a `keras.optimizers.schedules.LearningRateSchedule`"
        self.schedules = [
            schedule
            if isinstance(schedule, LearningRateSchedule)
            else validate_number(schedule, f"schedules[{i}]", expected=expected)
            for i, schedule in enumerate(schedules)
        ]
        self.boundaries = [
            validate_count(boundary, f"boundaries[{i}]", minimum=0)
            for i, boundary in enumerate(boundaries)
        ]
        if len(boundaries) + 1 != len(schedules):
            expected = f"one entry fewer than `schedules`, which has {len(schedules)}"
            raise invalid("boundaries", expected, boundaries)
        if self.boundaries != sorted(set(self.boundaries)):
            raise invalid("boundaries", "strictly increasing integers", boundaries)

    def _value(self, step):
        value, *later = (
            schedule(_steps_since(begin, step))
            if isinstance(schedule, LearningRateSchedule)
            else schedule
            for begin, schedule in zip([0, *self.boundaries], self.schedules, strict=True)
        )
        for boundary, next_value in zip(self.boundaries, later, strict=True):
            # A selection, because a schedule may return NaN outside its range.
            value = ops.where(step < boundary, value, next_value)
        return value

    def get_config(self) -> Config:
        return {"schedules": list(self.schedules), "boundaries": list(self.boundaries)}

    @classmethod
    def from_config(cls, config: Config) -> "Sequential":
        schedules = deserialized_list(config.get("schedules"), "schedules")
        return cls(**{**config, "schedules": schedules})
