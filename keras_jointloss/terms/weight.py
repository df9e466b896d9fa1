"""The weight of one loss term, and the running means of the term's contribution."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core.backend import FirstRow, all_finite
from keras_jointloss._core.keras import untrack
from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.saved_state import SavedState
from keras_jointloss._core.types import Tensor
from keras_jointloss.terms.guarded_value import GuardedValue
from keras_jointloss.terms.nonfinite import NonfiniteRecord
from keras_jointloss.terms.record import Record, Totals
from keras_jointloss.terms.value import Mode, Scheduled, Weight


class TermWeight(GuardedValue):
    """Base of the weights of output terms and layer terms.

        weight = value * factor

    - *given* is what the user gave, a number or a schedule: `given.at(step)`.
    - *value* is the given weight of this step, unless `assign` has set another.
    - *factor* is what a weighting multiplies it by, 1 without a weighting: an element of what the
      weighting learns, or a variable of the term, where the former is out of reach.

    A term that is switched off has the value 0, whatever its schedule or a weighting returns, and
    continues later with the value that was *kept*.

    Other numbers of the term, such as the temperature of its loss, may follow schedules at the same
    step: `anneal`.

    The owner (a metric or a layer) calls `_create_variables` once with the function that creates
    its variables. From then on training calls

    1. `record(loss, batch_size)` when the term's loss has been computed with the weight of this
       step; it passes the loss on to `observer`, if there is one, and
    2. `advance()` once per training step, which moves the value along the schedule,

    both inside the compiled step. From the host, the `Clock` of the model calls `start_annealing`.
    Keras calls `reset` at the start of each epoch, before the callbacks switch annealing on, and at
    the start of each evaluation, so that annealing is always off during evaluation.
    """

    #: Called with the loss, the number of items and whether any of them counts.
    observer: Callable[[Any, Any, Any], None] | None = None
    #: Whether the term has targets that may be missing, whose share is then logged.
    has_missing_targets = False
    #: Whether its loss may be constant on purpose, as at a floor.
    may_be_constant = False
    #: Whether `recorded` receives the losses.
    is_recording = True
    #: What `constant` replaces meanwhile: nothing moves the weight.
    _constant: ClassVar[dict[str, Any]] = {"_factor": None, "_learned": None, "counts_steps": False}

    def _create_variables(
        self, weight: Weight, dtype: str, add_variable: Callable[..., Any]
    ) -> None:
        add_replicated = partial(add_variable, aggregation="only_first_replica")
        self._create_value(weight, dtype, add_replicated)
        #: What the term has recorded since the last `reset`.
        self.recorded = Record(add_variable, dtype)
        #: What was not finite in training, if the term `is_guarded`. Only the callback resets it:
        #: Keras resets metrics in the middle of an epoch, too.
        self.nonfinite = NonfiniteRecord(add_variable, dtype)
        self._factor: Any = None
        self._learned: tuple[FirstRow, int] | None = None
        self._add_factor = partial(add_replicated, "factor", (), dtype=dtype)
        #: The other numbers of the term that follow a schedule, by name.
        self.annealed: dict[str, Scheduled] = {}

    def anneal(self, schedules: Mapping[str, LearningRateSchedule]) -> None:
        """Lets other numbers of the term follow schedules, by name."""
        if schedules:
            dtype, no_minimum = self.recorded.dtype, -math.inf
            self.annealed = {x: Scheduled(y, dtype, no_minimum) for x, y in schedules.items()}
            self.counts_steps = True

    def adapt(self, factor: float = 1.0) -> None:
        """Adds a factor that multiplies the weight and that a weighting sets."""
        if self._factor is None:
            self._factor = self._add_factor(factor)

    def follow(self, learned: FirstRow, index: int) -> None:
        """Multiplies the weight by an element of what a weighting learns."""
        self._learned = learned, index
        if self._factor is not None:
            untrack(self, [self._factor])
            self._factor = None

    @property
    def state(self) -> list:
        """The variables of the term."""
        late = [] if self._factor is None else [self._factor]
        numbers = [x.variable for x in (self._value, self._step, self._mode)]
        return [*numbers, *self.recorded.state, *self.nonfinite.state, *late]

    @property
    def is_dynamic(self) -> bool:
        """Whether the weight is meant to move during training."""
        return self.counts_steps or self.observer is not None

    # Within the compiled step.

    def is_finite(self, loss: Tensor) -> Tensor | bool:
        """Returns whether a loss and the current weight are finite; see `all_finite`."""
        weighted = ops.stop_gradient(ops.cast(loss, self.recorded.dtype)) * self._current()
        return self.or_still(all_finite(weighted))

    def watch(self, loss: Tensor, is_good: Tensor | bool) -> None:
        """Records a step with its loss, before `record`, and whether that `is_finite`."""
        self.nonfinite.add(loss, self._current(), is_good)

    def current(self) -> Tensor | float:
        """Returns the current weight, as a number if the host knows it.

        In a training step that drops the term, a weight that is not finite is 0.
        """
        weight = self._current()
        if not self.drops:
            return weight
        if isinstance(weight, float):
            return weight if math.isfinite(weight) else 0.0
        return ops.where(ops.isfinite(weight), weight, ops.zeros_like(weight))

    def _current(self) -> Tensor | float:
        value = self._value.read()
        if self._learned is not None:
            learned, index = self._learned
            factor = learned.read(index)
            return factor if isinstance(value, float) and value == 1 else value * factor
        return value if self._factor is None else value * ops.copy(self._factor)

    def tensor(self) -> Tensor:
        """Returns the current weight as a scalar tensor."""
        return ops.convert_to_tensor(self.current(), dtype=self.recorded.dtype)

    def annealed_values(self) -> dict[str, Tensor | float]:
        """Returns the numbers that follow a schedule in this step, as floats if the host can."""
        step = self._step.read()
        is_known = isinstance(step, int)
        return {
            name: x.number_at(step) if is_known else x.at(step) for name, x in self.annealed.items()
        }

    def moved(self, loss: Any) -> Any:
        """Returns a loss whose arguments follow their schedules at the step of the term."""
        self.anneal(schedules := getattr(loss, "schedules", {}))
        return loss.moved_by(self.annealed_values) if schedules else loss

    def settle(self) -> None:
        """Records a mean over unequal parts of replicas, once they may exchange it.

        Not before Keras has collected the losses of layers.
        """

    def record(
        self,
        loss: Tensor,
        items: Tensor,
        counts: Tensor | None = None,
        batch_size: Tensor | None = None,
        targets: Tensor | None = None,
        divisor: Tensor | None = None,
    ) -> Tensor:
        """Records the term's raw loss of this step, and returns the weight of this step.

        Args:
            loss: The mean loss.
            items: The number of items in the mean.
            counts: Whether any of them has a weight other than 0; `None` if all have.
            batch_size: The number of items of the batch; `None` if all of them are in the mean.
            targets: The number of targets, of which `items` are labelled; `None` if all are.
            divisor: What this replica counts by among others in the mean; `None` for `items`.
        """
        weight = self.current()  # Read first, since the observer may move it for the next step.
        if self.is_recording:
            self.recorded.add(loss, items, weight, counts, batch_size, targets)
        if self.observer is not None:
            is_on = self._mode.read() != Mode.OFF.value
            items = items if divisor is None else divisor
            self.observer(loss, items, is_on if counts is None else is_on & counts)
        return weight

    def scale(self, factor: Tensor) -> None:
        """Sets the factor, within the compiled step or from the host."""
        self._factor.assign(ops.cast(factor, self._factor.dtype))

    # From the host.

    @contextlib.contextmanager
    def constant(self, observer: Any = None) -> Iterator[None]:
        """Makes the weight a constant, the value, which no schedule and no rule moves.

        The losses go to the observer, if there is one, in place of the rule and the means. At the
        end all is as it was, except for the values of variables.
        """
        owners = self, self.recorded
        kept = [dict(vars(x)) for x in owners]
        vars(self).update(self._constant, observer=observer, is_recording=observer is None)
        try:
            yield
        finally:
            for x, attributes in zip(owners, kept, strict=True):
                vars(x).clear()
                vars(x).update(attributes)

    def release(self) -> None:
        """Detaches the weight from its weighting."""
        self.observer = self._learned = None
        if self._factor is not None:
            self.scale(1.0)

    @property
    def factor(self) -> np.ndarray | None:
        """What a weighting multiplies the weight by; `None` without a weighting."""
        if self._learned is not None:
            learned, index = self._learned
            return learned.on_host(index)
        return None if self._factor is None else to_numpy(self._factor)

    def reset(self) -> None:
        """Resets the means and stops annealing; keeps the weight and the step."""
        self.recorded.reset()
        super().reset()

    def totals(self) -> Totals:
        """Returns the sums of all means of the term."""
        return self.recorded.totals()

    def read(self, totals: Totals | None = None) -> dict[str, float]:
        """Returns the values to log.

        Args:
            totals: The sums of the means, by default those since the last `reset`.

        Returns:
            `weight`, the current weight, the other numbers that follow a schedule, and, if the term
            was computed, `loss`, the mean of the raw loss over its items, and `weighted`, the mean
            of the weighted loss over the items of the batches. If its targets may be missing, also
            `labelled`, the share of those that are not, and if training drops it from steps in
            which it is not finite, `skipped`, their number in the epoch.
        """
        totals = self.totals() if totals is None else totals
        annealed = {name: x.number_at(self.step) for name, x in self.annealed.items()}
        readings = {**totals.read(), "weight": float(self), **annealed}
        if self.has_missing_targets:
            readings["labelled"] = totals.labelled()
        if self.drops:
            readings["skipped"] = float(self.nonfinite.skipped())
        return readings

    def save(self, store: Any) -> None:
        """Saves the values that training has changed to the store of a weights file."""
        store["step"], store["off"] = np.array(self.step, "int32"), np.array(int(self.is_off))
        numbers = {"value": self.value, "unassigned": self.given.number_at(self.step)}
        for name, number in numbers.items():
            if math.isfinite(number):  # A schedule need not be.
                store[name] = np.array(number)
        if (factor := self.factor) is not None:
            store["factor"] = np.array(factor)

    def load(self, state: SavedState) -> None:
        """Loads the values that `save` has put into the store of a weights file.

        A schedule continues at the step of the file. A weight that is compiled with a number or
        schedule other than that of the file keeps its own. A weighting sets the factor itself, once
        it is bound to the term.
        """
        if "step" not in state and "value" not in state:
            return
        step, is_off = state.count("step"), "off" in state and state.count("off", maximum=1)
        other = state.number("unassigned") if "unassigned" in state else math.inf
        value = state.number("value") if "value" in state or math.isfinite(other) else None
        factor = state.number("factor") if "factor" in state else None
        own = self.given.number_at(step)
        self.switch_on()
        if self.counts_steps:
            self._step.assign(step)
        if self.given.moves:
            self._value.assign(own)
        is_either_finite = math.isfinite(own) or math.isfinite(other)
        if not is_either_finite or math.isclose(own, other, rel_tol=1e-5, abs_tol=1e-7):
            if value is not None:
                self.assign(value)
            if is_off:
                self.switch_off()
        if self._factor is not None and factor is not None and self.observer is None:
            self.scale(factor)

    def __float__(self) -> float:
        value, factor = self._value.on_host(), self.factor
        return value if factor is None else float(np.asarray(value, factor.dtype) * factor)
