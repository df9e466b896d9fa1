"""The Keras side of a rule: a metric, whose variables the model tracks, resets and saves."""

import json
import math
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar, Self

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.math import to_numpy
from keras_jointloss._core.saved_state import SavedState, load_or_undo
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import validate_name
from keras_jointloss.weighting._by_term import deserialize_by_term, serialize_by_term
from keras_jointloss.weighting._runner import Runner
from keras_jointloss.weighting._step import NONNEGATIVE


class RuleMetric(keras.metrics.Metric):
    """Base class of `keras_jointloss.weighting.Weighting`, which adds options and formulas.

    Weights files and configs hold what the rule has learned about its terms.

    Args:
        name: Name of the metric; `None` for `"weighting"`.
        dtype: The dtype of weights and state.
    """

    # `Weighting` says what these are.
    nonnegative_state: ClassVar[frozenset[str]]
    by_term: ClassVar[Mapping[str, bool]]

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
        """Saves what the rule has learned in a weights file of the model, once it knows terms."""
        if self.terms:
            store["terms"] = _to_text(self.terms)
            store["rule"] = _to_text(_description(self, self.runner.names))
            for name, value in self.runner.save().items():
                store[name] = value

    def load_own_variables(self, store: Any) -> None:
        """Loads what `save_own_variables` saved, if anything.

        Raises:
            ValueError: If it is not that of this rule, or a number cannot be one of it.
        """
        load_or_undo(self, store, partial(_load, self), partial(_restore, self))

    def get_config(self) -> Config:
        config = super().get_config()
        config.update({name: serialize_by_term(getattr(self, name)) for name in self.by_term})
        if self.output_terms:
            config["output_terms"] = list(self.output_terms)
        if self.terms:
            learned = {name: value.tolist() for name, value in self.runner.save().items()}
            config["progress"] = {"terms": list(self.terms), **learned}
        return config

    @classmethod
    def from_config(cls, config: Config) -> Self:
        config = dict(config)
        progress, outputs = config.pop("progress", None), config.pop("output_terms", None)
        for name in cls.by_term:
            if name in config:
                config[name] = deserialize_by_term(config[name])
        rule = cls(**config)
        if progress is not None:
            state = SavedState(progress, f"{cls.__name__}, the argument `progress`")
            _learn(rule, state, state.get("terms"))
        if outputs is not None:
            state = SavedState({"output_terms": outputs}, cls.__name__)
            rule.output_terms = _read_terms(state, "output_terms", outputs)
        return rule


def _load(rule: RuleMetric, store: Any) -> None:
    state = SavedState(store, type(rule).__name__)
    if "state" in state:
        _learn(rule, state, _from_text(state.get("terms")))
    elif rule.step:
        warnings.warn(
            f"The file has no state of {type(rule).__name__}, which keeps its own, of "
            f"{rule.step} steps. It does not belong to the weights of the file.",
            stacklevel=2,
        )


def _restore(rule: RuleMetric, before: Mapping[str, Any]) -> None:
    """Loads what `save_own_variables` saved before a file that does not fit was loaded."""
    if before:
        _load(rule, before)
    else:
        # The terms are those of the file, which need not be those of the model.
        rule.runner.forget_terms()


def _learn(rule: RuleMetric, state: SavedState, terms: Any) -> None:
    """Sets what a rule has learned to a saved state, in which the terms have these names."""
    terms = _read_terms(state, "terms", terms)
    learned = _read(rule, state, terms)
    rule.runner.know_terms(terms)
    rule.runner.load(learned)


def _read(rule: RuleMetric, state: SavedState, terms: tuple[str, ...]) -> dict[str, Any]:
    """Returns what a rule has learned about the terms in a saved state."""
    # Before the rule is bound, only the output terms are known; those of layers follow.
    known = rule.terms or rule.output_terms
    if (terms if rule.terms else terms[: len(known)]) != known:
        raise ValueError(
            f"{type(rule).__name__} is the weighting of the {'' if rule.terms else 'output '}terms "
            f"{list(known)}; to leave it as it is, load with `skip_mismatch=True`. "
            f"Received: the state of the terms {list(terms)}"
        )
    initial = rule.runner.initial(len(terms))
    own, other = _description(rule, initial), _from_text(state.get("rule"))
    if other not in (None, own):  # Files of earlier versions do not describe the rule.
        expected = f"that of {own}; to leave the rule as it is, load with `skip_mismatch=True`"
        raise state.error("state", expected, f"that of {other}")
    nonnegative = {*NONNEGATIVE, *rule.nonnegative_state}
    minimum = [[0.0 if name in nonnegative else -math.inf] for name in initial]
    # Infinity stands for what the rule has not seen yet.
    may_be_infinite = np.array([[np.max(x) == math.inf] for x in initial.values()])
    values = state.array(
        "state", (len(initial), len(terms)), minimum, may_be_infinite=may_be_infinite
    )
    counts = {name: state.count(name) for name in ("step", "epoch")}
    return {"state": values, **counts}


def _read_terms(state: SavedState, name: str, terms: Any) -> tuple[str, ...]:
    """Returns the names of terms, which are called `name` in the saved state."""
    is_list = isinstance(terms, list) and all(isinstance(term, str) for term in terms)
    if not is_list or not terms or len(set(terms)) < len(terms):
        raise state.error(name, "a non-empty list of distinct names", f"{name}={terms!r}")
    return tuple(terms)


def _description(rule: RuleMetric, names: Any) -> str:
    """Returns the name of a rule and those of its state."""
    return f"{type(rule).__name__} ({', '.join(names)})"


def _to_text(value: Any) -> np.ndarray:
    """Returns a JSON value in a form that the store of a weights file holds."""
    return np.frombuffer(json.dumps(value).encode(), "uint8")


def _from_text(value: Any) -> Any:
    """Returns the JSON value from `_to_text`, or `None` if it is none."""
    try:
        return None if value is None else json.loads(np.array(value).tobytes())
    except ValueError:
        return None
