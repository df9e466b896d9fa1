"""The value of a weight: what a user gives, a number or a schedule, at the step of a training."""

import contextlib
import enum
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss import schedules
from keras_jointloss._core.backend import Number, runs_in_python
from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.types import Annealable, Tensor
from keras_jointloss._core.validation import invalid, validate_number

Weight: TypeAlias = Annealable

_PUBLIC = {**vars(keras.optimizers.schedules), **vars(schedules)}.values()
#: The schedules that have no state.
_FIXED = {x for x in _PUBLIC if isinstance(x, type) and issubclass(x, LearningRateSchedule)}
#: How many steps of a schedule the host computes at once.
_BLOCK = 256


class Constant:
    """A weight that is the same in all steps: a finite number, 0 or more."""

    #: Whether the weight depends on the step.
    moves = False

    def __init__(self, weight: Any):
        #: What the user gave.
        self.source = validate_weight(weight)

    def at(self, step: Tensor) -> float:
        """Returns the weight, whatever the step."""
        return self.source

    number_at = at

    def values(self, steps: Sequence[int]) -> list[float]:
        """Returns the weight at each step."""
        return [self.source] * len(steps)


class Scheduled:
    """A number that follows a schedule, or is the minimum where that is less, but not at step 0."""

    moves = True

    def __init__(self, schedule: LearningRateSchedule, dtype: str, minimum: float = 0.0):
        validate_schedule(schedule, minimum=minimum)
        #: What the user gave.
        self.source = schedule
        self.dtype, self.minimum = dtype, minimum
        # The first step of a block, and the weights from there on.
        self._block: tuple[int, list[float]] = (0, [])
        self._takes_blocks = runs_in_python() and _is_fixed(schedule)

    def at(self, step: Tensor) -> Tensor:
        """Returns the number at a step, an int32 tensor."""
        # Rounding can put a schedule that ends at 0 slightly below it.
        return ops.maximum(ops.cast(self.source(step), self.dtype), self.minimum)

    def number_at(self, step: int) -> float:
        """Returns the value at a step as a number of Python."""
        first = step - step % _BLOCK  # Of a vector, the same element always rounds alike.
        if self._takes_blocks and (self._block[0] != first or not self._block[1]):
            weights = self._all_at(range(first, first + _BLOCK))
            self._block, self._takes_blocks = (first, weights), bool(weights)
        if self._takes_blocks:
            return self._block[1][step - first]
        with _host():
            return to_numpy(self.at(ops.convert_to_tensor(step, "int32"))).item()

    def values(self, steps: Sequence[int]) -> list[float]:
        """Returns the weights at steps, computed at once if the schedule can."""
        return self._all_at(steps) or [self.number_at(step) for step in steps]

    def _all_at(self, steps: Sequence[int]) -> list[float]:
        """Returns the weights at steps; an empty list if the schedule takes one step only."""
        try:
            with _host():
                weights = to_numpy(self.at(ops.convert_to_tensor(list(steps), "int32")))
        except Exception:  # A custom schedule may raise anything.
            return []
        return weights.tolist() if weights.shape == (len(steps),) else []


def _is_fixed(schedule: LearningRateSchedule) -> bool:
    """Returns whether only the step changes the values of a schedule, as for those of Keras."""
    parts = keras.tree.flatten(list(vars(schedule).values()))
    return type(schedule) in _FIXED and all(
        _is_fixed(x) for x in parts if isinstance(x, LearningRateSchedule)
    )


def _host():
    """Returns a context for operations on a few numbers, where each would start by itself."""
    return keras.device("cpu") if runs_in_python() else contextlib.nullcontext()


def given(weight: Weight, dtype: str, minimum: float = 0.0) -> Constant | Scheduled:
    """Returns what a user gives as a weight, or raises `ValueError` if it can be none."""
    is_schedule = isinstance(weight, LearningRateSchedule)
    return Scheduled(weight, dtype, minimum) if is_schedule else Constant(weight)


class Mode(enum.IntEnum):
    """What a training step does: nothing; count it and follow the schedule; only count it."""

    STILL, MOVING, OFF = range(3)


class MovingValue:
    """A value that follows what the user gave while annealing is on.

    It is a variable, as are the step and the mode, since compiled steps move it.
    """

    def _create_value(
        self, weight: Weight, dtype: str, add_variable: Callable[..., Any], minimum: float = 0.0
    ) -> None:
        def add_number(name: str, number: float, dtype: str) -> Number:
            return Number(add_variable(name, (), number, dtype=dtype))

        self.given = given(weight, dtype, minimum)
        #: Whether the term counts training steps: its weight, or another value, has a schedule.
        self.counts_steps = self.given.moves
        #: What a step does; `_mode` tells the compiled step.
        self.mode = Mode.STILL
        self._kept: float | None = None  # Unless the term is switched off.
        self._value = add_number("value", self.given.number_at(0), dtype)
        self._step = add_number("step", 0, "int32")
        self._mode = add_number("mode", Mode.STILL.value, "int32")

    @property
    def schedule(self) -> LearningRateSchedule | None:
        """The schedule that the user gave; `None` for a number."""
        return self.given.source if self.given.moves else None

    @property
    def annealing(self) -> bool:
        """Whether `advance` counts the steps."""
        return self.mode != Mode.STILL

    @property
    def is_off(self) -> bool:
        """Whether the term is switched off."""
        return self._kept is not None

    # Within the compiled step.

    def advance(self) -> None:
        """Counts a training step and moves the weight along its schedule, if annealing is on."""
        if not self.counts_steps:
            return
        step, value = self._next()
        self._step.assign(step)
        if self.given.moves:
            self._value.assign(value)

    def next_value(self) -> Tensor | float:
        """Returns the value of the next step, as a number if the host knows it.

        Valid before `advance` has counted this step, as when `record` calls the observer.
        """
        return self._next()[1]

    def _next(self):
        """Returns the step and the value after `advance`."""
        mode, step, value = (x.read() for x in (self._mode, self._step, self._value))
        if isinstance(mode, int):
            step += mode > Mode.STILL
            moves = self.given.moves and mode == Mode.MOVING
            return step, self.given.number_at(step) if moves else value
        step = step + ops.cast(mode > Mode.STILL.value, "int32")
        if self.given.moves:
            value = ops.where(ops.equal(mode, Mode.MOVING.value), self.given.at(step), value)
        return step, value

    # From the host.

    def next_number(self) -> float:
        """Returns the value of the step after the current one."""
        moves = self.given.moves and self.mode == Mode.MOVING
        return self.given.number_at(self.step + 1) if moves else self._value.on_host()

    def start_annealing(self, step: int | None = None) -> None:
        """Lets `advance` move the weight, from `step` or from the current step of the schedule."""
        if self.counts_steps and step is not None:
            self._step.assign(step)
        if self.is_off:  # `set_weights`, as of `EarlyStopping`, changes the variables of layers.
            self._value.assign(0.0)
        elif self.given.moves:
            self._value.assign(self.given.number_at(self.step))
        self._set_mode(is_on=True)

    def stop_annealing(self) -> None:
        """Stops `advance` from moving the weight."""
        self._set_mode(is_on=False)

    def _set_mode(self, is_on: bool) -> None:
        self.mode = (Mode.OFF if self.is_off else Mode.MOVING) if is_on else Mode.STILL
        self._mode.assign(self.mode.value)

    def switch_off(self) -> None:
        """Sets the weight to 0 until `switch_on`, in later trainings and in the saved model, too.

        A schedule still counts the steps. For a weighting the term is absent: it keeps its factor
        and its state.
        """
        if not self.is_off:
            self._kept = self.value
            self._value.assign(0.0)
            self._set_mode(self.annealing)

    def switch_on(self) -> None:
        """Ends `switch_off`: a schedule continues at its step, a constant at its last value."""
        if self._kept is not None:
            given = self.given
            self._value.assign(given.number_at(self.step) if given.moves else self._kept)
            self._kept = None
            self._set_mode(self.annealing)

    @property
    def step(self) -> int:
        """The current step of the schedule."""
        return self._step.on_host()

    def assign(self, value: float) -> None:
        """Sets the weight; under a weighting, the value that the adapted weight is multiplied by.

        A constant weight keeps the value, also through saving and loading. A scheduled weight keeps
        it until annealing continues. For a term that is switched off, the value takes effect when
        it is switched on again.

        Args:
            value: A finite number, 0 or more.

        Raises:
            ValueError: If `value` is not such a number.
        """
        value = validate_number(value, "value", minimum=0)
        if self.is_off:
            self._kept = value
        else:
            self._value.assign(value)

    @property
    def value(self) -> float:
        """The current weight without the factor of a weighting, as if the term were on."""
        return self._value.on_host() if self._kept is None else self._kept


def validate_weight(weight: Any) -> float:
    """Returns `weight` as a float, or raises `ValueError` if it cannot weight a loss."""
    return validate_number(
        weight,
        "weight",
        minimum=0,
        expected="a finite number >= 0 or a `keras.optimizers.schedules.LearningRateSchedule`",
    )


def deserialize_weight(config: Any) -> Any:
    """Returns the number or the schedule from a config."""
    return deserialized(config, "weight")


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
