"""Base class of the rules that adapt the weights of the terms."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import keras
import numpy as np

from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.registry import find
from keras_jointloss._core.types import Config, DType, Numbers, Tensor
from keras_jointloss._core.validation import (
    validate_choice,
    validate_count,
    validate_names,
    validate_number,
    validate_share,
)
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting._metric import RuleMetric


class Weighting(RuleMetric):
    """Base class of the rules that adapt the weights of all terms from their losses.

    Pass it to `keras_jointloss.joint_loss` as `weighting`. The
    `keras_jointloss.callbacks.JointLossCallback` binds it to all terms of the model: output terms
    and layer terms, which are known only once the model is built. In every training step the total
    loss is

        total = sum_i value_i(step) * weight_i * loss_i

    where the user sets or schedules `value_i`. A rule computes `weight_i` from the losses up to the
    previous step: within a step the weights are numbers, known before the losses. It runs in the
    compiled step and updates the weights only in `fit` with the callback.

    A subclass implements `update` and, if it has state, `initial_state`: the names of the values
    that it keeps for each term, with their initial numbers. `update` reads and sets them in
    `self.state`, which holds a vector for each name. The base class handles the rest:

    - Losses are means over the global batch; under `tf.distribute` all replicas have the same
      weights.
    - A term without items in a step (all have sample weight 0), or whose layer was not called,
      keeps its weight and its state. For the other terms, `update` receives its latest loss, or 1
      if there was none.
    - If a loss, a weight or a value of the state is not finite, or a loss is below the minimum of
      the rule, the step changes only the count of such steps. At the end of the epoch the callback
      raises an error that names the term where this began, or warns. A loss at most 1e-4 below the
      minimum counts as the minimum: rounding may have put it there.
    - The state is saved with the model, in the config of the compiled model and in its weights
      files, so `keras.callbacks.BackupAndRestore` restores it, too.

    Args:
        warmup_steps: The number of training steps in which the weights are 1 and the rule sees no
            loss.
        ema: The weight of the previous smoothed loss in the next, >= 0 and < 1; 0 for no smoothing.
        min_weight: The smallest weight.
        max_weight: The largest weight, or `None` for no limit.
        update_every: The rule runs once in this many training steps, with their mean losses.
        on_nonfinite: What to do at the end of an epoch in which a loss was unusable: `"raise"` a
            `FloatingPointError`, or `"skip"` those steps with a warning.
        name: Name of the metric.
        dtype: The dtype of weights and state, `keras.config.floatx()` by default; at least float32.

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

    #: The state of each term: the initial number by name.
    initial_state: ClassVar[Mapping[str, float]] = {}
    #: The names of the state that is never negative: a file with negative numbers is refused.
    nonnegative_state: ClassVar[frozenset[str]] = frozenset()
    #: The smallest loss that the rule accepts.
    minimum_loss = float("-inf")
    #: The arguments with values by the name of the term, and whether each term must have one.
    by_term: ClassVar[Mapping[str, bool]] = {}
    #: Whether `ema` is corrected for its beginning: the mean of n losses with the weights
    #: `ema**(n - 1), ..., ema, 1`. Otherwise the first loss keeps the weight of all before it.
    corrects_bias = False
    #: Whether `update` needs `given_weights`, the user's weights of the next step.
    needs_given_weights = False
    #: Whether `update` needs `applied_weights`, which multiply the losses of this step.
    needs_applied_weights = False
    #: The callback warns of a term that contributes less than this part of what another does, be it
    #: through its weight or through its loss. Infinite for no warning.
    widest_ratio = 1e4
    #: This warning ignores smaller weights: the rule returns them on purpose.
    intended_below = 0.0
    #: What this warning advises if the weight is so small; `None` if that is on purpose.
    small_weight_remedy: ClassVar[str | None] = (
        "Limit the weights with `min_weight` and `max_weight`."
    )
    #: What this warning advises if the loss is so small from the beginning; `None` for a rule that
    #: takes care of that.
    small_loss_remedy: ClassVar[str | None] = None

    def __init__(
        self,
        warmup_steps: int = 0,
        ema: float = 0.0,
        min_weight: float = 0.0,
        max_weight: float | None = None,
        update_every: int = 1,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        name: str | None = None,
        dtype: DType = None,
    ):
        super().__init__(name, float_dtype(dtype or keras.config.floatx()))
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
        self._set_inputs()

    # Methods that a subclass implements.

    def update(self, losses: Tensor, step: Tensor) -> Tensor:
        """Returns the weights of the terms for the next step.

        It may also read `terms`, `epoch`, and what exists only while it runs: `state`, which it
        changes, `has_loss`, and `given_weights` or `applied_weights`.

        Args:
            losses: `(terms,)`, the losses of the training step, averaged and smoothed
                according to the options of the base class.
            step: The number of the training step, from 0, an int32 scalar tensor.

        Returns:
            `(terms,)`.
        """
        raise NotImplementedError

    def initial_weight(self, count: int) -> float | Numbers:
        """Returns the weights of `count` terms in the first step: a number for all or for each."""
        return 1.0

    def readout(self, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns further values to log: by name, a number for each term.

        Args:
            state: The state of the rule: `(terms,)` for each name.
        """
        return {}

    def describe_limit(self, losses: Mapping[str, float], forgets: bool) -> str | None:
        """Returns a sentence if the rule cannot weigh losses of this size, or else `None`.

        The callback warns with it, once.

        Args:
            losses: The mean losses of an epoch by the name of the term.
            forgets: Whether a large gradient leaves nothing behind in the optimizer: it limits
                gradients, skips steps in which they are too large, or remembers none.
        """
        return None

    def bind_gradients(self, layers: Sequence[Any]) -> None:
        """Connects the rule to a layer that reports the gradients of the terms, if it needs any.

        Args:
            layers: The layers of the model that report gradient statistics: each has the names of
                `terms`, and a `record` whose `latest_lengths()` can be called in `update`.

        Raises:
            ValueError: If the rule needs gradients that none of the layers reports.
        """

    # What the package calls.

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
        for argument, is_complete in self.by_term.items():
            validate_names(getattr(self, argument), argument, tuple(terms), is_complete)
        return self.runner.bind(terms)

    def update_state(self, *args: Any, **kwargs: Any) -> None:
        """Runs the rule on the losses of the step; has an effect only while the rule is on."""
        self.runner.update_state()

    def run_update(
        self,
        losses: Tensor,
        step: Tensor,
        state: dict[str, Tensor],
        has_loss: Tensor,
        known_weights: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Runs `update` with all that it may read, and returns the weights and the new state."""
        self._set_inputs(state, has_loss, known_weights)
        weights, state = self.update(losses, step), self.state
        self._set_inputs()
        return weights, state

    def _set_inputs(self, state=None, has_loss=None, known_weights=None) -> None:
        #: The state by name, while `update` runs: `(terms,)` each.
        self.state: dict[str, Any] = {} if state is None else state
        #: Which terms have had a loss so far, while `update` runs: `(terms,)`, bool.
        self.has_loss: Any = has_loss
        #: The user's weights of the next step, if it `needs_given_weights`: `(terms,)`.
        self.given_weights: Any = known_weights if self.needs_given_weights else None
        #: The weights of the losses of this step, if it `needs_applied_weights`: `(terms,)`.
        self.applied_weights: Any = known_weights if self.needs_applied_weights else None

    def read(self) -> dict[str, dict[str, float]]:
        """Returns the values to log besides weight and loss, by the name of the term."""
        state = self.runner.arrays()
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

    def get_config(self) -> Config:
        options = ("warmup_steps", "ema", "min_weight", "max_weight", "update_every")
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in (*options, "on_nonfinite")},
        }


def get(identifier: str | Config | Weighting | None) -> Weighting | None:
    """Returns a weighting by instance, by name or by config; `None` for `None`.

    Args:
        identifier: A `Weighting`, the name of a class of `keras_jointloss.weighting` or of a
            registered custom class (`"GeometricMean"`, `"geometric_mean"`: case and underscores
            do not matter), or the serialized form of a weighting.

    Raises:
        ValueError: If there is no such weighting.

    Example:

    >>> type(get("geometric_mean")).__name__
    'GeometricMean'
    """
    return None if identifier is None else find(identifier, Weighting, "weighting", "weighting")
