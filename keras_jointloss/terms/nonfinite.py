"""What was not finite first in a term: its loss, its weight or a gradient, and in which step."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_jointloss._core.backend import (
    current_replicas,
    is_immediate,
    is_readable,
    replica_values,
    trains_functionally,
)
from keras_jointloss._core.quick_ops import ops

#: How many steps are kept before they are added to the variable.
_KEPT_STEPS = 256
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
    only keeps its numbers, as in `keras_jointloss.terms.record.Record`.

    Args:
        add_variable: Creates a variable of the owner from name, shape, initial value, `dtype` and
            `aggregation`.
        dtype: The dtype of the numbers.
    """

    def __init__(self, add_variable: Callable[..., Any], dtype: str):
        # The number of steps; of the first step with a loss or weight that was not finite, its
        # number, 0 for none, loss and weight; loss and weight of the last step before; the number
        # of the first step with only a gradient that was not finite; how many steps were one of
        # both. One variable, since a step that is compiled takes its time for each.
        self._numbers = add_variable("nonfinite", (8,), 0.0, dtype=dtype, aggregation="sum")
        self.dtype = dtype
        # The steps that are not in the variable yet, and the gradients, with the numbers of steps.
        self._steps: list[tuple] = []
        self._gradients: list[tuple] = []
        self._count = 0

    @property
    def state(self) -> list:
        """The variables."""
        return [self._numbers]

    # Within the compiled step.

    def add(self, loss, weight, is_good) -> None:
        """Adds a step with its loss and weight, and whether both are finite."""
        loss = ops.convert_to_tensor(loss)
        if not is_immediate():
            self._add([(ops.stop_gradient(loss), weight, is_good)])
            return
        self._count += 1
        loss = loss.item() if is_readable(loss) else ops.copy(ops.stop_gradient(loss))
        self._steps.append((loss, weight, is_good))
        if len(self._steps) == _KEPT_STEPS:
            self._add_kept()

    def add_gradient(self, is_bad) -> None:
        """Adds whether a gradient of the step is not finite, although loss and weight are.

        On JAX this is known before `add`, and elsewhere after it.
        """
        if is_immediate():
            self._gradients.append((self._count, is_bad))
            return
        before = ops.convert_to_tensor(self._numbers)
        number = before[0] + (1 if trains_functionally() else 0)
        self._add_gradients(before[6], ops.reshape(number, (1,)), ops.reshape(is_bad, (1,)))

    def _add_kept(self) -> None:
        """Adds the steps that are kept to the variable, unless its value is in a scope or trace."""
        if not is_immediate():
            return
        gradients, self._gradients = self._gradients, []
        if gradients:
            numbers, are_bad = zip(*gradients, strict=True)
            numbers = ops.convert_to_tensor(np.array(numbers, self.dtype))
            first = ops.convert_to_tensor(self._numbers)[6]
            self._add_gradients(first, numbers, ops.stack(list(are_bad)))
        steps, self._steps = self._steps, []
        if steps:
            self._add(steps)

    def _add_gradients(self, first, numbers, are_bad) -> None:
        """Adds for steps in a row whether a gradient was bad; `first` is the first such step."""
        found = ops.min(ops.where(are_bad, numbers, math.inf))
        is_first = ops.logical_and(first <= 0, found < math.inf)
        found = ops.where(is_first, found, ops.zeros_like(found))
        count = current_replicas().once(ops.sum(ops.cast(are_bad, self.dtype)))
        zero = ops.zeros_like(found)
        self._numbers.assign_add(ops.stack([*[zero] * 6, found, count]))

    def _add(self, steps: list[tuple]) -> None:
        """Adds steps in a row."""
        losses, weights, are_good = zip(*steps, strict=True)
        loss, weight, is_good = self._row(losses), self._row(weights), _flags(are_good)
        before = ops.unstack(ops.convert_to_tensor(self._numbers))
        numbers = before[0] + ops.convert_to_tensor(np.arange(1, len(steps) + 1, dtype=self.dtype))
        found = ops.min(ops.where(is_good, math.inf, numbers))
        first = ops.where(before[1] > 0, before[1], found)
        # The last step before, or that of the gradient, whose loss and weight are finite.
        last = ops.minimum(first - 1, numbers[-1])
        last = ops.where(before[6] > 0, ops.minimum(last, before[6]), last)
        rows = ops.stack([numbers, loss, weight])
        of_first = ops.sum(ops.where(ops.equal(numbers, first), rows, ops.zeros_like(rows)), axis=1)
        rows = rows[1:] - ops.stack(before[4:6])[:, None]
        of_last = ops.sum(ops.where(ops.equal(numbers, last), rows, ops.zeros_like(rows)), axis=1)
        count = current_replicas().once(ops.sum(ops.cast(~is_good, self.dtype)))
        size = ops.ones_like(count) * len(steps)
        added = [*ops.unstack(of_first), *ops.unstack(of_last), ops.zeros_like(count), count]
        self._numbers.assign_add(ops.stack([size, *added]))

    def _row(self, values):
        if all(isinstance(x, int | float) for x in values):
            return ops.convert_to_tensor(np.array(values, self.dtype))
        return ops.stack([ops.cast(x, self.dtype) for x in values])

    # From the host.

    def reset(self) -> None:
        """Forgets all steps."""
        if is_immediate():
            self._steps, self._gradients, self._count = [], [], 0
        self._numbers.assign(np.zeros(8, self.dtype))

    def skipped(self) -> int:
        """Returns in how many steps something was not finite."""
        return round(sum(float(x[7]) for x in self._read()))

    def first(self) -> Nonfinite | None:
        """Returns what was not finite first; `None` if all was finite."""
        found = [x for x in map(_first, self._read()) if x is not None]
        return min(found, key=lambda x: x.order, default=None)

    def _read(self) -> list[np.ndarray]:
        """Returns the numbers of each replica."""
        self._add_kept()
        return replica_values(self._numbers)


def _flags(values: Sequence) -> Any:
    """Returns conditions, `True` or bool tensors, as a row."""
    if all(x is True for x in values):
        return ops.convert_to_tensor(np.array(values))
    return ops.stack([ops.convert_to_tensor(x) for x in values])


def _first(numbers: np.ndarray) -> Nonfinite | None:
    _, first, loss, weight, last_loss, last_weight, gradient, _ = numbers.tolist()
    if not (first or gradient):
        return None
    is_gradient = bool(gradient) and not 0 < first <= gradient
    number = round(gradient if is_gradient else first)
    has_last = is_gradient or number > 1
    last = (last_loss, last_weight) if has_last else (None, None)
    if is_gradient:
        return Nonfinite(number, "gradient", math.nan, *last)
    kind, value = ("loss", loss) if math.isfinite(weight) else ("weight", weight)
    return Nonfinite(number, kind, value, *last)
