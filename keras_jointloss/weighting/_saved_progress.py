"""Saves what a rule has learned about its terms, and reads it from a weights file or a config."""

import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_jointloss._core.saved_state import SavedState
from keras_jointloss.weighting._by_term import deserialize_by_term, serialize_by_term
from keras_jointloss.weighting._step import NONNEGATIVE


def save_progress(rule: Any, store: Any) -> None:
    """Puts what a rule has learned into the store of a weights file, once its terms are known."""
    if rule.terms:
        store["terms"] = _to_text(rule.terms)
        store["rule"] = _to_text(_description(rule, rule.runner.names))
        for name, value in rule.runner.save().items():
            store[name] = value


def load_progress(rule: Any, store: Any) -> None:
    """Loads what `save_progress` has put into a store.

    Raises:
        ValueError: If it is not that of this rule, or a number cannot be one of it.
    """
    state = SavedState(store, type(rule).__name__)
    if "state" in state:
        _load(rule, *_read(rule, state, _from_text(state.get("terms"))))
    elif rule.step:
        warnings.warn(
            f"The file has no state of {type(rule).__name__}, which keeps its own, of "
            f"{rule.step} steps. It does not belong to the weights of the file.",
            stacklevel=2,
        )


def restore_progress(rule: Any, before: Mapping[str, Any]) -> None:
    """Loads what `save_progress` returned before a file that does not fit was loaded."""
    if before:
        load_progress(rule, before)
    else:
        # The terms are those of the file, which need not be those of the model.
        rule.runner.forget_terms()


def progress_config(rule: Any) -> dict[str, Any]:
    """Returns the part of the config of a rule that depends on its terms."""
    config: dict[str, Any] = {name: serialize_by_term(getattr(rule, name)) for name in rule.by_term}
    if rule.output_terms:
        config["output_terms"] = list(rule.output_terms)
    if rule.terms:
        learned = {name: value.tolist() for name, value in rule.runner.save().items()}
        config["progress"] = {"terms": list(rule.terms), **learned}
    return config


def rule_from_config(cls: Any, config: Mapping[str, Any]) -> Any:
    """Returns the rule of a class from its config.

    Raises:
        ValueError: If what the rule has learned does not fit it.
    """
    config = dict(config)
    progress, outputs = config.pop("progress", None), config.pop("output_terms", None)
    for name in cls.by_term:
        if name in config:
            config[name] = deserialize_by_term(config[name])
    rule = cls(**config)
    if progress is not None:
        state = SavedState(progress, f"{cls.__name__}, the argument `progress`")
        _load(rule, *_read(rule, state, state.get("terms")))
    if outputs is not None:
        state = SavedState({"output_terms": outputs}, cls.__name__)
        rule.output_terms = _read_terms(state, "output_terms", outputs)
    return rule


def _load(rule: Any, terms: tuple[str, ...], learned: Mapping[str, Any]) -> None:
    rule.runner.know_terms(terms)
    rule.runner.load(learned)


def _read(rule: Any, state: SavedState, terms: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Returns the names of the terms in a saved state, and what the rule has learned about them."""
    terms = _read_terms(state, "terms", terms)
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
    return terms, {"state": values, **counts}


def _read_terms(state: SavedState, name: str, terms: Any) -> tuple[str, ...]:
    """Returns the names of terms, which are called `name` in the saved state."""
    is_list = isinstance(terms, list) and all(isinstance(term, str) for term in terms)
    if not is_list or not terms or len(set(terms)) < len(terms):
        raise state.error(name, "a non-empty list of distinct names", f"{name}={terms!r}")
    return tuple(terms)


def _description(rule: Any, names: Any) -> str:
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
