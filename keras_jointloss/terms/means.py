"""The running means of a term's contribution to the loss since the last reset."""

from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_jointloss._math import to_numpy


class Means:
    """Means over items of a term's raw and weighted loss.

    Args:
        add_variable: Creates a variable of the owner from name, shape, initial value, `dtype` and
            `aggregation`.
        dtype: The dtype of the sums.
    """

    def __init__(self, add_variable: Callable[..., Any], dtype: str):
        #: Sums over items of 1, the loss and the weighted loss, and the number of targets.
        self.sums = add_variable("sums", (4,), 0.0, dtype=dtype, aggregation="sum")

    def record(self, loss, items, weight, targets=None) -> None:
        """Adds a step, within the compiled step.

        Args:
            loss: The mean loss.
            items: The number of items.
            weight: The weight of the step.
            targets: The number of targets, of which `items` are labelled; `None` if all are.
        """
        dtype = self.sums.dtype
        loss = ops.stop_gradient(ops.cast(loss, dtype))
        items, one = ops.cast(items, dtype), ops.ones((), dtype=dtype)
        if targets is None:
            self.sums.assign_add(items * ops.stack([one, loss, loss * weight, one]))
        else:
            targets, loss = ops.cast(targets, dtype), items * loss
            self.sums.assign_add(ops.stack([items, loss, loss * weight, targets]))

    def loss(self):
        """Returns the mean raw loss as a scalar tensor."""
        return ops.divide_no_nan(self.sums[1], self.sums[0])

    def labelled(self):
        """Returns the share of the targets that are labelled as a scalar tensor."""
        return ops.divide_no_nan(self.sums[0], self.sums[3])

    def reset(self) -> None:
        """Resets the means."""
        self.sums.assign(np.zeros(4))

    def read(self) -> dict[str, float]:
        """Returns `loss` and `weighted`, or an empty dict if no step was recorded."""
        items, loss, weighted, _ = (float(x) for x in to_numpy(self.sums))
        return {"loss": loss / items, "weighted": weighted / items} if items else {}
