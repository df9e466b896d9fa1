"""What was not finite first in a term: its loss, its weight or a gradient, and in which step."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_jointloss._core.backend import (
    is_immediate,
    is_readable,
    replica_values,
    trains_functionally,
    vector,
)
from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.quick_ops import ops

#: How many steps are kept as they are.
_KEPT_STEPS = 256
#: How many numbers describe a step.
_STEP = 6
#: How many numbers the variable holds.
_SIZE = 2 * _STEP + 2
#: What can be not finite, in the order in which a step computes it.
KINDS = ("weight", "loss", "gradient")


class Nonfinite(NamedTuple):
    """The first step in which something of a term was not finite.

    Attributes:
        number: The number of the step since the last reset, from 1.
        kind: One of `KINDS`.
        value: The loss or weight that is not finite; NaN for a gradient.
        loss: The loss of the last step in which it was finite.
        weight: The weight of that step. Both are `None` if there was none.
    """

    number: int
    kind: str
    value: float
    loss: float | None
    weight: float | None

    @property
    def order(self) -> tuple[int, int]:
        """Orders those of several terms."""
        return self.number, KINDS.index(self.kind)


class NonfiniteRecord:
    """Finds the first step since the last reset in which something was not finite, in the graph.

    It costs nothing unless `add` is called. Where operations run one by one, as on PyTorch, a step
    only keeps its numbers, and the host looks at them later.

    Args:
        add_variable: Creates a variable of the owner from name, shape, initial value, `dtype` and
            `aggregation`.
        dtype: The dtype of the numbers.
    """

    def __init__(self, add_variable: Callable[..., Any], dtype: str):
        # The latest step: its number; what was not finite, 1 for loss or weight plus 2 for each
        # gradient, 0 for nothing; loss and weight of the step before; its own. The same of the
        # first step in which something was not finite, with the number 0 for none. The number of
        # such steps. The last two leave out the latest step, whose gradient may be known after all
        # else. Finally what the gradient adds to the next step, where it is known before. One
        # variable, since a step that is compiled takes its time for each.
        self._numbers = add_variable("nonfinite", (_SIZE,), 0.0, dtype=dtype, aggregation="sum")
        self.dtype = dtype
        # The steps that the variable lacks: loss, weight, whether they are finite, and whether only
        # a gradient is not; many of them as four columns.
        self._steps: list[list] = []
        self._columns: list[list] = []

    @property
    def state(self) -> list:
        """The variables."""
        return [self._numbers]

    # Within the compiled step.

    def add(self, loss, weight, is_good) -> None:
        """Adds a step with its loss and weight, and whether both are finite."""
        loss = ops.convert_to_tensor(loss)
        if is_immediate():
            if len(self._steps) == _KEPT_STEPS:
                self._pack()
            loss = loss.item() if is_readable(loss) else ops.copy(ops.stop_gradient(loss))
            self._steps.append([loss, weight, is_good, False])
            return
        loss, weight, is_bad = (
            ops.cast(x, self.dtype)
            for x in (ops.stop_gradient(loss), weight, ops.logical_not(is_good))
        )
        numbers = ops.unstack(ops.convert_to_tensor(self._numbers))
        latest, first, (count, of_gradient) = numbers[:_STEP], numbers[_STEP:-2], numbers[-2:]
        was_bad = latest[1] > 0
        is_first = ops.logical_and(was_bad, ops.equal(first[0], 0))
        first = [ops.where(is_first, x, y) for x, y in zip(latest, first, strict=True)]
        count = count + ops.cast(was_bad, self.dtype)
        latest = [latest[0] + 1, is_bad + of_gradient, *latest[4:], loss, weight]
        self._numbers.assign(vector([*latest, *first, count, ops.zeros_like(count)]))

    def add_gradient(self, is_bad) -> None:
        """Adds whether a gradient of the step is not finite, although loss and weight are.

        On JAX this is known before `add`, and elsewhere after it.
        """
        if is_immediate():
            if self._steps:  # A backward pass may come again, after the step has been read.
                step = self._steps[-1]
                step[3] = is_bad if step[3] is False else ops.logical_or(step[3], is_bad)
            return
        place = np.arange(_SIZE) == (_SIZE - 1 if trains_functionally() else 1)
        self._numbers.assign_add(ops.cast(is_bad, self.dtype) * np.array(2 * place, self.dtype))

    def _pack(self) -> None:
        """Turns the steps that are kept into columns, without reading from the device."""
        steps, self._steps = self._steps, []
        if steps:
            self._columns.append([self._column(x) for x in zip(*steps, strict=True)])

    def _column(self, values: Sequence) -> Any:
        if all(isinstance(x, int | float) for x in values):
            return np.array(values, self.dtype)
        return ops.stack([ops.cast(x, self.dtype) for x in values])

    # From the host.

    def reset(self) -> None:
        """Forgets all steps."""
        if is_immediate():
            self._steps, self._columns = [], []
        self._numbers.assign(np.zeros(_SIZE, self.dtype))

    def skipped(self) -> int:
        """Returns in how many steps something was not finite."""
        return max(round(count) for _, count in self._found())

    def first(self) -> Nonfinite | None:
        """Returns what was not finite first; `None` if all was finite."""
        found = [_described(step) for step, _ in self._found() if step[0]]
        return min(found, key=lambda x: x.order, default=None)

    def _found(self) -> list[tuple[list[float], float]]:
        """Returns the first step and the number of steps of each replica."""
        if is_immediate():
            self._pack()
            columns, self._columns = self._columns, []
            if columns:
                numbers = to_numpy(self._numbers).tolist()
                for column in columns:
                    numbers = _after(numbers, zip(*map(to_numpy, column), strict=True))
                self._numbers.assign(np.array(numbers, self.dtype))
        return [_with_latest(x.tolist()) for x in replica_values(self._numbers)]


def _with_latest(numbers: list[float]) -> tuple[list[float], float]:
    """Returns the first step in which something was not finite, and the number of such steps."""
    latest, first, count = numbers[:_STEP], numbers[_STEP:-2], numbers[-2]
    if not latest[1]:
        return first, count
    return first if first[0] else latest, count + 1


def _after(numbers: list[float], rows: Iterable[tuple]) -> list[float]:
    """Returns the numbers of a record after more steps."""
    for loss, weight, is_good, is_bad_gradient in rows:
        first, count = _with_latest(numbers)
        is_bad = (not is_good) + 2 * bool(is_bad_gradient)
        numbers = [numbers[0] + 1, is_bad, *numbers[4:_STEP], loss, weight, *first, count, 0.0]
    return numbers


def _described(step: list[float]) -> Nonfinite:
    number, is_bad, *before, loss, weight = step
    if is_bad % 2 == 0:
        return Nonfinite(round(number), "gradient", math.nan, loss, weight)
    kind, value = ("loss", loss) if math.isfinite(weight) else ("weight", weight)
    return Nonfinite(round(number), kind, value, *(before if number > 1 else (None, None)))
