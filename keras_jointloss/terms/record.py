"""What a term has recorded since the last reset: the means of its loss, and whether it moves."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from keras_jointloss._core.backend import is_immediate
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

    Where operations run one by one, as on PyTorch, a step only keeps its numbers. The variables
    receive those of many steps at once, before anything here reads them. Read them nowhere else.

    A term that is watched also compares the loss of each step with that of the step before, if both
    have equally many items: the loss of collapsed embeddings, `log(batch)`, changes with the last,
    smaller batch. A step without items is not compared.

    Args:
        add_variable: Creates a variable of the owner from name, shape, initial value, `dtype` and
            `aggregation`.
        dtype: The dtype of the sums.
    """

    def __init__(self, add_variable: Callable[..., Any], dtype: str):
        add_sums = partial(add_variable, shape=(5,), initial=0.0, dtype=dtype, aggregation="sum")
        # Sums over items of 1 and the loss; over whole batches of the weighted loss and of 1; the
        # number of targets, labelled or not.
        self._sums = add_sums("sums")
        # Loss and number of items of the latest step; the sum of the items that count; over the
        # steps that are compared, sums of these items, and of the items times the change of the
        # loss. Replicas add up the sums. `None` until a callback may ask.
        self._comparison: Any = None
        self._add_comparison = partial(add_sums, "constancy")
        #: Whether a callback asks `has_counted` and `stands_still`. Part of the compiled step.
        self.is_watched = False
        # The steps that are not in these variables yet.
        self._not_summed: list[RecordedStep] = []
        self._not_compared: list[RecordedStep] = []
        self._resets = 0
        # How many of the kept steps are in the sums over items that follow.
        self._running: tuple[int, Any, Any] | None = None

    def prepare_to_watch(self) -> None:
        """Creates the variable that `watch` needs. A new one also lets JAX trace the step again."""
        if self._comparison is None:
            self._comparison = self._add_comparison()

    def watch(self) -> bool:
        """Lets the steps compare their losses, and returns whether that is new."""
        is_new, self.is_watched = not self.is_watched, True
        self.prepare_to_watch()
        return is_new

    @property
    def state(self) -> list:
        """The variables."""
        return [self._sums] if self._comparison is None else [self._sums, self._comparison]

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
        changes = [(self._not_summed, self._sum)]
        if self.is_watched:
            changes.append((self._not_compared, self._compare))
        for kept, change in changes:
            if not is_kept:
                change(step)
                continue
            kept.append(step)
            if len(kept) == KEPT_STEPS:
                self._add_kept(kept, change)

    def _add_kept(self, kept: list[RecordedStep], change: Callable[..., None]) -> None:
        """Adds the steps that are kept to a variable, unless its value is in a scope or trace."""
        if not kept or not is_immediate():
            return
        steps = kept.copy()
        kept.clear()
        if len(steps) == 1:
            change(steps[0])
        else:
            columns = zip(*steps, strict=True)
            change(RecordedStep(*(_column(x, self.dtype) for x in columns)), is_one=False)

    def _cast(self, *numbers) -> list:
        return [x if x is True else ops.cast(x, self.dtype) for x in numbers]

    def _sum(self, step: RecordedStep, is_one: bool = True) -> None:
        """Adds one step, or several in a row, to the sums."""
        loss, items, weight, size, targets = self._cast(*step[:5])
        sums = ops.stack([items, items * loss, size * (loss * weight), size, targets])
        self._running = None
        self._sums.assign_add(sums if is_one else ops.sum(sums, axis=-1))

    def _compare(self, step: RecordedStep, is_one: bool = True) -> None:
        """Compares one step, or several in a row, with the step before."""

        def total(x):
            return x if is_one else ops.sum(x)

        loss, items, counts = self._cast(step.loss, step.items, step.counts)
        items = items if counts is True else items * counts
        state = ops.unstack(ops.convert_to_tensor(self._comparison))
        latest_loss, latest_items, counted, compared, changes = state
        before = latest_items if is_one else _shifted(items, latest_items)
        added = items * ops.cast(ops.equal(items, before), self.dtype)
        change = abs(loss - (latest_loss if is_one else _shifted(loss, latest_loss)))
        latest = [loss, items] if is_one else [loss[-1], items[-1]]
        counted, compared = counted + total(items), compared + total(added)
        changes = changes + total(added * change)
        self._comparison.assign(ops.stack([*latest, counted, compared, changes]))

    # From the host.

    def loss(self):
        """Returns the mean raw loss as a scalar tensor."""
        # The progress bar asks after each step, so the steps that are kept stay where they are.
        running = self._running if is_immediate() else None
        if running is None:
            running = 0, *ops.unstack(ops.convert_to_tensor(self._sums))[:2]
        done, items, loss = running
        if is_immediate():
            for step in self._not_summed[done:]:
                items = items + step.items
                loss = loss + step.items * ops.cast(step.loss, self.dtype)
            self._running = len(self._not_summed), items, loss
        return ops.divide_no_nan(loss, items)

    def totals(self) -> Totals:
        """Returns the sums since the last `reset`."""
        self._add_kept(self._not_summed, self._sum)
        return Totals(self._resets, [to_numpy(self._sums).astype("float64")])

    def reset(self) -> None:
        """Resets the sums; a comparison continues."""
        self._add_kept(self._not_summed, self._sum)
        self._sums.assign(np.zeros(5, self.dtype))
        self._running = None
        self._resets += 1

    def reset_comparison(self) -> None:
        """Forgets the comparison, if the term is watched."""
        if self.is_watched:
            self._add_kept(self._not_compared, self._compare)
            self._comparison.assign(np.zeros(5, self.dtype))

    @property
    def has_counted(self) -> bool:
        """Whether any item counted: it had a label and no sample weight of 0."""
        return bool(self._compared()[2] > 0)

    @property
    def stands_still(self) -> bool:
        """Whether steps were compared and the loss was the same in all of them."""
        loss, _, _, compared, changes = self._compared()
        return bool(compared > 0 and changes <= _ROUNDING * abs(loss) * compared)

    def _compared(self) -> np.ndarray:
        self._add_kept(self._not_compared, self._compare)
        return to_numpy(self._comparison)


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
