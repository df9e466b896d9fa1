"""What was not finite first in a term: its loss, its weight or a gradient, and in which step."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_jointloss._core.backend import (
    current_replicas,
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
#: How many numbers the variable holds.
_SIZE = 9
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
        # The number of steps; that of the first one in which something was not finite, 0 for none;
        # 1 if that was only a gradient; how many steps there were in which something was not
        # finite, and the number of the latest; loss and weight of the step before the first one, or
        # before the latest, and those of this step itself. One variable, since a step that is
        # compiled takes its time for each.
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
        now = [ops.cast(x, self.dtype) for x in (ops.stop_gradient(loss), weight)]
        numbers = ops.unstack(ops.convert_to_tensor(self._numbers))
        steps, first, is_gradient, count, counted, *latest = numbers
        steps = steps + 1
        is_bad = ops.logical_not(is_good)
        # It may be the gradient of this step.
        is_open = ops.logical_or(ops.equal(first, 0), ops.equal(first, steps))
        first = ops.where(ops.logical_and(is_open, is_bad), steps, first)
        # Not twice, if a layer is called twice in a step.
        is_new = ops.logical_and(is_bad, ops.not_equal(counted, steps))
        count = count + current_replicas().once(ops.cast(is_new, self.dtype))
        counted = ops.where(is_bad, steps, counted)
        moved = [*latest[2:], *now]
        latest = [ops.where(is_open, x, y) for x, y in zip(moved, latest, strict=True)]
        self._numbers.assign(vector([steps, first, is_gradient, count, counted, *latest]))

    def add_gradient(self, is_bad) -> None:
        """Adds whether a gradient of the step is not finite, although loss and weight are.

        On JAX this is known before `add`, and elsewhere after it.
        """
        if is_immediate():
            if self._steps:  # A backward pass may come again, after the step has been read.
                step = self._steps[-1]
                step[3] = is_bad if step[3] is False else ops.logical_or(step[3], is_bad)
            return
        steps, first, _, _, counted, *latest = ops.unstack(ops.convert_to_tensor(self._numbers))
        number = steps + 1 if trains_functionally() else steps
        is_bad = ops.cast(is_bad, self.dtype)
        is_first = is_bad * ops.cast(ops.equal(first, 0), self.dtype)
        # In the backward pass of a layer that is called twice, both calls have a gradient.
        count = current_replicas().once(is_bad * ops.cast(counted < number, self.dtype))
        zero = ops.zeros_like(is_bad)
        more = [zero, is_first * number, is_first, count, is_bad * (number - counted)]
        self._numbers.assign_add(vector([*more, *[zero] * len(latest)]))

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
        return round(sum(float(x[3]) for x in self._read()))

    def first(self) -> Nonfinite | None:
        """Returns what was not finite first; `None` if all was finite."""
        found = [x for x in map(_first, self._read()) if x is not None]
        return min(found, key=lambda x: x.order, default=None)

    def _read(self) -> list[np.ndarray]:
        """Returns the numbers of each replica."""
        if is_immediate():
            self._pack()
            columns, self._columns = self._columns, []
            if columns:
                numbers = to_numpy(self._numbers)
                for column in columns:
                    numbers = _after(numbers, zip(*map(to_numpy, column), strict=True))
                self._numbers.assign(numbers)
        return replica_values(self._numbers)


def _after(numbers: np.ndarray, rows: Iterable[tuple]) -> np.ndarray:
    """Returns the numbers of a record after more steps."""
    steps, first, is_gradient, count, counted, *latest = numbers.tolist()
    for loss, weight, is_good, is_bad_gradient in rows:
        steps += 1
        if not first:
            latest = [*latest[2:], loss, weight]
            if not is_good or is_bad_gradient:
                first, is_gradient = steps, float(is_good)
        if not is_good or is_bad_gradient:
            count, counted = count + 1, steps
    return np.array([steps, first, is_gradient, count, counted, *latest], numbers.dtype)


def _first(numbers: np.ndarray) -> Nonfinite | None:
    number, is_gradient, _, _, *latest = numbers[1:].tolist()
    if not number:
        return None
    before, (loss, weight) = latest[:2], latest[2:]
    if is_gradient:
        return Nonfinite(round(number), "gradient", math.nan, loss, weight)
    kind, value = ("loss", loss) if math.isfinite(weight) else ("weight", weight)
    return Nonfinite(round(number), kind, value, *(before if number > 1 else (None, None)))
