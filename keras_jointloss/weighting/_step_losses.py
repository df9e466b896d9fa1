"""The losses of one training step, as the terms report them to their rule."""

import threading
from typing import Any

from keras import ops

from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.math import divide_or_0


class StepLosses:
    """Collects the mean loss and the number of items of each term in a training step.

    Args:
        dtype: The dtype of the returned tensors.
    """

    def __init__(self, dtype: str):
        self._float_dtype = dtype
        # Each replica of `tf.distribute` traces in its own thread.
        self._recorded = threading.local()

    def clear(self) -> None:
        """Drops the recorded losses: those left by the trace of another model belong to no step."""
        self._recorded = threading.local()

    def record(self, index: int, loss, items, counts, given=None) -> None:
        """Records the loss of the term with this index.

        Args:
            index: The index of the term.
            loss: Its mean loss.
            items: The number of items in the mean, or what else it divides by.
            counts: Whether any of them has a nonzero weight, a bool tensor.
            given: The user's weight of the term in the next step, if the rule needs it.
        """
        loss = ops.stop_gradient(ops.cast(loss, self._float_dtype))
        items = ops.cast(items, self._float_dtype)
        counting = items * ops.cast(counts, self._float_dtype)
        self._of_thread()[index] = (items, counting, loss, given)

    def _of_thread(self) -> dict[int, Any]:
        return self._recorded.__dict__.setdefault("losses", {})

    @property
    def indices(self) -> set[int]:
        """The indices of the terms that have recorded a loss."""
        return set(self._of_thread())

    def given_weights(self, count: int) -> list[Any]:
        """Returns the recorded `given` of `count` terms; `None` for a term without."""
        recorded = self._of_thread()
        return [recorded[index][-1] if index in recorded else None for index in range(count)]

    def pop(self, count: int) -> tuple[Any, Any]:
        """Returns and clears which of `count` terms count, and their mean losses: `(count,)` each.

        The means are over all replicas. A term counts if a replica has recorded a loss of it in
        which an item has a nonzero weight.
        """
        recorded = self._of_thread()
        self._recorded.losses = {}
        nothing = (ops.zeros((), self._float_dtype),) * 3
        found = [recorded.get(index, nothing)[:3] for index in range(count)]
        items, counting, losses = (ops.stack(values) for values in zip(*found, strict=True))
        replicas = current_replicas()
        if replicas.count > 1:
            sums = ops.stack([items, counting, ops.where(items > 0, items * losses, 0)])
            items, counting, total = ops.unstack(replicas.sum(sums))
            losses = divide_or_0(total, items)
        return counting > 0, losses
