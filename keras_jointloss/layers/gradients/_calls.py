"""Which calls of a layer belong to one backward pass, and which to one step of the model."""

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Optional

from keras_jointloss._core.backend import current_trace, is_traced
from keras_jointloss._core.keras_calls import outermost_call


class TrainedCall:
    """A call in training, and whether its backward pass has begun.

    Two successive calls overlap if the second one begins before the backward pass of the first. If
    the backward passes of both begin, they belong to the same step of training. A call that no
    backward pass reaches, such as one that only predicts with dropout, overlaps with none. The
    `latest` call before it is the last one that has not been released with its gradient function.
    """

    def __init__(self, latest: Optional["TrainedCall"]):
        self.is_reached = False
        # The replicas of `tf.distribute` are threads that share their layers.
        self._thread = threading.get_ident()
        self._next: TrainedCall | None = None
        self._get_previous: Callable[[], TrainedCall | None] = lambda: None
        if latest is not None and not latest.is_reached and latest._thread == self._thread:
            latest._next = self
            self._get_previous = weakref.ref(latest)

    def reach(self) -> bool:
        """Marks that the backward pass begins; returns whether it has reached another call, too."""
        self.is_reached = True
        neighbours = (self._get_previous(), self._next)
        return any(call is not None and call.is_reached for call in neighbours)


class FunctionGradient:
    """The gradient of a function that JAX takes when a layer is called.

    It may be taken with respect to a variable, whose value is given. Each gradient has its own, and
    functions within the function see the same one.
    """

    def __init__(self, variable: Any):
        self._trace = current_trace()
        # It does not keep what it is compared by alive.
        is_own = variable is not None and is_traced(variable)
        self._get_variable = weakref.ref(variable) if is_own else lambda: None

    def follows(self, other: Optional["FunctionGradient"]) -> bool:
        """Returns whether another call belongs to the same gradient."""
        if other is None or other is self:
            return False
        variable = self._get_variable()
        is_same = variable is not None and variable is other._get_variable()
        return is_same or self._trace == other._trace


class _Computed(NamedTuple):
    """A result, and what it is the result of."""

    sources: list
    trace: Any
    result: Any

    def is_of(self, sources: Sequence[Any], trace: Any) -> bool:
        """Returns whether this is the result of these sources, in a function that may use it."""
        is_same = [*map(id, self.sources)] == [*map(id, sources)]
        return is_same and self.trace == trace


class StepMemory:
    """Keeps the results of a layer for its other calls in the same step, and no longer.

    A step is one outermost call: of the model that contains the layer, or of the layer itself.
    Several of them can belong to one step of an optimizer, but nothing tells that before the
    backward pass. Each replica makes an outermost call of its own.
    """

    def __init__(self):
        self._computed: weakref.WeakKeyDictionary[Any, list[_Computed]] = (
            weakref.WeakKeyDictionary()
        )

    def __len__(self) -> int:
        return len(self._computed)

    def get(self, sources: Sequence[Any], compute: Callable[[], Any]) -> Any:
        """Returns what `compute` returned in this step for the same sources, or calls it.

        These are compared by identity: within a step a layer can be called with other parameters,
        and in a function that is traced by itself.
        """
        call = outermost_call()
        if call is None:
            return compute()
        trace = current_trace()
        known = self._computed.setdefault(call, [])
        for computed in known:
            if computed.is_of(sources, trace):
                return computed.result
        result = compute()
        known.append(_Computed(list(sources), trace, result))
        return result
