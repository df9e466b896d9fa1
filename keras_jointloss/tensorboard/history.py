"""Reads what `fit` returned into the arrays that event files hold."""

import re
from collections.abc import Collection
from typing import Any

import numpy as np

from keras_jointloss._core.validation import invalid
from keras_jointloss.tensorboard.runs import (
    OTHER,
    SPLITS,
    Run,
    Series,
    is_rounding,
    layer_of_log,
    share,
)

_RETRIEVAL = re.compile(r"(?P<name>.+)_(?P<way>a_to_b|b_to_a)_(?P<key>.+)", re.DOTALL)
#: How the figures of retrieval are called, after their direction.
_FIGURES = ("recall_at", "mean_reciprocal", "median_rank", "ndcg_at", "mean_average")
_GRADIENT = re.compile(r"gradients_(?:(?P<name>.+)_)?(?P<key>norm|coefficient|cosine|conflict)")


def from_history(history: Any, name: str) -> Run:
    """Returns the values of a `History`, or of its `history` dict, by the tags of event files."""
    logs = getattr(history, "history", history)
    length = max((len(values) for values in logs.values()), default=0)
    epochs = np.array(getattr(history, "epoch", None) or range(length), "int64") + 1
    steps_per_epoch = (getattr(history, "params", None) or {}).get("steps") or 1
    terms = sorted(find_term_names(logs), key=len, reverse=True)  # The longest first.
    sets = {match["name"] for match in map(_RETRIEVAL.fullmatch, logs) if match}
    splits: dict[str, dict[str, Series]] = {split: {} for split in SPLITS}
    has_validation = any(key.startswith("val_") for key in logs)
    for key, values in logs.items():
        split, tag = _locate(key, terms, sets)
        if tag == _SCORE and has_validation:  # It has no prefix.
            split = "validation"
        numbers = np.array([float(x) for x in values], "float64")
        steps = _epochs_of(epochs, len(numbers)) * steps_per_epoch
        series = Series(steps, np.full(len(numbers), np.nan), numbers)
        # Event files have no point where a gradient is unknown.
        is_gradient = tag.startswith("gradients/")
        splits[split][tag] = series.at(~np.isnan(numbers)) if is_gradient else series
    for tags in splits.values():
        _add_weighted(tags, terms)
    if not any(
        tag.startswith(("joint_loss/", "gradients/", "retrieval/")) and tag != _TOTAL
        for tags in splits.values()
        for tag in tags
    ):
        expected = "what `fit` returned with a callback of `keras_jointloss.callbacks`"
        raise invalid("source", expected, received=f"a history with {sorted(logs)}")
    ends = Series(epochs * steps_per_epoch, np.full(len(epochs), np.nan), epochs.astype("float64"))
    return Run(name, splits["train"], splits["validation"], epochs=ends)


_TOTAL, _SCORE = "joint_loss/total", "joint_loss/score"
#: The tags of values of the whole model by their names in the logs.
_OF_MODEL = {"loss": _TOTAL, "joint_loss": "joint_loss/fixed_total", "joint_score": _SCORE}


def find_term_names(logs: Collection[str]) -> list[str]:
    """Returns the names of the terms: of what has a weight and a share in the logs."""
    names = [key.removesuffix("_weight") for key in logs if key.endswith("_weight")]
    names = [name for name in names if f"{name}_share" in logs]
    # Without the prefix of validation.
    return [x for x in names if not (x.startswith("val_") and x.removeprefix("val_") in names)]


def _locate(key: str, terms: list[str], sets: set[str]) -> tuple[str, str]:
    """Returns the split and the tag of a value in the logs."""
    # Retrieval is measured on held-out data, and has no prefix.
    for name in sorted(sets, key=len, reverse=True):
        figure = key.removeprefix(f"{name}_")
        kind = figure.removeprefix("a_to_b_").removeprefix("b_to_a_")
        if figure != key and kind.startswith(_FIGURES):
            return "validation", f"retrieval/{name}/{figure}"
    match = _GRADIENT.fullmatch(key)
    if match:
        return "train", "/".join(filter(None, ["gradients", match["name"], match["key"]]))
    split, rest = ("train", key)
    if key.startswith("val_") and not any(key.startswith(f"{term}_") for term in terms):
        split, rest = "validation", key.removeprefix("val_")
    if rest in _OF_MODEL:
        return split, _OF_MODEL[rest]
    part = layer_of_log(rest, terms)
    if part is not None:
        return split, f"joint_loss/{part}/weighted"
    term = next((term for term in terms if rest.startswith(f"{term}_")), None)
    if term is None:
        return split, rest
    value = rest.removeprefix(f"{term}_")
    return split, f"joint_loss/{term}/{'raw' if value == 'loss' else value}"


def _epochs_of(epochs: np.ndarray, count: int) -> np.ndarray:
    """Returns the epochs of `count` values, which may not be there for every epoch."""
    for every in range(1, len(epochs) + 1):
        found = epochs[epochs % every == 0]
        if len(found) == count:
            return found
    return epochs[:count]


def _add_weighted(tags: dict[str, Series], terms: list[str]) -> None:
    """Adds the weighted losses, which follow from the shares, and what no term has."""
    total = tags.get(_TOTAL)
    parts = []
    for term in terms:
        part = tags.get(f"joint_loss/{term}/share")
        if total is not None and part is not None and len(part.values) == len(total.values):
            with np.errstate(invalid="ignore"):  # An infinite loss has no share.
                values = part.values * total.values
            tags[f"joint_loss/{term}/weighted"] = Series(*total[:2], values)
            parts.append(values)
    if total is None or not parts:
        return
    weighted = [x for x in tags if x.startswith(f"joint_loss/{OTHER}/") and x.endswith("/weighted")]
    for tag in weighted:
        part = tags[tag]
        if len(part.values) == len(total.values):
            of_part = [share(*pair) for pair in zip(part.values, total.values, strict=True)]
            name = tag.removesuffix("weighted")
            tags[f"{name}share"] = Series(*total[:2], np.array(of_part))
    computed = np.where(np.isnan(parts), 0.0, parts)
    with np.errstate(invalid="ignore"):
        other = total.values - np.sum(computed, axis=0)
    pairs = [*zip(other, total.values, strict=True)]
    if not all(
        np.isnan(pair[0]) or is_rounding(*pair, own)
        for pair, own in zip(pairs, computed.T, strict=True)
    ):
        tags["joint_loss/other"] = Series(*total[:2], other)
        shares = np.array([share(*pair) for pair in pairs])
        tags["joint_loss/other/share"] = Series(*total[:2], shares)
