"""The logged values of a training: arrays by tag, for figures and tables."""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

#: What an `x` axis can show.
AXES = ("step", "epoch", "time")
#: The two parts of a run.
SPLITS = ("train", "validation")
#: The loss that layers and regularizers add without being a term.
OTHER = "other"
#: Words in the name of a value of which a larger one is better.
_LARGER = frozenset(
    {
        *("acc", "accuracy", "auc", "f1", "fbeta", "gap", "iou", "ndcg", "precision", "r2"),
        *("recall", "reciprocal", "score"),
    }
)
#: Rounding of the means may make the parts of a total differ from it by this share.
_ROUNDING = 1e-4
_TERM_TAG = re.compile(r"joint_loss/(?P<term>.+)/(?P<key>[^/]+)", re.DOTALL)


class Series(NamedTuple):
    """The values of a tag.

    Attributes:
        steps: `(points,)`, int64.
        wall_times: `(points,)`, float64: seconds since 1970; NaN if unknown.
        values: `(points,)`, float64.

    Example:

    >>> loss = Series(np.array([10, 20]), np.array([0.0, 1.5]), np.array([0.9, 0.7]))
    >>> loss.at(loss.steps > 10).values
    array([0.7])
    """

    steps: np.ndarray
    wall_times: np.ndarray
    values: np.ndarray

    def at(self, index: np.ndarray) -> "Series":
        """Returns the points of an index or a mask."""
        return Series(*(array[index] for array in self))

    def without_restarts(self) -> "Series":
        """Returns the points with ascending steps.

        If the steps go back, as in a second `fit` with the same folder, the later points replace
        the earlier ones of these steps.
        """
        # A point stays if every later one has a larger step.
        later = np.minimum.accumulate(self.steps[::-1])[::-1]
        keep = np.append(self.steps[:-1] < later[1:], True)[: len(self.steps)]
        return self if keep.all() else self.at(keep)


@dataclass(frozen=True)
class Run:
    """The values that one training logged."""

    name: str
    #: The values of training by tag, as `JointLossCallback` names them.
    train: Mapping[str, Series] = field(default_factory=dict)
    #: The values of validation by tag.
    validation: Mapping[str, Series] = field(default_factory=dict)
    #: The number of finished epochs over the step, or `None` if unknown.
    epochs: Series | None = None
    #: By term, the weight of the schedule over the steps of the whole training.
    schedules: Mapping[str, Series] = field(default_factory=dict)
    end: int | None = None  # The step at which training is to end, or `None` if unknown

    def split(self, name: str) -> Mapping[str, Series]:
        """Returns the values of `"train"` or `"validation"` by tag."""
        return self.train if name == "train" else self.validation

    def positions(self, series: Series, axis: str) -> np.ndarray:
        """Returns where the points of a series are on an axis: `(points,)`.

        The axis is `"step"`, `"epoch"`, or `"time"` for the minutes since the start.
        """
        if axis == "step":
            return series.steps
        if axis == "epoch":
            if self.epochs is None or not len(self.epochs.steps):
                raise ValueError(f"The run {self.name!r} has no epochs. Choose another `x`.")
            return _interpolate(series.steps, self.epochs)
        # The values of a step are written together: one series of each split is enough.
        firsts = [next(iter(self.split(split).values()), None) for split in SPLITS]
        starts = [x.wall_times[0] for x in firsts if x is not None and len(x.wall_times)]
        start = min(starts, default=np.nan)
        if np.isnan(start):
            raise ValueError(f"The run {self.name!r} has no wall times. Choose another `x`.")
        return (series.wall_times - start) / 60


def _interpolate(steps: np.ndarray, epochs: Series) -> np.ndarray:
    """Returns the epochs at steps, which may lie beyond the last epoch that has ended."""
    at, values = epochs.steps.astype("float64"), epochs.values
    if len(at) > 1:
        slope = (values[-1] - values[-2]) / (at[-1] - at[-2])
        at, values = np.append(at, 2 * at[-1] + 1), np.append(values, values[-1])
        values[-1] += slope * (at[-1] - at[-2])
    return np.interp(steps, at, values)


def term_tag(term: str, key: str) -> str:
    """Returns the tag of a value of a term. `other` has its weighted loss in a tag of its own."""
    if term == OTHER and key == "weighted":
        return f"joint_loss/{OTHER}"
    return f"joint_loss/{term}/{key}"


def find_terms(runs: Iterable[Run]) -> list[str]:
    """Returns the names of all terms, sorted, without `other`."""
    tags = {tag for run in runs for split in SPLITS for tag in run.split(split)}
    return sorted({name for name, key in term_values(tags) if key in ("weight", "raw")})


def find_others(runs: Iterable[Run]) -> list[str]:
    """Returns the names of the parts of `other`, `"other/<layer>"`, sorted."""
    tags = {tag for run in runs for split in SPLITS for tag in run.split(split)}
    names = {name for name, key in term_values(tags) if key == "weighted"}
    return sorted({x for x in names if x.startswith(f"{OTHER}/")} - {*find_terms(runs)})


def layer_of_log(key: str, terms: Collection[str]) -> str | None:
    """Returns `"other/<layer>"` for the name of its loss in the logs, or `None` for other names.

    The terms of the model have names of their own.
    """
    name = key.removesuffix("_loss")
    is_part = key.startswith(f"{OTHER}/") and key != name and name not in terms
    return name if is_part else None


def find_kinds(run: Run) -> list[str]:
    """Returns the kinds of figures that have something to show of a run, without `"pareto"`.

    The names of the tags decide, without their values.
    """
    tags = {*run.train, *run.validation}
    keys = {key for _, key in term_values(tags)}
    holds = {
        "terms": "joint_loss/total" in tags and "weighted" in keys,
        "losses": "raw" in keys,
        "weights": "weight" in keys,
        "readings": bool(find_keys([run], find_terms([run]))),
        "gradients": bool(find_gradients([run])),
        "cosines": bool(find_pairs(run.train)),
        "retrieval": any(x.startswith("retrieval/") and "_recall_at_" in x for x in run.validation),
    }
    return [kind for kind, is_there in holds.items() if is_there]


def find_keys(runs: Iterable[Run], terms: Iterable[str]) -> list[str]:
    """Returns the names of the readings of terms beyond losses, weights and shares, sorted."""
    tags = {tag for run in runs for split in SPLITS for tag in run.split(split)}
    own, terms = {"raw", "weight", "weighted", "share"}, set(terms)
    return sorted({key for name, key in term_values(tags) if name in terms and key not in own})


def term_values(tags: Iterable[str]) -> list[tuple[str, str]]:
    """Returns the name of the term and of its value for each tag of a term."""
    matches = (_TERM_TAG.fullmatch(tag) for tag in tags)
    return [(match["term"], match["key"]) for match in matches if match]


def find_pairs(tags: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Returns the names of the two terms of each pair of gradients, by the prefix of its tags.

    The names are those before `/norm`. A term may have `~` or `/` in its name.
    """
    tags = list(tags)
    norms = {_gradient(tag) for tag in tags if tag.endswith("/norm")}
    pairs = {}
    for pair in sorted({_gradient(tag) for tag in tags if tag.endswith("/cosine")}):
        for at in (match.start() for match in re.finditer("~", pair)):
            left, right = pair[:at], pair[at + 1 :]
            if left not in norms:
                continue
            # With several layers, the name of the layer stands only before the first term.
            ends = [0, *(match.end() for match in re.finditer("[/_]", left))]
            found = next((left[:i] + right for i in ends if left[:i] + right in norms), None)
            if found is not None:
                pairs[f"gradients/{pair}"] = left, found
                break
    return pairs


def find_gradients(runs: Iterable[Run]) -> list[str]:
    """Returns the names that gradients have, sorted."""
    tags = {tag for run in runs for tag in run.train}
    found = (tag for tag in tags if tag.startswith("gradients/") and tag.endswith("/norm"))
    return sorted({_gradient(tag) for tag in found})


def _gradient(tag: str) -> str:
    return tag.removeprefix("gradients/").rpartition("/")[0]


def is_larger_better(name: str) -> bool:
    """Returns whether the name of a logged value says that a larger one is better.

    Example:

    >>> is_larger_better("val_label_accuracy"), is_larger_better("val_label_loss")
    (True, False)
    """
    words = re.split(r"[_/\W]+", name.lower())
    return words[-1] != "loss" and bool(_LARGER & set(words))


def share(part: float, total: float) -> float:
    """Returns the share of a part in a total; NaN if the total is 0."""
    return part / total if total else math.nan


def rest(total: float, parts: list[float]) -> float:
    """Returns what remains of a total without these parts."""
    return total - sum(parts)


def is_rounding(remainder: float, total: float, parts: list[float]) -> bool:
    """Returns whether what remains of a total may come from rounding alone."""
    return abs(remainder) <= _ROUNDING * max(abs(total), *(abs(part) for part in parts), 0.0)
