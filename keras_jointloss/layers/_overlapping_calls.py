"""Whether one backward pass reaches several calls of a layer."""

import threading
import weakref
from collections.abc import Callable
from typing import Optional


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
