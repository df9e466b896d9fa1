"""Whether the loss of a term counts at all, and whether it stands still from step to step."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_jointloss._core.math import to_numpy

#: The mean change from step to step, relative to the loss, that may come from rounding alone. The
#: loss of collapsed embeddings changes by 1.5e-7 while the embeddings move.
_ROUNDING = 5e-7


class Constancy:
    """Counts the items, and compares the loss of each step with that of the step before.

    All since the last `reset`. An item counts unless it has no label or a sample weight of 0.

    Only steps with equally many items are compared: the loss of collapsed embeddings, `log(batch)`,
    changes with the last, smaller batch. A step without items is not compared.

    Args:
        add_variable: Creates a variable of the owner from name, shape, initial value, `dtype` and
            `aggregation`.
        dtype: The dtype of the losses.
    """

    def __init__(self, add_variable: Callable[..., Any], dtype: str):
        #: Loss and number of items of the latest step; the sum of the items; over the steps that
        #: are compared, sums of the items, and of the items times the change of the loss. Replicas
        #: add up the sums.
        self.state = add_variable("constancy", (5,), 0.0, dtype=dtype, aggregation="sum")

    def record(self, loss, items, counts=None) -> None:
        """Compares a step with the one before, within the compiled step.

        Args:
            loss: The mean loss.
            items: The number of items in the mean.
            counts: Whether any of them counts; `None` if all do.
        """
        dtype = self.state.dtype
        loss, items = ops.stop_gradient(ops.cast(loss, dtype)), ops.cast(items, dtype)
        if counts is not None:
            items = items * ops.cast(counts, dtype)
        state = ops.unstack(ops.convert_to_tensor(self.state))
        latest_loss, latest_items, counted, compared, changes = state
        added = items * ops.cast(ops.equal(items, latest_items), dtype)
        changes = changes + added * abs(loss - latest_loss)
        self.state.assign(ops.stack([loss, items, counted + items, compared + added, changes]))

    def reset(self) -> None:
        """Forgets all steps."""
        self.state.assign(np.zeros(5))

    # From the host.

    @property
    def has_counted(self) -> bool:
        """Whether any item counted."""
        return bool(to_numpy(self.state)[2] > 0)

    @property
    def holds(self) -> bool:
        """Whether steps were compared and the loss was the same in all of them."""
        loss, _, _, compared, changes = to_numpy(self.state)
        return bool(compared > 0 and changes <= _ROUNDING * abs(loss) * compared)
