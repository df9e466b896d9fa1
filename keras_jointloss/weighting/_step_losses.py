"""The losses of one training step, as the terms report them to their rule."""

import threading
from typing import Any

from keras import ops

from keras_jointloss._backend import replica_count, sum_over_replicas


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
            items: The number of items in the mean.
            counts: Whether any of them has a nonzero weight, a bool tensor.
            given: The user's weight of the term in the next step, if the rule needs it.
        """
        loss = ops.stop_gradient(ops.cast(loss, self._float_dtype))
        items = ops.cast(items, self._float_dtype) * ops.cast(counts, self._float_dtype)
        self._of_thread()[index] = (items, loss, given)

    def _of_thread(self) -> dict[int, Any]:
        return self._recorded.__dict__.setdefault("losses", {})

    @property
    def indices(self) -> set[int]:
        """The indices of the terms that have recorded a loss."""
        return set(self._of_thread())

    def given_weights(self, count: int) -> list[Any]:
        """Returns the recorded `given` of `count` terms; `None` for a term without."""
        recorded = self._of_thread()
        return [recorded[index][2] if index in recorded else None for index in range(count)]

    def pop(self, count: int) -> tuple[Any, Any]:
        """Returns and clears the item counts and mean losses of `count` terms, `(count,)` each.

        The means are over all replicas. A term that has recorded nothing has 0 items.
        """
        recorded = self._of_thread()
        self._recorded.losses = {}
        nothing = (ops.zeros((), self._float_dtype),) * 2
        pairs = [recorded.get(index, nothing)[:2] for index in range(count)]
        items = ops.stack([items for items, _ in pairs])
        losses = ops.stack([loss for _, loss in pairs])
        if replica_count() == 1:
            return items, losses
        sums = ops.stack([items, ops.where(items > 0, items * losses, 0)])
        items, sums = ops.unstack(sum_over_replicas(sums))
        return items, sums / ops.maximum(items, 1)
