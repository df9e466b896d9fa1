"""Reads what `fit` returned into the arrays that event files hold."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from keras_jointloss.tensorboard.runs import SPLITS, Run, Series

_RETRIEVAL = re.compile(r"(?P<name>.+)_(?P<way>a_to_b|b_to_a)_(?P<key>.+)", re.DOTALL)
_GRADIENT = re.compile(r"gradients_(?:(?P<name>.+)_)?(?P<key>norm|coefficient|cosine|conflict)")


def from_history(history: Any, name: str) -> Run:
    """Returns the values of a `History`, or of its `history` dict, by the tags of event files.

    Raises:
        ValueError: If no value is that of a term, of a gradient or of `RetrievalEvaluation`.
    """
    logs = getattr(history, "history", history)
    length = max((len(values) for values in logs.values()), default=0)
    epochs = np.array(getattr(history, "epoch", None) or range(length), "int64") + 1
    steps_per_epoch = (getattr(history, "params", None) or {}).get("steps") or 1
    terms = _terms(logs)
    sets = {match["name"] for match in map(_RETRIEVAL.fullmatch, logs) if match}
    splits: dict[str, dict[str, Series]] = {split: {} for split in SPLITS}
    for key, values in logs.items():
        split, tag = _locate(key, terms, sets)
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
        raise ValueError(
            "Invalid value for argument `source`. Expected what `fit` returned with a callback of "
            f"`keras_jointloss.callbacks`. Received: a history with {sorted(logs)}"
        )
    ends = Series(epochs * steps_per_epoch, np.full(len(epochs), np.nan), epochs.astype("float64"))
    return Run(name, splits["train"], splits["validation"], epochs=ends)


_TOTAL = "joint_loss/total"


def _terms(logs: Mapping[str, Any]) -> list[str]:
    """Returns the names of the terms, the longest first."""
    names = [key.removesuffix("_weight") for key in logs if key.endswith("_weight")]
    names = [name for name in names if f"{name}_share" in logs]
    own = [x for x in names if not (x.startswith("val_") and x.removeprefix("val_") in names)]
    return sorted(own, key=len, reverse=True)


def _locate(key: str, terms: list[str], sets: set[str]) -> tuple[str, str]:
    """Returns the split and the tag of a value in the logs."""
    # Retrieval is measured on held-out data, and has no prefix.
    for name in sorted(sets, key=len, reverse=True):
        if key.startswith(f"{name}_") and _is_retrieval(key.removeprefix(f"{name}_")):
            return "validation", f"retrieval/{name}/{key.removeprefix(f'{name}_')}"
    match = _GRADIENT.fullmatch(key)
    if match:
        return "train", "/".join(filter(None, ["gradients", match["name"], match["key"]]))
    split, rest = ("train", key)
    if key.startswith("val_") and not any(key.startswith(f"{term}_") for term in terms):
        split, rest = "validation", key.removeprefix("val_")
    if rest in ("loss", "joint_loss"):
        return split, _TOTAL if rest == "loss" else "joint_loss/fixed_total"
    term = next((term for term in terms if rest.startswith(f"{term}_")), None)
    if term is None:
        return split, rest
    value = rest.removeprefix(f"{term}_")
    return split, f"joint_loss/{term}/{'raw' if value == 'loss' else value}"


def _is_retrieval(key: str) -> bool:
    words = ("recall_at", "mean_reciprocal", "median_rank", "ndcg_at", "mean_average")
    return key.removeprefix("a_to_b_").removeprefix("b_to_a_").startswith(words)


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
        share = tags.get(f"joint_loss/{term}/share")
        if total is not None and share is not None and len(share.values) == len(total.values):
            values = share.values * total.values
            tags[f"joint_loss/{term}/weighted"] = Series(total.steps, total.wall_times, values)
            parts.append(values)
    if total is None or not parts:
        return
    computed = np.where(np.isnan(parts), 0.0, parts)
    other = total.values - np.sum(computed, axis=0)
    size = np.abs([total.values, *computed]).max(axis=0)
    if np.any(np.abs(other) > 1e-4 * size):  # Not from rounding alone.
        tags["joint_loss/other"] = Series(total.steps, total.wall_times, other)
        with np.errstate(divide="ignore", invalid="ignore"):
            tags["joint_loss/other/share"] = Series(
                total.steps, total.wall_times, other / total.values
            )
