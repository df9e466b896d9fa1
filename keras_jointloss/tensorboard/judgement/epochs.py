"""The values of a training by epoch, on which the rules look."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from keras_jointloss.tensorboard.runs import (
    SPLITS,
    Run,
    Series,
    find_pairs,
    find_terms,
    term_tag,
)

#: Logs without epochs are divided into this many parts at most.
_PARTS = 50


class TermEpochs(NamedTuple):
    """The values of a term by epoch, each `(epochs,)`; NaN if unknown.

    Attributes:
        loss: The mean loss, unweighted.
        weight: The weight at the end of the epoch.
        weighted: The mean of weight times loss.
        norm: The mean length of the gradient of the weighted loss.
    """

    loss: np.ndarray
    weight: np.ndarray
    weighted: np.ndarray
    norm: np.ndarray


@dataclass(frozen=True)
class Epochs:
    """The values of a training by epoch. Arrays are `(epochs,)`; NaN stands for unknown."""

    #: The numbers of the epochs from 1, or the last training step of each part.
    numbers: np.ndarray
    #: `"epoch"`, or `"step"` if the logs have no epochs.
    unit: str
    #: The last training step of each epoch.
    steps: np.ndarray
    #: The number of training steps of each epoch.
    sizes: np.ndarray
    train: Mapping[str, TermEpochs]
    total: np.ndarray
    #: Whether the total of the model was not finite at some point of the epoch.
    is_broken: np.ndarray
    validation: Mapping[str, TermEpochs] = field(default_factory=dict)
    #: By pair of terms, the mean cosine and the share of steps in conflict.
    pairs: Mapping[tuple[str, str], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    #: The weights of schedules at the ends of the epochs.
    schedules: Mapping[str, np.ndarray] = field(default_factory=dict)
    #: By term, the largest weight of its schedule in the whole training.
    planned: Mapping[str, float] = field(default_factory=dict)
    learning_rate: np.ndarray | None = None
    #: Terms whose loss may stand still on purpose.
    may_be_constant: frozenset[str] = frozenset()
    #: Whether the training began here; else it was resumed, as far as is known.
    is_from_start: bool = True

    def __len__(self) -> int:
        return len(self.numbers)

    def when(self, index: int) -> str:
        """Returns the words for an epoch: `"epoch 3"`."""
        return f"{self.unit} {self.numbers[index]}"

    @functools.cached_property
    def shares(self) -> dict[str, np.ndarray]:
        """The absolute share of each term in the sum of all terms; NaN if unknown."""
        sizes = {name: np.abs(x.weighted) for name, x in self.train.items()}
        if not sizes:
            return {}
        total = np.sum([np.where(np.isnan(x), 0.0, x) for x in sizes.values()], axis=0)
        with np.errstate(all="ignore"):
            return {name: x / np.where(total > 0, total, np.nan) for name, x in sizes.items()}


def epochs_of(run: Run, may_be_constant: frozenset[str] = frozenset()) -> Epochs:
    """Returns the values of a run by epoch; those after the last epoch that has ended are left out.

    The means of a part of an epoch count by its number of steps.
    """
    ends, numbers, unit = _ends(run)
    names = find_terms([run])
    splits = {}
    for split in SPLITS:
        tags = run.split(split)
        norms = _norms(tags, names)
        splits[split] = {
            name: _term(tags, name, norms.get(name, []), ends)
            for name in names
            if any(term_tag(name, key) in tags for key in ("raw", "weight"))
        }
    pairs = {}
    for prefix, pair in find_pairs(run.train).items():
        terms = tuple(_term_of(name, names) for name in pair)
        both = [run.train.get(f"{prefix}/{key}") for key in ("cosine", "conflict")]
        if len({*terms, None}) == 3 and both[0] is not None and both[1] is not None:
            pairs[terms] = tuple(_means(x, ends) for x in both)  # type: ignore[arg-type]
    total = run.train.get("joint_loss/total")
    rate = run.train.get("learning_rate", run.train.get("epoch_learning_rate"))
    return Epochs(
        numbers,
        unit,
        ends[1:],
        np.diff(ends),
        train=splits["train"],
        total=np.full(len(numbers), np.nan) if total is None else _means(total, ends),
        is_broken=_broken(total, ends),
        validation=splits["validation"],
        pairs=pairs,  # type: ignore[arg-type]
        schedules={
            name: np.interp(ends[1:], x.steps, x.values)
            for name, x in run.schedules.items()
            if len(x.steps)
        },
        planned={
            name: float(np.max(x.values)) for name, x in run.schedules.items() if len(x.steps)
        },
        learning_rate=None if rate is None else _last(rate, ends),
        may_be_constant=may_be_constant,
        is_from_start=unit == "step" or not len(numbers) or int(numbers[0]) == 1,
    )


def _ends(run: Run) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns the step before the first epoch and the last one of each, the numbers, the unit."""
    if run.epochs is not None and len(run.epochs.steps):
        epochs = run.epochs.without_restarts()
        steps, numbers = epochs.steps, epochs.values.round().astype("int64")
        before = steps[0] - (steps[1] - steps[0] if len(steps) > 1 else max(1, steps[0]))
        is_start = not any(
            np.any(x.steps <= steps[0])
            for split in SPLITS
            for tag, x in ((tag, run.split(split)[tag]) for tag in _totals(run.split(split)))
        )
        if is_start:  # The first point is where training began, not the end of an epoch.
            return steps, numbers[1:], "epoch"
        return np.concatenate([[before], steps]), numbers, "epoch"
    found = [run.train[tag].without_restarts().steps for tag in _totals(run.train)]
    steps = np.unique(np.concatenate(found)) if found else np.zeros(0, "int64")
    if not len(steps):
        return np.zeros(1, "int64"), steps, "step"
    at = np.unique(np.linspace(0, len(steps) - 1, _PARTS).round().astype("int64"))
    return np.concatenate([[min(0, steps[0] - 1)], steps[at]]), steps[at], "step"


def _totals(tags: Mapping[str, Series]) -> list[str]:
    """Returns the tags that have a point at the end of each epoch."""
    return [x for x in tags if x == "joint_loss/total" or x.endswith("/raw")]


def _norms(tags: Mapping[str, Series], terms: list[str]) -> dict[str | None, list[str]]:
    """Returns the tags of the lengths of gradients by the term that they belong to."""
    found: dict[str | None, list[str]] = {}
    for tag in tags:
        if tag.startswith("gradients/") and tag.endswith("/norm"):
            name = tag.removeprefix("gradients/").removesuffix("/norm")
            found.setdefault(_term_of(name, terms), []).append(tag)
    return found


def _term(tags: Mapping[str, Series], term: str, norms: list[str], ends: np.ndarray) -> TermEpochs:
    """Returns the values of a term in one split."""
    unknown = np.full(len(ends) - 1, np.nan)
    loss, weight, weighted = (tags.get(term_tag(term, x)) for x in ("raw", "weight", "weighted"))
    # Where several layers report the term, which of them counts is not known.
    norm = tags[norms[0]] if len(norms) == 1 else None
    return TermEpochs(
        loss=unknown if loss is None else _means(loss, ends),
        weight=unknown if weight is None else _last(weight, ends),
        weighted=unknown if weighted is None else _means(weighted, ends),
        norm=unknown if norm is None else _means(norm, ends),
    )


def _term_of(name: str, terms: list[str]) -> str | None:
    """Returns the term that a gradient belongs to; several layers put their name before it."""
    own = [x for x in terms if name == x or name.endswith((f"/{x}", f"_{x}"))]
    return max(own, key=len, default=None)


def _means(series: Series, ends: np.ndarray) -> np.ndarray:
    """Returns the mean of the points of each epoch, by the number of steps that each stands for."""
    steps, _, values = series.without_restarts()
    epochs, is_known = _places(steps, ends)
    # A point stands for the steps since the one before, or since the start of the epoch.
    starts = np.maximum(ends[epochs], np.append(ends[:1], steps[:-1])[is_known])
    sizes, count = steps[is_known] - starts, len(ends) - 1
    with np.errstate(all="ignore"):
        total = np.bincount(epochs, sizes * values[is_known], count)
        return total / np.bincount(epochs, sizes, count)


def _places(steps: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the epochs that steps are in, of those in any, and which are."""
    epochs = np.searchsorted(ends, steps, side="left") - 1
    is_known = (epochs >= 0) & (epochs < len(ends) - 1)
    return epochs[is_known], is_known


def _broken(total: Series | None, ends: np.ndarray) -> np.ndarray:
    """Returns the epochs in which a point of the total is not finite."""
    result = np.zeros(len(ends) - 1, "bool")
    if total is not None:
        result[_places(total.steps[~np.isfinite(total.values)], ends)[0]] = True
    return result


def _last(series: Series, ends: np.ndarray) -> np.ndarray:
    """Returns the last value of each epoch."""
    series = series.without_restarts()
    result = np.full(len(ends) - 1, np.nan)
    epochs, is_known = _places(series.steps, ends)
    result[epochs] = series.values[is_known]  # The last one stays.
    return result
