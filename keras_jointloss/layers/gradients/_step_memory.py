"""What a layer computes once in a training step, although it is called several times."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras_jointloss._core.backend.functions import current_trace
from keras_jointloss._core.keras_calls import outermost_call


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
        """Returns what `compute` returned in this step, or calls it.

        Args:
            sources: Objects that the result depends on, compared by identity: within a step a layer
                can be called with other parameters, and in a function that is traced by itself.
            compute: Computes the result.
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
