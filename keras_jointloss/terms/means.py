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
        #: Sums over items of 1 and the loss; over whole batches of the weighted loss and of 1; the
        #: number of targets, labelled or not.
        self.sums = add_variable("sums", (5,), 0.0, dtype=dtype, aggregation="sum")

    def record(self, loss, items, weight, batch_size=None, targets=None) -> None:
        """Adds a step, within the compiled step.

        Args:
            loss: The mean loss.
            items: The number of items in the mean.
            weight: The weight of the step.
            batch_size: The number of items of the batch, by which Keras weights the total; `None`
                if all of them are in the mean.
            targets: The number of targets, of which `items` are labelled; `None` if all are.
        """
        dtype = self.sums.dtype
        loss = ops.stop_gradient(ops.cast(loss, dtype))
        items = ops.cast(items, dtype)
        size = items if batch_size is None else ops.cast(batch_size, dtype)
        targets = items if targets is None else ops.cast(targets, dtype)
        sums = [items, items * loss, size * (loss * weight), size, targets]
        self.sums.assign_add(ops.stack(sums))

    def loss(self):
        """Returns the mean raw loss as a scalar tensor."""
        items, loss, *_ = ops.unstack(ops.convert_to_tensor(self.sums))
        return ops.divide_no_nan(loss, items)

    def labelled(self):
        """Returns the share of the targets that are labelled as a scalar tensor."""
        items, *_, targets = ops.unstack(ops.convert_to_tensor(self.sums))
        return ops.divide_no_nan(items, targets)

    def reset(self) -> None:
        """Resets the means."""
        self.sums.assign(np.zeros(5))

    def read(self) -> dict[str, float]:
        """Returns `loss` and `weighted`, or an empty dict if no item was recorded."""
        items, loss, weighted, size, _ = (float(x) for x in to_numpy(self.sums))
        return {"loss": loss / items, "weighted": weighted / size} if items else {}

    @property
    def size(self) -> float:
        """The number of items of all recorded batches."""
        return float(to_numpy(self.sums)[3])
