"""The weight of one loss term, and the running means of the term's contribution."""

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core.keras_calls import running_loop
from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.quick_ops import runs_immediately
from keras_jointloss._core.saved_state import SavedState
from keras_jointloss._core.types import Tensor
from keras_jointloss._core.validation import validate_number
from keras_jointloss.terms.given_weight import Weight, validate_schedule, validate_weight
from keras_jointloss.terms.record import Record, Totals

#: What `advance` does in a training step: nothing; count it and move the weight along its schedule;
#: only count it, as the term is switched off.
_STILL, _MOVING, _OFF = 0, 1, 2


class TermWeight:
    """Base of the weights of output terms and layer terms.

    The owner (a metric or a layer) calls `_create_variables` once with the function that creates
    its variables. From then on training calls

    1. `record(loss, batch_size)` when the term's loss has been computed with the weight of this
       step; it passes the loss on to `observer`, if there is one, and
    2. `advance()` once per training step, which moves the weight along its schedule,

    both inside the compiled step. From the host, the `Clock` of the model calls `start_annealing`.
    Keras calls `reset` at the start of each epoch, before the callbacks switch annealing on, and at
    the start of each evaluation, so that annealing is always off during evaluation.

    A term that is switched off has weight 0, whatever its schedule or a weighting returns.
    """

    #: Called with the loss, the number of items and whether any of them counts.
    observer: Callable[[Any, Any, Any], None] | None = None
    #: The `keras_jointloss.terms.clock.Clock` of the model whose callback moves the weight, if any.
    clock: Any = None
    #: Whether the term has targets that may be missing, whose share is then logged.
    has_missing_targets = False
    #: Whether its loss may be constant on purpose, as at a floor.
    may_be_constant = False

    def _create_variables(
        self, weight: Weight, dtype: str, add_variable: Callable[..., Any]
    ) -> None:
        self.schedule: Any = weight if isinstance(weight, LearningRateSchedule) else None
        start = validate_weight(weight) if self.schedule is None else validate_schedule(weight)
        self.initial = weight if self.schedule is not None else start
        #: Whether the term counts training steps: its weight, or another value, has a schedule.
        self.counts_steps = self.schedule is not None
        self.annealing = False
        #: Whether the term is switched off.
        self.is_off = False
        self._kept = start  # The constant weight with which a term is switched on again.
        self._has_warned = False
        replicated = {"dtype": dtype, "aggregation": "only_first_replica"}
        self._value = add_variable("value", (), start, **replicated)
        self._step = add_variable("step", (), 0, **{**replicated, "dtype": "int32"})
        # Part of the compiled step, unlike `annealing` and `is_off`.
        self._mode = add_variable("mode", (), _STILL, **{**replicated, "dtype": "int32"})
        #: What the term has recorded since the last `reset`.
        self.recorded = Record(add_variable, dtype)
        self._factor: Any = None
        self._add_factor = partial(add_variable, "factor", (), **replicated)

    def adapt(self, factor: float = 1.0) -> None:
        """Adds a factor that multiplies the weight and that a weighting sets."""
        if self._factor is None:
            self._factor = self._add_factor(factor)

    @property
    def state(self) -> list:
        """The variables of the term."""
        late = [] if self._factor is None else [self._factor]
        return [self._value, self._step, self._mode, *self.recorded.state, *late]

    @property
    def uses_counts(self) -> bool:
        """Whether a step needs to know if any item counts."""
        return self.recorded.is_watched or self.observer is not None

    @property
    def is_dynamic(self) -> bool:
        """Whether the weight is meant to move during training."""
        return self.counts_steps or self.observer is not None

    # Within the compiled step.

    def tensor(self) -> Tensor:
        """Returns the current weight as a scalar tensor."""
        # A copy: PyTorch overwrites the variable's own tensor in place, although the backward pass
        # may still need it, and JAX donates its buffer to the next step.
        value = ops.copy(self._value)
        return value if self._factor is None else value * ops.copy(self._factor)

    def step_tensor(self) -> Tensor:
        """Returns the current step of the schedules as an int32 scalar tensor."""
        return ops.convert_to_tensor(self._step)

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
        weight = self.tensor()  # Read first, since the observer may move it for the next step.
        self.recorded.add(loss, items, weight, counts, batch_size, targets)
        if self.observer is not None:
            is_on = self._is_on(loss)
            items = items if divisor is None else divisor
            self.observer(loss, items, is_on if counts is None else is_on & counts)
        return weight

    def _is_on(self, loss: Tensor) -> Tensor | bool:
        """Returns whether the term is not switched off: a bool if this is known now."""
        if runs_immediately(loss):
            return not self.is_off
        return ops.not_equal(ops.convert_to_tensor(self._mode), _OFF)

    def advance(self) -> None:
        """Counts a training step and moves the weight along its schedule, if annealing is on."""
        if not self.counts_steps:
            return
        step, value = self._next()
        self._step.assign(step)
        if self.schedule is not None:
            self._value.assign(value)

    def next_value(self) -> Tensor:
        """Returns the weight of the next step without the factor of a weighting.

        Valid before `advance` has counted this step, as when `record` calls the observer.
        """
        return self._next()[1]

    def _next(self):
        """Returns the step and the value of the schedule after `advance`."""
        mode = ops.copy(self._mode)  # TensorFlow would read the variable at each use.
        step = self.step_tensor() + ops.cast(mode > _STILL, "int32")
        value = ops.copy(self._value)
        if self.schedule is not None:
            value = ops.where(ops.equal(mode, _MOVING), self._scheduled(step), value)
        return step, value

    def scale(self, factor: Tensor) -> None:
        """Sets the factor, within the compiled step or from the host."""
        self._factor.assign(ops.cast(factor, self._factor.dtype))

    def _scheduled(self, step):
        # Rounding can put a schedule that ends at 0 slightly below it.
        return ops.maximum(ops.cast(self.schedule(step), self._value.dtype), 0)

    # From the host.

    def release(self) -> None:
        """Detaches the weight from its weighting."""
        self.observer = None
        if self._factor is not None:
            self.scale(1.0)

    def start_annealing(self, step: int | None = None) -> None:
        """Lets `advance` move the weight, from `step` or from the current step of the schedule."""
        self.annealing = True
        if self.counts_steps and step is not None:
            self._step.assign(step)
        if self.is_off:  # `set_weights`, as of `EarlyStopping`, changes the variables of layers.
            self._value.assign(0.0)
        elif self.schedule is not None:
            self._value.assign(self._scheduled(self.step_tensor()))
        self._set_mode()

    def reset(self) -> None:
        """Resets the means and stops annealing; keeps the weight and the step."""
        self.recorded.reset()
        if self.clock is not None and self.clock.outlasts_reset():
            return
        self.recorded.reset_comparison()
        if self.annealing:
            self.stop_annealing()

    def stop_annealing(self) -> None:
        """Stops `advance` from moving the weight."""
        self.annealing = False
        self._set_mode()

    def _set_mode(self) -> None:
        self._mode.assign((_OFF if self.is_off else _MOVING) if self.annealing else _STILL)

    def switch_off(self) -> None:
        """Sets the weight to 0 until `switch_on`, in later trainings and in the saved model, too.

        A schedule still counts the steps. For a weighting the term is absent: it keeps its factor
        and its state.
        """
        if not self.is_off:
            self._kept, self.is_off = float(to_numpy(self._value)), True
            self._value.assign(0.0)
            self._set_mode()

    def switch_on(self) -> None:
        """Ends `switch_off`: a schedule continues at its step, a constant at its last value."""
        if self.is_off:
            self.is_off = False
            self._value.assign(self._kept if self.schedule is None else self._unassigned(self.step))
            self._set_mode()

    def warn_if_it_stands_still(self) -> None:
        """Warns if `fit` has trained an epoch without moving a weight that is meant to move.

        Called when Keras reads its metrics. At the end of an epoch, `fit` reads them outside of its
        steps and inner loops.
        """
        is_driven = self.clock is not None and self.clock.driver is not None
        if not (self._has_warned or is_driven) and self.is_dynamic and running_loop() == "fit":
            self._has_warned = True
            warnings.warn(
                "The weights of a joint loss that follow a schedule or a weighting do not move: "
                "no `JointLossCallback` takes part in `fit`. Pass "
                "`callbacks=[keras_jointloss.callbacks.JointLossCallback()]`.",
                stacklevel=2,
            )

    def totals(self) -> Totals:
        """Returns the sums of all means of the term."""
        return self.recorded.totals()

    def read(self, totals: Totals | None = None) -> dict[str, float]:
        """Returns the values to log.

        Args:
            totals: The sums of the means, by default those since the last `reset`.

        Returns:
            `weight`, the current weight, and, if the term was computed, `loss`, the mean of the raw
            loss over its items, and `weighted`, the mean of the weighted loss over the items of the
            batches. If its targets may be missing, also `labelled`, the share of those that are
            not.
        """
        totals = self.totals() if totals is None else totals
        readings = {**totals.read(), "weight": float(self)}
        if self.has_missing_targets:
            readings["labelled"] = totals.labelled()
        return readings

    @property
    def step(self) -> int:
        """The current step of the schedule."""
        return int(to_numpy(self._step))

    def assign(self, value: float) -> None:
        """Sets the weight; under a weighting, the value that the adapted weight is multiplied by.

        A constant weight keeps the value, also through saving and loading. A scheduled weight keeps
        it until annealing continues. For a term that is switched off, the value takes effect when
        it is switched on again.

        Args:
            value: A finite number, 0 or more.

        Raises:
            ValueError: If `value` is not such a number.
        """
        value = validate_number(value, "value", minimum=0)
        if self.is_off:
            self._kept = value
        else:
            self._value.assign(value)

    @property
    def value(self) -> float:
        """The current weight without the factor of a weighting, as if the term were on."""
        return self._kept if self.is_off else float(to_numpy(self._value))

    @property
    def at_start(self) -> float:
        """The weight that the user gave: a number, or the value of a schedule at step 0."""
        return self._unassigned(0)

    def save(self, store: Any) -> None:
        """Saves the values that training has changed to the store of a weights file."""
        store["value"], store["step"] = np.array(self.value), to_numpy(self._step)
        store["off"] = np.array(int(self.is_off))
        store["unassigned"] = np.array(self._unassigned(self.step))
        if self._factor is not None:
            store["factor"] = to_numpy(self._factor)

    def load(self, state: SavedState) -> None:
        """Loads the values that `save` has put into the store of a weights file.

        A schedule continues at the step of the file. A weight that is compiled with a number or
        schedule other than that of the file keeps its own. A weighting sets the factor itself, once
        it is bound to the term.
        """
        if "value" not in state:
            return
        value, step, other = state.number("value"), state.count("step"), state.number("unassigned")
        is_off = "off" in state and state.count("off", maximum=1)
        factor = state.number("factor") if "factor" in state else None
        own = self._unassigned(step)
        self.switch_on()
        if self.counts_steps:
            self._step.assign(step)
        if self.schedule is not None:
            self._value.assign(own)
        if math.isclose(own, other, rel_tol=1e-5, abs_tol=1e-7):
            self.assign(value)
            if is_off:
                self.switch_off()
        if self._factor is not None and factor is not None and self.observer is None:
            self.scale(factor)

    def _unassigned(self, step: int) -> float:
        """Returns the weight at a step if it is neither assigned nor adapted."""
        if self.schedule is None:
            return self.initial
        return float(to_numpy(self._scheduled(ops.convert_to_tensor(step, dtype="int32"))))

    def __float__(self) -> float:
        return float(to_numpy(self.tensor()))
