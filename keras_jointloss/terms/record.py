"""What a term has recorded since the last reset: the means of its loss, and whether it moves."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from keras_jointloss._core.backend import is_immediate, trains_functionally, vector
from keras_jointloss._core.keras_calls import is_stateless
from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.quick_ops import ops

#: The mean change from step to step, relative to the loss, that may come from rounding alone. The
#: loss of collapsed embeddings changes by 1.5e-7 while the embeddings move.
_ROUNDING = 5e-7
#: How many steps a term keeps before it adds them to its variables.
KEPT_STEPS = 256


class Totals(NamedTuple):
    """The sums of a term at one time, on the host.

    Attributes:
        resets: How often they had been reset.
        sums: First those of `Record`, then those of other means of the term.
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


class RecordedStep(NamedTuple):
    """The numbers of a step, or of several in a row: then each is a vector.

    Attributes:
        loss: The mean loss.
        items: The number of items in the mean.
        weight: The weight of the step.
        size: The number of items of the batch, by which Keras weights the total.
        targets: The number of targets, of which `items` are labelled.
        counts: Whether any of the items counts.
    """

    loss: Any
    items: Any
    weight: Any
    size: Any
    targets: Any
    counts: Any


class Record:
    """The sums of a term over the steps since the last reset.

    Where operations run one by one, as on PyTorch, a step only keeps its numbers. The variable
    receives those of many steps at once, before anything here reads it. Read it nowhere else.

    The loss of each step is compared with that of the step before, if both have equally many items:
    the loss of collapsed embeddings, `log(batch)`, changes with the last, smaller batch. A step
    without items is not compared.

    Args:
        add_variable: Creates a variable of the owner from name, shape, initial value, `dtype` and
            `aggregation`.
        dtype: The dtype of the sums.
    """

    def __init__(self, add_variable: Callable[..., Any], dtype: str):
        # Sums over items of 1 and the loss; over whole batches of the weighted loss and of 1; the
        # number of targets, labelled or not. Then the sum of the items that count; over the steps
        # that are compared, sums of these items, and of the items times the change of the loss;
        # loss and number of items of the latest step. One variable, since a step that is compiled
        # takes its time for each. Replicas add it up.
        self._sums = add_variable("sums", (10,), 0.0, dtype=dtype, aggregation="sum")
        # The steps that are not in the variable yet.
        self._kept: list[RecordedStep] = []
        self._resets = 0
        # How many of the kept steps are in the sums over items that follow.
        self._running: tuple[int, Any, Any] | None = None

    @property
    def state(self) -> list:
        """The variables."""
        return [self._sums]

    @property
    def dtype(self) -> str:
        """The dtype of the sums."""
        return self._sums.dtype

    def add(self, loss, items, weight, counts=None, batch_size=None, targets=None) -> None:
        """Adds a step, within the compiled step.

        Args:
            loss: As in `RecordedStep`.
            items: As in `RecordedStep`.
            weight: As in `RecordedStep`.
            counts: As in `RecordedStep`; `None` for true.
            batch_size: `RecordedStep.size`; `None` if all of these items are in the mean.
            targets: As in `RecordedStep`; `None` if all are labelled.
        """
        loss = ops.stop_gradient(loss)
        is_kept = is_immediate()
        step = RecordedStep(
            # A copy, since the tensor may be part of a large one, or be overwritten.
            ops.copy(loss) if is_kept else loss,
            items,
            weight,
            items if batch_size is None else batch_size,
            items if targets is None else targets,
            True if counts is None else counts,
        )
        if not is_kept:
            self._sum(step)
            return
        self._kept.append(step)
        if len(self._kept) == KEPT_STEPS:
            self._sum_kept()

    def _sum_kept(self) -> None:
        """Adds the steps that are kept to the variable, unless its value is in a scope or trace."""
        if not self._kept or not is_immediate():
            return
        steps, self._kept, self._running = self._kept, [], None
        if len(steps) == 1:
            self._sum(steps[0])
        else:
            columns = zip(*steps, strict=True)
            self._sum(RecordedStep(*(_column(x, self.dtype) for x in columns)), is_one=False)

    def _sum(self, step: RecordedStep, is_one: bool = True) -> None:
        """Adds one step, or several in a row, to the sums."""

        def cast(x):
            return items if x is step.items else ops.cast(x, self.dtype)

        items = ops.cast(step.items, self.dtype)
        loss, weight, size, targets = map(cast, (step.loss, step.weight, step.size, step.targets))
        counted = items if step.counts is True else items * cast(step.counts)
        so_far = ops.copy(self._sums)  # TensorFlow would read the variable at each use.
        latest = ops.unstack(so_far)[8:]
        before = latest if is_one else map(_shifted, (loss, counted), latest)
        more_loss, more_items = (x - y for x, y in zip((loss, counted), before, strict=True))
        compared = ops.where(ops.equal(more_items, 0), counted, 0)
        total = items * loss
        weighted = total * weight if size is items else size * (loss * weight)
        sums = [items, total, weighted, size, targets]
        sums += [counted, compared, compared * abs(more_loss)]
        if is_one:
            added = [*sums, more_loss, more_items]
        else:
            added = [*map(ops.sum, sums), loss[-1] - latest[0], counted[-1] - latest[1]]
        self._sums.assign(so_far + vector(added))

    # From the host.

    def loss(self):
        """Returns the mean raw loss as a scalar tensor."""
        if trains_functionally() and not is_stateless():
            # On the host, where JAX compiles each operation.
            items, loss = self._read()[:2]
            return ops.convert_to_tensor(loss / items if items else np.zeros_like(loss))
        # The progress bar asks after each step, so the steps that are kept stay where they are.
        running = self._running if is_immediate() else None
        if running is None:
            running = 0, *ops.unstack(ops.convert_to_tensor(self._sums))[:2]
        done, items, loss = running
        if is_immediate():
            for step in self._kept[done:]:
                items = items + step.items
                loss = loss + step.items * ops.cast(step.loss, self.dtype)
            self._running = len(self._kept), items, loss
        return ops.divide_no_nan(loss, items)

    def totals(self) -> Totals:
        """Returns the sums since the last `reset`."""
        return Totals(self._resets, [self._read()[:5].astype("float64")])

    def reset(self) -> None:
        """Resets the sums and the comparison."""
        if is_immediate():
            self._kept, self._running = [], None
        self._sums.assign(np.zeros(10, self.dtype))
        self._resets += 1

    def reset_comparison(self) -> None:
        """Forgets the comparison."""
        sums = self._read().copy()
        sums[5:] = 0
        self._sums.assign(sums)

    @property
    def has_counted(self) -> bool:
        """Whether any item counted: it had a label and no sample weight of 0."""
        return bool(self._read()[5] > 0)

    @property
    def stands_still(self) -> bool:
        """Whether steps were compared and the loss was the same in all of them."""
        items, total, *_, compared, changes, latest, _ = self._read()
        if not compared > 0:
            return False
        # The latest step may have been dropped, and the mean is lower with items that do not count.
        size = max(abs(latest), abs(total / items))
        return bool(changes <= _ROUNDING * size * compared)

    def _read(self) -> np.ndarray:
        self._sum_kept()
        return to_numpy(self._sums)


def _column(values: tuple, dtype: str):
    """Returns a value of each step as a vector; true if it is true in all steps."""
    if all(x is True for x in values):
        return True
    if all(isinstance(x, int | float) for x in values):
        return ops.convert_to_tensor(np.array(values, dtype))
    return ops.stack([ops.cast(x, dtype) for x in values])


def _shifted(x, first):
    """Returns, for each step, the value of the step before it."""
    return ops.append(ops.reshape(first, (1,)), x[:-1])
