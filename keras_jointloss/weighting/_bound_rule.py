"""Binds a rule to the terms of a model, runs it in the compiled step, and saves it."""

import math
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import keras
from keras import ops

from keras_jointloss._core import keras as _keras
from keras_jointloss._core.backend import trains_functionally
from keras_jointloss._core.saved_state import SavedState, load_or_undo
from keras_jointloss._core.validation import validate_names
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting import _step
from keras_jointloss.weighting._by_term import deserialize_by_term, serialize_by_term
from keras_jointloss.weighting._progress import Progress
from keras_jointloss.weighting._saved_progress import (
    progress_config,
    read_progress,
    read_terms,
    save_progress,
)
from keras_jointloss.weighting._step_losses import StepLosses


class BoundRule(keras.metrics.Metric):
    """Base class of `keras_jointloss.weighting.Weighting`, which adds options and formulas.

    Args:
        name: Name of the metric.
        dtype: The dtype of weights and state.
    """

    initial_state: ClassVar[Mapping[str, float]]
    nonnegative_state: ClassVar[frozenset[str]]
    minimum_loss: float
    needs_given_weights: bool
    by_term: ClassVar[Mapping[str, bool]]
    widest_ratio: float
    intended_below: float
    small_weight_remedy: ClassVar[str | None]
    small_loss_remedy: ClassVar[str | None]
    update_every: int
    warmup_steps: int
    on_nonfinite: str
    initial_weight: Callable[[int], Any]
    readout: Callable[[dict], dict]
    describe_limit: Callable[[Mapping[str, float], bool], str | None]

    def __init__(self, name: str, dtype: str):
        super().__init__(name=name, dtype=dtype)
        #: The `Progress` of the training, set once the terms are known.
        self.progress: Any = None
        #: The names of the output terms, from `joint_loss`; empty if unknown.
        self.output_terms: tuple[str, ...] = ()
        # A function, as Keras would track the weights, which are metrics too, as parts of this one.
        self._get_weights: Callable[[], list[TermWeight]] = list
        self._step_losses = StepLosses(self.dtype)
        self._is_on = False
        #: The user's weights of the next step, `(terms,)`, while `update` runs.
        self.given_weights: Any = None
        #: The `keras_jointloss.terms.clock.Clock` of the model that the rule belongs to, if any.
        self.clock: Any = None

    def bind(self, terms: Mapping[str, TermWeight]) -> bool:
        """Binds the rule to terms: it then receives their losses and multiplies their weights.

        Args:
            terms: The terms by name. Those of the model's outputs come first.

        Returns:
            Whether this changes the computation of a training step.

        Raises:
            ValueError: If the rule is already bound to other terms, or an argument that is given by
                the name of the term does not fit the terms.
        """
        names = tuple(terms)
        for argument, is_complete in self.by_term.items():
            validate_names(getattr(self, argument), argument, names, is_complete)
        if self.terms and names != self.terms:
            message = (
                f"{type(self).__name__} is the weighting of the terms {list(self.terms)}. "
                f"Received: terms {list(names)}"
            )
            if not self._get_weights():  # It has never been bound.
                message = (
                    f"{message}. The former are those of the file or config that was loaded: after "
                    "`load_weights`, compile again with a new weighting"
                )
            raise ValueError(message)
        weights = list(terms.values())
        self._step_losses.clear()
        is_bound = self._get_weights() == weights and all(
            getattr(weight.observer, "func", None) == self._record for weight in weights
        )
        if is_bound:
            return False
        self._create_progress(names)
        self._get_weights = partial(list, weights)
        for index, weight in enumerate(weights):
            weight.adapt()
            weight.observer = partial(self._record, index)
        self._output_indices = {
            index for index, weight in enumerate(weights) if isinstance(weight, LossWeight)
        }
        self._scale_terms()
        return True

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms; empty before they are known."""
        return () if self.progress is None else self.progress.terms

    def _create_progress(self, names: tuple[str, ...]) -> Progress:
        if self.progress is None:
            self.progress = Progress(self, names, self.initial(len(names)))
        return self.progress

    def initial(self, count: int) -> dict[str, Any]:
        """Returns the initial state by name, for a number of terms."""
        initial = {**_step.STATE, **(_step.SUMS if self.update_every > 1 else {})}
        if not self.warmup_steps:
            initial["weight"] = self.initial_weight(count)
        return {**initial, **self.initial_state}

    # Within the compiled step.

    def _record(self, index, loss, items, counts) -> None:
        """Records the mean loss of a term over some items."""
        # Read here, since every term records its loss before its weight moves to the next step.
        given = self._get_weights()[index].next_value() if self.needs_given_weights else None
        self._step_losses.record(index, loss, items, counts, given)
        # On other backends, layer losses come after output losses, and `update_state` after both.
        # On JAX, layer losses come first, and `update_state` cannot reach the layers.
        if trains_functionally() and self._output_indices <= self._step_losses.indices:
            self._run()

    def update_state(self, *args, **kwargs) -> None:
        """Runs the rule on the losses of the step; has an effect only while the rule is on."""
        if trains_functionally():
            return
        for weight in self._get_weights():
            weight.settle()
        if self._step_losses.indices:
            self._run()

    def _run(self) -> None:
        progress: Any = self.progress
        given = self._next_given_weights() if self.needs_given_weights else None
        counts, losses = self._step_losses.pop(len(self.terms))
        self.given_weights = given  # Only now, since `pop` may switch to another replica.
        step, is_on = progress.begin_step()
        state = _step.advance(self, progress.tensors(), losses, counts, step, is_on)
        progress.assign(state)
        for weight, factor in zip(self._get_weights(), ops.unstack(state["weight"]), strict=True):
            weight.scale(factor)

    def _next_given_weights(self):
        """Returns the user's weights of the next step: `(terms,)`."""
        found = self._step_losses.given_weights(len(self.terms))
        # A term without a loss in this step does not move.
        pairs = zip(found, self._get_weights(), strict=True)
        values = [weight.next_value() if given is None else given for given, weight in pairs]
        return ops.stack([ops.cast(value, self.dtype) for value in values])

    @property
    def epoch(self):
        """The number of training epochs that have begun, an int32 scalar tensor."""
        return self.progress.epoch

    def result(self):
        """Returns the current weights: `(terms,)`."""
        return self.progress.tensors()["weight"]

    # On the host.

    def start(self, is_new_epoch: bool = False) -> None:
        """Lets the rule update the weights."""
        self.progress.start(is_new_epoch)
        self._is_on = True

    def reset_state(self) -> None:
        """Stops the rule, as Keras resets metrics before an evaluation. Keeps weights and state."""
        if self.clock is None or not self.clock.outlasts_reset():
            self.stop()

    def stop(self) -> None:
        """Stops the rule from updating the weights."""
        if self._is_on:
            self.progress.stop()
            self._is_on = False

    @property
    def step(self) -> int:
        """The number of training steps in which the rule was on."""
        return 0 if self.progress is None else self.progress.step

    @property
    def factors(self) -> dict[str, float]:
        """The current weights by term; empty before the terms are known."""
        if self.progress is None:
            return {}
        return dict(zip(self.terms, self.progress.arrays()["weight"].tolist(), strict=True))

    def read(self) -> dict[str, dict[str, float]]:
        """Returns the values to log besides weight and loss, by the name of the term."""
        state = self.progress.arrays()
        own = {name: state[name] for name in self.initial_state}
        readings = {key: values.tolist() for key, values in self.readout(own).items()}
        return {
            term: {key: values[index] for key, values in readings.items()}
            for index, term in enumerate(self.terms)
        }

    def report(self, epoch: int) -> None:
        """Reports the losses that the rule could not use, at the end of an epoch.

        Raises:
            FloatingPointError: If there are any and `on_nonfinite` is `"raise"`.
        """
        unusable = self.pop_invalid_counts()
        if not unusable:
            return
        terms = ", ".join(f"{name!r} in {count} steps" for name, count in unusable.items())
        limit = f" or less than {self.minimum_loss:g}" if math.isfinite(self.minimum_loss) else ""
        message = (
            f"{type(self).__name__} cannot use a loss that is not finite{limit}, or that leads to "
            "a weight or state that is not finite. "
            f"Received in epoch {epoch}: the loss of {terms}"
        )
        if self.on_nonfinite == "raise":
            raise FloatingPointError(message)
        warnings.warn(f"{message}. The weights did not move in these steps.", stacklevel=2)

    def pop_invalid_counts(self) -> dict[str, int]:
        """Returns and clears the counts of unusable losses of the terms that had the first ones."""
        state = self.progress.arrays()
        counts = state["unusable"] * state["culprit"]
        if not counts.any():
            return {}
        self.progress.clear("unusable", "culprit")
        return {term: int(n) for term, n in zip(self.terms, counts, strict=True) if n}

    def _scale_terms(self) -> None:
        factors = self.progress.arrays()["weight"]
        # There are no weights before the rule is bound to terms.
        for weight, factor in zip(self._get_weights(), factors, strict=False):
            weight.scale(factor)

    def begin_anew(self) -> None:
        """Resets the progress."""
        if self.progress is not None:
            self.progress.forget()
            self._scale_terms()

    def save_own_variables(self, store: Any) -> None:
        """Saves the progress in a weights file of the model."""
        if self.progress is not None:
            save_progress(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Loads the progress that `save_own_variables` saved, if any."""
        load_or_undo(self, store, self._load, self._restore)

    def _load(self, store: Any) -> None:
        state = SavedState(store, type(self).__name__)
        if "state" in state:
            self._load_progress(*read_progress(self, state))
        elif self.step:
            warnings.warn(
                f"The file has no state of {type(self).__name__}, which keeps its own, of "
                f"{self.step} steps. It does not belong to the weights of the file.",
                stacklevel=2,
            )

    def _restore(self, before: Mapping[str, Any]) -> None:
        if before:
            self._load(before)
        elif self.progress is not None:
            # The file created it, with its own terms, which need not be those of the model.
            _keras.untrack(self, self.progress.variables)
            self.progress = None

    def _load_progress(self, terms: tuple[str, ...], values: Mapping[str, Any]) -> None:
        self._create_progress(terms).load(values)
        self._scale_terms()

    def get_config(self) -> dict:
        config = super().get_config()
        config.update({name: serialize_by_term(getattr(self, name)) for name in self.by_term})
        if self.output_terms:
            config["output_terms"] = list(self.output_terms)
        if self.progress is not None:
            config["progress"] = progress_config(self)
        return config

    @classmethod
    def from_config(cls, config: dict) -> "BoundRule":
        config = dict(config)
        progress, outputs = config.pop("progress", None), config.pop("output_terms", None)
        for name in cls.by_term:
            if name in config:
                config[name] = deserialize_by_term(config[name])
        instance = cls(**config)
        if progress is not None:
            state = SavedState(progress, f"{cls.__name__}, the argument `progress`")
            instance._load_progress(*read_progress(instance, state, is_config=True))
        if outputs is not None:
            state = SavedState({"output_terms": outputs}, cls.__name__)
            instance.output_terms = read_terms(state, "output_terms", outputs)
        return instance
