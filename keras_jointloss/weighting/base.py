"""The base of the rules that adapt the weights of the terms."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_jointloss._math import float_dtype
from keras_jointloss._registry import find
from keras_jointloss._validation import (
    validate_choice,
    validate_count,
    validate_number,
    validate_share,
)
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting import _step
from keras_jointloss.weighting._progress import Progress, load_terms, save_terms
from keras_jointloss.weighting._step_losses import StepLosses


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
        #: What training has changed, once the terms are known.
        self.progress: Any = None  # A `Progress`.
        #: What the rule keeps, by name, while `update` runs: `(terms,)` each.
        self.state: dict[str, Any] = {}
        # A function: Keras would take the weights, which are metrics, too, for parts of this one.
        self._get_weights: Callable[[], list[TermWeight]] = list
        self._losses = StepLosses(self.dtype)
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
        self._losses.clear()
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
        self._output_terms = {
            index for index, weight in enumerate(weights) if isinstance(weight, LossWeight)
        }
        self._scale_terms()
        return True

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms; none before they are known."""
        return () if self.progress is None else self.progress.terms

    def _create_progress(self, names: tuple[str, ...]) -> Progress:
        if self.progress is None:
            initial = {**_step.STATE, **(_step.SUMS if self.update_every > 1 else {})}
            if not self.warmup_steps:
                initial["weight"] = self.initial_weight(len(names))
            self.progress = Progress(self, names, {**initial, **self.initial_state})
        return self.progress

    # Within the compiled step.

    def _record(self, index, loss, items, counts) -> None:
        """Records the mean loss of a term over some items."""
        self._losses.record(index, loss, items, counts)
        # Elsewhere the layers' losses come after those of outputs, and `update_state` after both;
        # on JAX it is the other way round, and `update_state` cannot reach the layers.
        if keras.backend.backend() == "jax" and self._output_terms <= self._losses.indices:
            self._run()

    def update_state(self, *args, **kwargs) -> None:
        """Runs the rule on the losses of the step, if annealing is on."""
        if keras.backend.backend() != "jax" and self._losses.indices:
            self._run()

    def _run(self) -> None:
        progress: Any = self.progress
        items, losses = self._losses.pop(len(self.terms))
        step, is_on = progress.begin_step()
        state = _step.advance(self, progress.tensors(), losses, items > 0, step, is_on)
        progress.assign(state)
        for weight, factor in zip(self._get_weights(), ops.unstack(state["weight"]), strict=True):
            weight.scale(factor)

    @property
    def epoch(self):
        """The number of epochs of training that have begun, an int32 scalar tensor."""
        return self.progress.epoch

    def result(self):
        """Returns the weights now: `(terms,)`."""
        return self.progress.tensors()["weight"]

    # From the host.

    def start(self, is_new_epoch: bool = False) -> None:
        """Lets the rule move the weights."""
        self.progress.start(is_new_epoch)
        self._is_on = True

    def reset_state(self) -> None:
        """Stops the rule, as Keras resets metrics before an evaluation; keeps weights and state."""
        if self.clock is None or not self.clock.outlasts_reset():
            self.stop()

    def stop(self) -> None:
        """Keeps the rule from moving the weights."""
        if self._is_on:
            self.progress.stop()
            self._is_on = False

    @property
    def step(self) -> int:
        """The number of training steps in which the rule was on."""
        return self.progress.step

    def read(self) -> dict[str, dict[str, float]]:
        """Returns what there is to log of each term besides weight and loss, by the term's name."""
        state = self.progress.arrays()
        own = {name: state[name] for name in self.initial_state}
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
        state = self.progress.arrays()
        counts = state["unusable"] * state["culprit"]
        if not counts.any():
            return {}
        self.progress.clear("unusable", "culprit")
        return {term: int(n) for term, n in zip(self.terms, counts, strict=True) if n}

    def _scale_terms(self) -> None:
        factors = self.progress.arrays()["weight"]
        # There are no terms before the rule is tied to them.
        for weight, factor in zip(self._get_weights(), factors, strict=False):
            weight.scale(factor)

    def begin_anew(self) -> None:
        """Forgets the progress."""
        if self.progress is not None:
            self.progress.forget()
            self._scale_terms()

    def save_own_variables(self, store: Any) -> None:
        """Saves the progress in a weights file of the model."""
        if self.progress is not None:
            save_terms(store, self.terms)
            for name, value in self.progress.save().items():
                store[name] = value

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` has saved."""
        if "state" not in store.keys():  # noqa: SIM118 (a store is no dict)
            return
        terms = load_terms(store)
        progress = self._create_progress(terms)
        if terms != self.terms:
            raise ValueError(
                f"{type(self).__name__} is the weighting of the terms {list(self.terms)}. "
                f"Received: a file with the state of the terms {list(terms)}"
            )
        progress.load(store)
        self._scale_terms()

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
        if self.progress is not None:
            progress = {name: value.tolist() for name, value in self.progress.save().items()}
            config["progress"] = {"terms": list(self.terms), **progress}
        return config

    @classmethod
    def from_config(cls, config: dict) -> "Weighting":
        config = dict(config)
        progress = config.pop("progress", None)
        instance = cls(**config)
        if progress is not None:
            instance._create_progress(tuple(progress["terms"])).load(progress)
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
