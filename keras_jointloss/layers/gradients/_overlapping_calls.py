"""Whether one backward pass reaches several calls of a layer."""

import threading
import weakref
from collections.abc import Callable
from typing import Any, Optional

from keras_jointloss._core.backend import is_traced
from keras_jointloss._core.backend.functions import current_trace


class TrainedCall:
    """A call in training, and whether its backward pass has begun.

    Two successive calls overlap if the second one begins before the backward pass of the first. If
    the backward passes of both begin, they belong to the same step of training. A call that no
    backward pass reaches, such as one that only predicts with dropout, overlaps with none.

    Args:
        latest: The latest call of the layer that has not been released with its gradient function.
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

    Args:
        variable: The value of a variable that the gradient is taken with respect to, or `None`.
            Each gradient has its own, and functions within the function see the same one.
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
