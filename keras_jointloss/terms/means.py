"""The running means of a term's contribution to the loss since the last reset."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_jointloss._core.math import to_numpy


class Totals(NamedTuple):
    """The sums of a term at one time, on the host.

    Attributes:
        resets: How often they had been reset.
        sums: First those of `Means`, then those of other means of the term.
    """

    resets: int
    sums: list[np.ndarray]

    def since(self, earlier: "Totals | None") -> "Totals":
        """Returns what has been added since an earlier time, or since a reset after that."""
        if earlier is None or earlier.resets != self.resets:
            return self
        pairs = zip(self.sums, earlier.sums, strict=True)
        with np.errstate(invalid="ignore"):  # After an infinite loss the difference is NaN.
            return Totals(self.resets, [new - old for new, old in pairs])

    @property
    def size(self) -> float:
        """The number of items of all recorded batches."""
        return float(self.sums[0][3])

    def read(self) -> dict[str, float]:
        """Returns `loss` and `weighted`, or an empty dict if no item was recorded."""
        items, loss, weighted, size, _ = self.sums[0].tolist()
        return {"loss": loss / items, "weighted": weighted / size} if items else {}

    def labelled(self) -> float:
        """Returns the share of the targets that are labelled; NaN if there were no targets."""
        items, *_, targets = self.sums[0].tolist()
        return items / targets if targets else math.nan


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
        self._resets = 0

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

    def reset(self) -> None:
        """Resets the means."""
        self.sums.assign(np.zeros(5))
        self._resets += 1

    def totals(self) -> Totals:
        """Returns the sums since the last `reset`."""
        return Totals(self._resets, [to_numpy(self.sums).astype("float64")])
