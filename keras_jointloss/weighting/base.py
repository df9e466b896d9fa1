"""The base of the rules that adapt the weights of the terms."""

import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_jointloss._math import float_dtype, to_numpy
from keras_jointloss._registry import find
from keras_jointloss._validation import (
    validate_choice,
    validate_count,
    validate_number,
    validate_share,
)
from keras_jointloss.distribution import replica_count, sum_over_replicas
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight

#: What the base keeps of each term: the adapted weight, the latest loss, whether there was any, in
#: how many steps it could not be used, and whether it was among the first that could not.
_ROWS = {"weight": 1.0, "loss": 1.0, "seen": 0.0, "unusable": 0.0, "culprit": 0.0}
#: By how much rounding may put a loss below the least one: such a loss counts as the least one.
_ROUNDING = 1e-4
#: With `update_every`: the sum of the losses since the latest update and their number.
_SUMS = {"sum": 0.0, "count": 0.0}


class Weighting(keras.metrics.Metric):
    """Base of the rules that adapt the weights of all terms from their losses.

    `keras_jointloss.joint_loss` takes it as `weighting`, and the
    `keras_jointloss.callbacks.JointLossCallback` ties it to all the terms of the model: output
    terms and layer terms, which are known only once the model is built. In every training step the
    total loss is

        total = sum_i value_i(step) * weight_i * loss_i

    with what the user has set or scheduled as `value_i`. A rule makes the `weight_i` of the losses
    up to the step before: in one step the weights are numbers, known before the losses. It runs in
    the compiled step and moves only in `fit`, while the callback takes part.

    A subclass writes `update` and, if it needs any, `initial_state`: names of what it keeps of each
    term, with the number it begins with. In `update`, `self.state` holds it, a vector for each
    name, to be read and set. The base class handles the rest:

    - Losses are means over the global batch; under `tf.distribute` all replicas have the same
      weights.
    - A term with no item in a step (all have sample weight 0), or whose layer was not called,
      keeps its weight and its state; the other terms meet its latest loss, 1 if there was none.
    - If a loss, a weight or anything of the state is not finite, or a loss is less than the rule
      can take, the step changes nothing but the count of such steps. At the end of the epoch the
      callback raises an error that names the term where that began, or warns. A loss that is less
      by 1e-4 at most counts as the least one: rounding may have put it there.
    - The state is saved with the model, in the config of the compiled model and in its weights
      files, and so comes back with `keras.callbacks.BackupAndRestore`, too.

    Args:
        warmup_steps: For how many training steps the weights are 1 and the rule sees no loss.
        ema: The share, >= 0 and < 1, of the previous smoothed loss in the next; 0 for the losses as
            they are.
        min_weight: The least weight.
        max_weight: The largest weight, or `None`.
        update_every: In how many training steps the rule runs once, with the means over these.
        on_nonfinite: What to do at the end of an epoch in which a loss was not usable: `"raise"` a
            `FloatingPointError`, or `"skip"` those steps with a warning.
        name: Name of the metric that it is.
        dtype: The dtype of weights and state, `keras.config.floatx()` by default; float32 at least.

    Raises:
        ValueError: If an argument is invalid.

    Example:

    >>> @keras.saving.register_keras_serializable()
    ... class Inverse(Weighting):
    ...     initial_state = {"mean": 1.0}
    ...
    ...     def update(self, losses, step):
    ...         mean = 0.9 * self.state["mean"] + 0.1 * losses
    ...         self.state["mean"] = mean
    ...         return 1 / mean
    >>> Inverse(warmup_steps=100, max_weight=10.0).get_config()["warmup_steps"]
    100
    """

    #: What the rule keeps of each term, with the number it begins with.
    initial_state: ClassVar[Mapping[str, float]] = {}
    #: The least loss that the rule can take.
    minimum_loss = float("-inf")

    def __init__(
        self,
        warmup_steps: int = 0,
        ema: float = 0.0,
        min_weight: float = 0.0,
        max_weight: float | None = None,
        update_every: int = 1,
        on_nonfinite: str = "raise",
        name: str | None = None,
        dtype=None,
    ):
        super().__init__(
            name=name or "weighting", dtype=float_dtype(dtype or keras.config.floatx())
        )
        self.warmup_steps = validate_count(warmup_steps, "warmup_steps", minimum=0)
        self.ema = validate_share(ema, "ema")
        self.min_weight = validate_number(min_weight, "min_weight", minimum=0)
        self.max_weight = None
        if max_weight is not None:
            expected = f"a number >= min_weight, {self.min_weight:g}, or None"
            self.max_weight = validate_number(
                max_weight, "max_weight", minimum=self.min_weight, expected=expected
            )
        self.update_every = validate_count(update_every, "update_every")
        self.on_nonfinite = validate_choice(on_nonfinite, "on_nonfinite", ("raise", "skip"))
        self.terms: tuple[str, ...] = ()
        #: What the rule keeps, by name, while `update` runs: `(terms,)` each.
        self.state: dict[str, Any] = {}
        # A function: Keras would take the weights, which are metrics, too, for parts of this one.
        self._get_weights: Callable[[], list[TermWeight]] = list
        # Each replica of `tf.distribute` traces in a thread of its own.
        self._recorded = threading.local()
        self._is_on = False
        #: The `keras_jointloss.terms.clock.Clock` of the model that the rule belongs to, if any.
        self.clock: Any = None

    # What a subclass writes.

    def update(self, losses, step):
        """Returns the weights of the terms for the next step.

        Args:
            losses: `(terms,)`, the losses of the training step, or what the options of the base
                make of them.
            step: The number of the training step, from 0, an int32 scalar tensor.

        Returns:
            `(terms,)`.
        """
        raise NotImplementedError

    def initial_weight(self, count: int) -> Any:
        """Returns the weights of `count` terms in the first step: a number for all or for each."""
        return 1.0

    def readout(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns what else to log of each term: by name, a number for each.

        Args:
            state: What the rule keeps: `(terms,)` for each name.
        """
        return {}

    def bind_gradients(self, layers: Sequence[Any]) -> None:
        """Takes note of where the rule finds the gradients of the terms, if it needs any.

        Args:
            layers: The layers of the model that tell of gradients: each has the names of `terms`,
                and a `record` whose `latest_lengths()` can be called in `update`.

        Raises:
            ValueError: If the rule needs gradients that none of the layers reports.
        """

    # Tying the rule to terms.

    def bind(self, terms: Mapping[str, TermWeight]) -> bool:
        """Ties the rule to terms, whose losses it then sees and whose weights it multiplies.

        Args:
            terms: By name. Those of the model's outputs come first.

        Returns:
            Whether that changes what a training step has to compute.

        Raises:
            ValueError: If the rule is tied to other terms already.
        """
        names = tuple(terms)
        if self.terms and names != self.terms:
            raise ValueError(
                f"{type(self).__name__} is the weighting of the terms {list(self.terms)}. "
                f"Received: terms {list(names)}"
            )
        weights = list(terms.values())
        # What a trace of another model has left is no loss of a step.
        self._recorded = threading.local()
        is_bound = self._get_weights() == weights and all(
            getattr(weight.observer, "func", None) == self._record for weight in weights
        )
        if is_bound:
            return False
        if not self.terms:
            self._create(names)
        self._get_weights = partial(list, weights)
        for index, weight in enumerate(weights):
            weight.adapt()
            weight.observer = partial(self._record, index)
        self._output_terms = {
            index for index, weight in enumerate(weights) if isinstance(weight, LossWeight)
        }
        self._scale_terms()
        return True

    def _create(self, names: tuple[str, ...]) -> None:
        self.terms = names
        rows = {**_ROWS, **(_SUMS if self.update_every > 1 else {})}
        if not self.warmup_steps:
            rows["weight"] = self.initial_weight(len(names))
        self._base_rows = tuple(rows)
        values = np.stack(
            [np.full(len(names), x) for x in (*rows.values(), *self.initial_state.values())]
        )
        self._initial = values

        def add(name, shape, dtype, initial):
            return self.add_variable(
                shape=shape,
                dtype=dtype,
                initializer=lambda shape, dtype=None: ops.convert_to_tensor(initial, dtype=dtype),
                aggregation="only_first_replica",
                name=name,
            )

        self._state = add("state", values.shape, self.dtype, values)
        self._step = add("step", (), "int32", 0)
        self._epoch = add("epoch", (), "int32", 0)
        self._advancing = add("advancing", (), "bool", False)

    # Within the compiled step.

    def _record(self, index, loss, items, counts) -> None:
        """Takes note of a term's mean loss over some items."""
        loss = ops.stop_gradient(ops.cast(loss, self.dtype))
        items = ops.cast(items, self.dtype)
        if counts is not None:
            items = items * ops.cast(counts, self.dtype)
        recorded = self._recorded.__dict__
        recorded[index] = (items, loss)
        # Elsewhere the layers' losses come after those of outputs, and `update_state` after both;
        # on JAX it is the other way round, and `update_state` cannot reach the layers.
        if keras.backend.backend() == "jax" and self._output_terms <= set(recorded):
            self._run()

    def update_state(self, *args, **kwargs) -> None:
        """Runs the rule on the losses of the step, if annealing is on."""
        if keras.backend.backend() != "jax" and self._recorded.__dict__:
            self._run()

    def _run(self) -> None:
        recorded: dict[Any, Any] = {**self._recorded.__dict__}
        self._recorded.__dict__.clear()
        nothing = (ops.zeros((), self.dtype),) * 2
        pairs = [recorded.get(index, nothing) for index in range(len(self.terms))]
        items = ops.stack([items for items, _ in pairs])
        losses = ops.stack([loss for _, loss in pairs])
        if replica_count() > 1:
            sums = ops.stack([items, ops.where(items > 0, items * losses, 0)])
            items, sums = ops.unstack(sum_over_replicas(sums))
            losses = sums / ops.maximum(items, 1)
        is_on = ops.copy(self._advancing)
        step = ops.copy(self._step)
        self._step.assign(step + ops.cast(is_on, "int32"))
        state = self._advance(ops.copy(self._state), losses, items > 0, step, is_on)
        self._state.assign(state)
        for weight, factor in zip(self._get_weights(), ops.unstack(state[0]), strict=True):
            weight.scale(factor)

    def _advance(self, state, losses, is_there, step, is_on):
        """Returns the state after a training step: `(rows, terms)`."""
        is_rounded = ops.logical_and(
            losses < self.minimum_loss, losses >= self.minimum_loss - _ROUNDING
        )
        losses = ops.where(is_rounded, ops.cast(self.minimum_loss, losses.dtype), losses)
        is_usable = ops.logical_and(ops.isfinite(losses), losses >= self.minimum_loss)
        is_bad = ops.logical_and(is_there, ops.logical_not(is_usable))  # (terms,)
        rows = dict(zip(self._base_rows, ops.unstack(state[: len(self._base_rows)]), strict=True))
        old = {**rows, **self._own_rows(state)}

        due = is_on
        if self.warmup_steps:
            is_on = due = ops.logical_and(due, step >= self.warmup_steps)
        if self.update_every > 1:
            is_added = ops.logical_and(is_on, ops.logical_not(ops.any(is_bad)))
            is_added = ops.logical_and(is_added, is_there)
            old["sum"] = old["sum"] + ops.where(is_added, losses, 0)
            old["count"] = old["count"] + ops.cast(is_added, state.dtype)
            due = ops.logical_and(due, ops.equal((step + 1) % self.update_every, 0))
            is_there = old["count"] > 0
            losses = old["sum"] / ops.maximum(old["count"], 1)

        loss = losses
        if self.ema:
            smoothed = self.ema * old["loss"] + (1 - self.ema) * losses
            loss = ops.where(old["seen"] > 0, smoothed, losses)
        loss = ops.where(is_there, loss, old["loss"])
        self.state = {name: old[name] for name in self.initial_state}
        weight = ops.cast(self.update(loss, step), state.dtype)
        weight = ops.maximum(weight, self.min_weight)
        if self.max_weight is not None:
            weight = ops.minimum(weight, self.max_weight)
        new = {"weight": weight, "loss": loss, "seen": ops.ones_like(loss), **self.state}

        names = tuple(new)
        values = ops.stack([new[name] for name in names])
        is_good = ops.logical_and(due, ops.logical_not(ops.any(is_bad)))
        is_finite = ops.all(ops.isfinite(values), axis=0)
        is_broken = ops.logical_and(ops.logical_and(is_good, is_there), ops.logical_not(is_finite))
        is_good = ops.logical_and(is_good, ops.logical_not(ops.any(is_broken)))
        before = ops.stack([old[name] for name in names])
        after = ops.unstack(ops.where(ops.logical_and(is_good, is_there), values, before))
        result = {**old, **dict(zip(names, after, strict=True))}
        is_bad = ops.logical_or(ops.logical_and(is_bad, is_on), is_broken)
        result["unusable"] = old["unusable"] + ops.cast(is_bad, state.dtype)
        # What is not finite spreads to the other terms in the steps after.
        is_first = ops.logical_not(ops.any(old["culprit"] > 0))
        result["culprit"] = ops.where(is_first, ops.cast(is_bad, state.dtype), old["culprit"])
        if self.update_every > 1:
            for name in _SUMS:
                result[name] = ops.where(due, 0, old[name])
        return ops.stack([result[name] for name in (*self._base_rows, *self.initial_state)])

    def _own_rows(self, state):
        values = ops.unstack(state[len(self._base_rows) :]) if self.initial_state else ()
        return dict(zip(self.initial_state, values, strict=True))

    @property
    def epoch(self):
        """The number of epochs of training that have begun, an int32 scalar tensor."""
        return ops.copy(self._epoch)

    def result(self):
        """Returns the weights now: `(terms,)`."""
        return ops.copy(self._state)[0]

    # From the host.

    def start(self, is_new_epoch: bool = False) -> None:
        """Lets the rule move the weights."""
        if is_new_epoch:
            # Keras counts from 0 again in each `fit`.
            self._epoch.assign(int(to_numpy(self._epoch)) + 1)
        self._advancing.assign(True)
        self._is_on = True

    def reset_state(self) -> None:
        """Stops the rule, as Keras resets metrics before an evaluation; keeps weights and state."""
        if self.clock is None or not self.clock.outlasts_reset():
            self.stop()

    def stop(self) -> None:
        """Keeps the rule from moving the weights."""
        if self._is_on:
            self._advancing.assign(False)
            self._is_on = False

    @property
    def step(self) -> int:
        """The number of training steps in which the rule was on."""
        return int(to_numpy(self._step))

    def read(self) -> dict[str, dict[str, float]]:
        """Returns what there is to log of each term besides weight and loss, by the term's name."""
        rows = self._rows()
        own = {name: rows[name] for name in self.initial_state}
        readings = {key: values.tolist() for key, values in self.readout(own).items()}
        return {
            term: {key: values[index] for key, values in readings.items()}
            for index, term in enumerate(self.terms)
        }

    def report(self, epoch: int) -> None:
        """Reports losses that the rule could not use, at the end of an epoch.

        Raises:
            FloatingPointError: If there are any, with `on_nonfinite="raise"`.
        """
        unusable = self.take_unusable()
        if not unusable:
            return
        terms = ", ".join(f"{name!r} in {count} steps" for name, count in unusable.items())
        message = (
            f"{type(self).__name__} cannot use a loss that is not finite or less than "
            f"{self.minimum_loss:g}, or that leads to a weight or state that is not finite. "
            f"Received in epoch {epoch}: the loss of {terms}"
        )
        if self.on_nonfinite == "raise":
            raise FloatingPointError(message)
        warnings.warn(f"{message}. The weights did not move in these steps.", stacklevel=2)

    def take_unusable(self) -> dict[str, int]:
        """Returns how often the first terms that were not usable were not, and forgets it."""
        rows = self._rows()
        counts = rows["unusable"] * rows["culprit"]
        if not counts.any():
            return {}
        values = to_numpy(self._state).copy()
        for name in ("unusable", "culprit"):
            values[self._base_rows.index(name)] = 0
        self._state.assign(values)
        return {term: int(n) for term, n in zip(self.terms, counts, strict=True) if n}

    def _rows(self) -> dict[str, np.ndarray]:
        values = to_numpy(self._state)
        return dict(zip((*self._base_rows, *self.initial_state), values, strict=True))

    def _scale_terms(self) -> None:
        factors = self._rows()["weight"]
        # There are no terms before the rule is tied to them.
        for weight, factor in zip(self._get_weights(), factors, strict=False):
            weight.scale(factor)

    def begin_anew(self) -> None:
        """Forgets the progress."""
        if self.terms:
            self.load_progress({"state": self._initial, "step": 0, "epoch": 0})

    def save_progress(self) -> dict[str, np.ndarray]:
        """Returns all that training changes."""
        variables = {"state": self._state, "step": self._step, "epoch": self._epoch}
        return {name: to_numpy(variable) for name, variable in variables.items()}

    def load_progress(self, progress: Mapping[str, Any]) -> None:
        """Takes over what `save_progress` has returned, for the same terms."""
        self._state.assign(np.array(progress["state"]))
        self._step.assign(int(np.array(progress["step"])))
        self._epoch.assign(int(np.array(progress["epoch"])))
        self._scale_terms()

    def save_own_variables(self, store: Any) -> None:
        """Saves the progress in a weights file of the model."""
        if self.terms:
            store["terms"] = np.frombuffer(json.dumps(self.terms).encode(), "uint8")
            for name, value in self.save_progress().items():
                store[name] = value

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` has saved."""
        if "state" not in store.keys():  # noqa: SIM118 (a store is no dict)
            return
        terms = tuple(json.loads(np.array(store["terms"]).tobytes()))
        if not self.terms:
            self._create(terms)
        if terms != self.terms:
            raise ValueError(
                f"{type(self).__name__} is the weighting of the terms {list(self.terms)}. "
                f"Received: a file with the state of the terms {list(terms)}"
            )
        self.load_progress(store)

    def get_config(self) -> dict:
        config = {
            **super().get_config(),
            "warmup_steps": self.warmup_steps,
            "ema": self.ema,
            "min_weight": self.min_weight,
            "max_weight": self.max_weight,
            "update_every": self.update_every,
            "on_nonfinite": self.on_nonfinite,
        }
        if self.terms:
            progress = {name: value.tolist() for name, value in self.save_progress().items()}
            config["progress"] = {"terms": list(self.terms), **progress}
        return config

    @classmethod
    def from_config(cls, config: dict) -> "Weighting":
        config = dict(config)
        progress = config.pop("progress", None)
        instance = cls(**config)
        if progress is not None:
            instance._create(tuple(progress["terms"]))
            instance.load_progress(progress)
        return instance


def get(identifier: Any) -> Weighting | None:
    """Returns a weighting by instance, by name or by config; `None` for `None`.

    Args:
        identifier: A `Weighting`, the name of a class of `keras_jointloss.weighting` or of a
            registered class of your own (`"GeometricMean"`, `"geometric_mean"`: upper case and
            underscores do not matter), or the serialized form of a weighting.

    Raises:
        ValueError: If there is no such weighting.

    Example:

    >>> type(get("geometric_mean")).__name__
    'GeometricMean'
    """
    return None if identifier is None else find(identifier, Weighting, "weighting", "weighting")
