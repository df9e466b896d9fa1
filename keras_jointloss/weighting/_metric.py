"""The Keras side of a rule: a metric, whose variables the model tracks, resets and saves."""

from functools import partial
from typing import Any

import keras
from keras import ops

from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.saved_state import load_or_undo
from keras_jointloss._core.types import Tensor
from keras_jointloss._core.validation import validate_name
from keras_jointloss.weighting._runner import Runner
from keras_jointloss.weighting._saved_progress import load_progress, restore_progress, save_progress


class RuleMetric(keras.metrics.Metric):
    """Base class of `keras_jointloss.weighting.Weighting`, which adds options and formulas.

    Args:
        name: Name of the metric; `None` for `"weighting"`.
        dtype: The dtype of weights and state.
    """

    def __init__(self, name: str | None, dtype: str):
        super().__init__(name=validate_name(name) or "weighting", dtype=dtype)
        #: Runs the rule in the training steps: it has the terms, and all that training changes.
        self.runner = Runner(self)
        #: The names of the output terms, from `joint_loss`; empty if unknown.
        self.output_terms: tuple[str, ...] = ()
        #: The `keras_jointloss.terms.clock.Clock` of the model that the rule belongs to, if any.
        self.clock: Any = None

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the terms; empty before they are known."""
        return self.runner.terms

    @property
    def epoch(self) -> Tensor:
        """The number of training epochs that have begun, an int32 scalar tensor."""
        return ops.copy(self.runner.epoch)

    @property
    def step(self) -> int:
        """The number of training steps in which the rule was on."""
        return int(to_numpy(self.runner.step)) if self.terms else 0

    @property
    def factors(self) -> dict[str, float]:
        """The current weights by term; empty before the terms are known."""
        weights = self.runner.arrays()["weight"].tolist() if self.terms else ()
        return dict(zip(self.terms, weights, strict=True))

    def result(self) -> Tensor:
        """Returns the current weights: `(terms,)`."""
        return ops.copy(self.runner.state)[0]

    def start(self, is_new_epoch: bool = False) -> None:
        """Lets the rule update the weights."""
        self.runner.start(is_new_epoch)

    def stop(self) -> None:
        """Stops the rule from updating the weights."""
        self.runner.stop()

    def reset_state(self) -> None:
        """Stops the rule, as Keras resets metrics before an evaluation. Keeps weights and state."""
        if self.clock is None or not self.clock.outlasts_reset():
            self.stop()

    def begin_anew(self) -> None:
        """Forgets what the rule has learned about its terms."""
        self.runner.begin_anew()

    def pop_invalid_counts(self) -> dict[str, int]:
        """Returns and clears the counts of unusable losses of the terms that had the first ones."""
        state = self.runner.arrays()
        # Values that are not finite spread to the other terms in later steps.
        counts = state["unusable"] * (state["culprit"] == state["culprit"].max())
        if not counts.any():
            return {}
        self.runner.clear("unusable", "culprit")
        return {term: int(n) for term, n in zip(self.terms, counts, strict=True) if n}

    def save_own_variables(self, store: Any) -> None:
        """Saves what the rule has learned in a weights file of the model."""
        save_progress(self, store)

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` saved, if anything."""
        load_or_undo(self, store, partial(load_progress, self), partial(restore_progress, self))
