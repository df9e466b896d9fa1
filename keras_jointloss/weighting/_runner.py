"""Runs a rule: owns its terms, their losses in a step, and what it has learned about them."""

import threading
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from keras_jointloss._core.backend import (
    FirstRow,
    current_replicas,
    is_immediate,
    trains_functionally,
)
from keras_jointloss._core.keras import untrack
from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.quick_ops import ops
from keras_jointloss._core.validation import invalid
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting._step import COUNTS, STATE, SUMS, advanced


class Runner:
    """Runs a rule in the training steps.

    Each term passes its loss to `record`. `run` then calls the rule, keeps what it returns, and
    sets the factors of layer terms for the next step; output terms read theirs from `state`. A step
    with a loss that the rule cannot use, or that leads to a number that is not finite, changes only
    the count of such steps.

    Args:
        rule: The `keras_jointloss.weighting.Weighting`: its options, its formula, and the metric
            that owns the variables.
    """

    def __init__(self, rule: Any):
        self._rule = rule
        self._weights: list[TermWeight] = []
        # Each replica of `tf.distribute` traces in its own thread.
        self._recorded = threading.local()
        #: The names of the terms; empty before they are known, when there are no variables.
        self.terms: tuple[str, ...] = ()
        #: The names of what training changes, in the order in which it is saved.
        self.names: tuple[str, ...] = ()
        # The same in the order of the rows of `state`.
        self._rows: list[str] = []
        #: A number for each name and term; the steps in which the rule was on; the epochs begun.
        self.state: Any = None
        self.step: Any = None
        self.epoch: Any = None
        #: Whether the rule counts steps and moves the weights; `_advancing` in the compiled step.
        self.is_on = False
        self._advancing: Any = None

    def know_terms(self, terms: tuple[str, ...]) -> None:
        """Creates the variables for the terms of these names, unless they exist."""
        if self.terms:
            return
        initial = self.initial(len(terms))
        rows = [np.broadcast_to(np.asarray(x), (len(terms),)) for x in initial.values()]
        self.terms, self.names = terms, tuple(initial)
        self._rows = sorted(initial, key=lambda name: name in COUNTS)
        self._initial = np.stack(rows).astype("float64")
        self.state = self._variable("state", self._rule.dtype, self._in_rows(self._initial))
        self.step, self.epoch = (self._variable(name, "int32", 0) for name in ("step", "epoch"))
        self._advancing = self._variable("advancing", "bool", False)

    def forget_terms(self) -> None:
        """Gives up the variables, as before the terms are known."""
        if self.terms:
            untrack(self._rule, [self.state, self.step, self.epoch, self._advancing])
            self.terms = ()

    def initial(self, count: int) -> dict[str, Any]:
        """Returns the initial state by name, one number for all terms or one for each."""
        rule = self._rule
        if taken := {*STATE, *SUMS} & {*rule.initial_state}:
            others = f"names other than {sorted({*STATE, *SUMS})}, which the base class keeps"
            raise invalid("initial_state", others, sorted(taken))
        initial = {**STATE, **(SUMS if rule.update_every > 1 else {})}
        if not rule.warmup_steps:
            initial["weight"] = rule.initial_weight(count)
        return {**initial, **rule.initial_state}

    def _variable(self, name: str, dtype: str, initial: Any) -> Any:
        # Of this dtype already: JAX compiles a function for each conversion of its own.
        initial = np.asarray(initial, dtype)
        return self._rule.add_variable(
            shape=initial.shape,
            dtype=dtype,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(initial, dtype=dtype),
            aggregation="only_first_replica",
            name=name,
        )

    def bind(self, terms: Mapping[str, TermWeight]) -> bool:
        """Connects the rule to its terms; see `Weighting.bind`."""
        names, weights = tuple(terms), list(terms.values())
        if self.terms and names != self.terms:
            message = (
                f"{type(self._rule).__name__} is the weighting of the terms {list(self.terms)}. "
                f"Received: terms {list(names)}"
            )
            if not self._weights:  # It has never been bound.
                message = (
                    f"{message}. The former are those of the file or config that was loaded: after "
                    "`load_weights`, compile again with a new weighting"
                )
            raise ValueError(message)
        # Losses left by the trace of another model belong to no step.
        self._recorded = threading.local()
        is_bound = self._weights == weights and all(
            getattr(weight.observer, "func", None) == self.record for weight in weights
        )
        if is_bound:
            return False
        self.know_terms(names)
        self._weights, learned = weights, FirstRow(self.state)
        for index, weight in enumerate(weights):
            # On JAX the variables of metrics are out of reach where a layer computes its loss.
            if isinstance(weight, LossWeight):
                weight.follow(learned, index)
            weight.observer = partial(self.record, index)
        self.scale_terms()
        return True

    def scale_terms(self) -> None:
        """Sets the factors of layer terms to the weights of the rule, from the host."""
        if self._weights:
            for weight, factor in zip(self._weights, self.arrays()["weight"], strict=True):
                if not isinstance(weight, LossWeight):
                    weight.scale(factor)

    # Within the compiled step.

    def record(self, index: int, loss, items, counts) -> None:
        """Records the loss of a term.

        Args:
            index: The index of the term.
            loss: Its mean loss.
            items: The number of items in the mean, or what else it divides by.
            counts: Whether any of them has a nonzero weight: a bool tensor, or `True` if known.
        """
        # Read here, since every term records its loss before its weight moves to the next step.
        known = self._known_weight(self._weights[index])
        recorded = self._recorded.__dict__.setdefault("losses", {})
        recorded[index] = loss, items, counts, known
        # On other backends, layer losses come after output losses, and `update_state` after both.
        # On JAX, layer losses come first, and `update_state` cannot reach the layers.
        if trains_functionally() and all(
            other in recorded
            for other, weight in enumerate(self._weights)
            if isinstance(weight, LossWeight)
        ):
            self.run()

    def update_state(self) -> None:
        """Runs the rule once all terms have recorded their losses, where `record` does not."""
        if trains_functionally():
            return
        for weight in self._weights:
            weight.settle()
        if self._recorded.__dict__.get("losses"):
            self.run()

    def run(self) -> None:
        """Runs the rule on the recorded losses and sets the factors of the terms."""
        recorded = self._recorded.__dict__.pop("losses")
        is_now = is_immediate()
        if is_now and not self.is_on:
            return
        known = self._known_weights(recorded)
        is_present, losses = self._of_all_replicas(recorded)
        step = ops.convert_to_tensor(self.step)
        is_on = True if is_now else ops.convert_to_tensor(self._advancing)
        state = advanced(self._rule, self._rows, self.state, losses, is_present, known, step, is_on)
        # PyTorch assigns in place: nothing reads the old values any more.
        self.state.assign(state)
        self.step.assign(step + (1 if is_on is True else ops.cast(is_on, "int32")))
        for index, weight in enumerate(self._weights):
            if not isinstance(weight, LossWeight):
                weight.scale(state[0, index])

    def _known_weight(self, weight: TermWeight) -> Any:
        """Returns the weight of a term that the rule needs: of the next step, or of this one."""
        if self._rule.needs_given_weights:
            return weight.next_value()
        return weight.current() if self._rule.needs_applied_weights else None

    def _known_weights(self, recorded) -> Any:
        """Returns the weights of the terms that the rule needs: `(terms,)`."""
        if not (self._rule.needs_given_weights or self._rule.needs_applied_weights):
            return None
        # A term without a loss in this step does not move.
        known = [
            recorded[index][-1] if index in recorded else self._known_weight(weight)
            for index, weight in enumerate(self._weights)
        ]
        return ops.stack([ops.cast(value, self._rule.dtype) for value in known])

    def _of_all_replicas(self, recorded) -> tuple[Any, Any]:
        """Returns which terms count, and their mean losses over all replicas: `(terms,)` each.

        A term counts if a replica has recorded a loss of it in which an item has a nonzero weight.
        If it is known that all terms count, the former is `True`.
        """
        dtype, replicas = self._rule.dtype, current_replicas()
        nothing = 0.0, 0, False, None
        found = [recorded.get(index, nothing)[:3] for index in range(len(self.terms))]
        losses = [ops.cast(loss, dtype) for loss, *_ in found]
        if replicas.count == 1:
            counts = [counts & (items > 0) for _, items, counts in found]
            if all(x is True for x in counts):
                return True, ops.stop_gradient(ops.stack(losses))
            numbers = ops.stack([*losses, *(ops.cast(x, dtype) for x in counts)])
            return numbers[len(counts) :] > 0, ops.stop_gradient(numbers[: len(counts)])
        losses = ops.stop_gradient(ops.stack(losses))
        items = ops.stack([ops.cast(items, dtype) for _, items, _ in found])
        counting = items * ops.stack([ops.cast(counts, dtype) for *_, counts in found])
        sums = ops.stack([items, counting, ops.where(items > 0, items * losses, 0)])
        items, counting, total = ops.unstack(replicas.sum(sums))
        return counting > 0, ops.divide_no_nan(total, items)

    # On the host.

    def start(self, is_new_epoch: bool) -> None:
        """Lets `run` update the weights and count steps."""
        if is_new_epoch:
            # Keras restarts its own count at 0 in each `fit`.
            self.epoch.assign(np.int32(to_numpy(self.epoch) + 1))
        self.is_on = True
        self._advancing.assign(np.asarray(True))

    def stop(self) -> None:
        """Keeps `run` from changing anything."""
        if self.is_on:
            self.is_on = False
            self._advancing.assign(np.asarray(False))

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the state: `(terms,)` by name; empty before the terms are known."""
        return dict(zip(self._rows, to_numpy(self.state), strict=True)) if self.terms else {}

    def _in_rows(self, state: np.ndarray) -> np.ndarray:
        """Returns a saved state in the order of the rows of the variable."""
        return state[[self.names.index(name) for name in self._rows]]

    def clear(self, *names: str) -> None:
        """Sets the state of these names to 0."""
        values = to_numpy(self.state).copy()
        values[[self._rows.index(name) for name in names]] = 0
        self.state.assign(values)

    def begin_anew(self) -> None:
        """Returns to the initial state."""
        if self.terms:
            self.load({"state": self._initial, "step": 0, "epoch": 0})

    def save(self) -> dict[str, np.ndarray]:
        """Returns everything that training changes."""
        arrays = self.arrays()
        state = np.stack([arrays[name] for name in self.names])
        return {"state": state, "step": to_numpy(self.step), "epoch": to_numpy(self.epoch)}

    def load(self, progress: Mapping[str, Any]) -> None:
        """Restores what `save` has returned."""
        self.state.assign(self._in_rows(np.asarray(progress["state"])))
        self.step.assign(progress["step"])
        self.epoch.assign(progress["epoch"])
        self.scale_terms()
