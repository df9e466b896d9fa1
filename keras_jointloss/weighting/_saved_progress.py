"""Saves what a rule has learned about its terms, and reads it from a weights file or a config."""

import json
import math
from typing import Any

import numpy as np

from keras_jointloss._core.saved_state import SavedState
from keras_jointloss.weighting import _step


def save_progress(rule: Any, store: Any) -> None:
    """Puts the progress of a rule into the store of a weights file."""
    store["terms"] = _to_text(rule.terms)
    store["rule"] = _to_text(_description(rule, rule.progress.names))
    for name, value in rule.progress.save().items():
        store[name] = value


def progress_config(rule: Any) -> dict[str, Any]:
    """Returns the progress of a rule for a config."""
    progress = {name: value.tolist() for name, value in rule.progress.save().items()}
    return {"terms": list(rule.terms), **progress}


def read_progress(
    rule: Any, state: SavedState, is_config: bool = False
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Returns the terms of a saved progress, and its state, step and epoch.

    Args:
        rule: The `keras_jointloss.weighting.Weighting`, which may not know its terms.
        state: From `save_progress` or `progress_config`.
        is_config: Whether it is from the latter.

    Raises:
        ValueError: If it is not that of this rule, or a number cannot be one of it.
    """
    found = state.get("terms") if is_config else _from_text(state.get("terms"))
    terms = read_terms(state, "terms", found)
    # Before the rule is bound, only the output terms are known; those of layers follow.
    known = rule.terms or rule.output_terms
    if (terms if rule.terms else terms[: len(known)]) != known:
        raise ValueError(
            f"{type(rule).__name__} is the weighting of the {'' if rule.terms else 'output '}terms "
            f"{list(known)}; to leave it as it is, load with `skip_mismatch=True`. "
            f"Received: the state of the terms {list(terms)}"
        )
    initial = rule.initial(len(terms))
    own, other = _description(rule, initial), _from_text(state.get("rule"))
    if other not in (None, own):  # Files of earlier versions do not describe the rule.
        expected = f"that of {own}; to leave the rule as it is, load with `skip_mismatch=True`"
        raise state.error("state", expected, f"that of {other}")
    nonnegative = {*_step.NONNEGATIVE, *rule.nonnegative_state}
    minimum = [[0.0 if name in nonnegative else -math.inf] for name in initial]
    # Infinity stands for what the rule has not seen yet.
    may_be_infinite = np.array([[np.max(x) == math.inf] for x in initial.values()])
    values = state.array(
        "state", (len(initial), len(terms)), minimum, may_be_infinite=may_be_infinite
    )
    counts = {name: state.count(name) for name in ("step", "epoch")}
    return terms, {"state": values, **counts}


def read_terms(state: SavedState, name: str, terms: Any) -> tuple[str, ...]:
    """Returns the names of terms.

    Args:
        state: Where they are from, for the message.
        name: What they are called there.
        terms: The value.

    Raises:
        ValueError: If it is not a list of names.
    """
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
