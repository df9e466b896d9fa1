"""The base of the rules that adapt the weights of the terms."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import keras
import numpy as np

from keras_jointloss._math import float_dtype
from keras_jointloss._registry import find
from keras_jointloss._validation import (
    validate_choice,
    validate_count,
    validate_number,
    validate_share,
)
from keras_jointloss.weighting._bound_rule import BoundRule


class Weighting(BoundRule):
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
        super().__init__(name or "weighting", float_dtype(dtype or keras.config.floatx()))
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
        #: What the rule keeps, by name, while `update` runs: `(terms,)` each.
        self.state: dict[str, Any] = {}

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
            layers: The layers of the model that report gradient statistics: each has the names of
                `terms`, and a `record` whose `latest_lengths()` can be called in `update`.

        Raises:
            ValueError: If the rule needs gradients that none of the layers reports.
        """

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "warmup_steps": self.warmup_steps,
            "ema": self.ema,
            "min_weight": self.min_weight,
            "max_weight": self.max_weight,
            "update_every": self.update_every,
            "on_nonfinite": self.on_nonfinite,
        }


def get(identifier: Any) -> Weighting | None:
    """Returns a weighting by instance, by name or by config; `None` for `None`.

    Args:
        identifier: A `Weighting`, the name of a class of `keras_jointloss.weighting` or of a
            registered custom class (`"GeometricMean"`, `"geometric_mean"`: upper case and
            underscores do not matter), or the serialized form of a weighting.

    Raises:
        ValueError: If there is no such weighting.

    Example:

    >>> type(get("geometric_mean")).__name__
    'GeometricMean'
    """
    return None if identifier is None else find(identifier, Weighting, "weighting", "weighting")
