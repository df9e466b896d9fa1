"""The table of what each term contributed to the loss."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import keras

from keras_jointloss._core.validation import invalid
from keras_jointloss.tensorboard.history import find_term_names
from keras_jointloss.tensorboard.runs import is_rounding, layer_of_log, rest, share

_COLUMNS = ("raw", "weight", "weighted", "share")


class Contribution(NamedTuple):
    """What a term contributed to the loss in an epoch.

    Attributes:
        raw: The mean loss, unweighted; NaN if the term was not computed.
        weight: The weight at the end of the epoch.
        weighted: The mean of weight times loss.
        share: `weighted` divided by the total.
    """

    raw: float
    weight: float
    weighted: float
    share: float


class RunReport(NamedTuple):
    """The contributions to the loss in training or validation.

    Attributes:
        terms: The contributions by the name of the term.
        total: The loss of the model.
        others: What each layer adds without being a term, by `"other/<layer>"`.
    """

    terms: Mapping[str, Contribution]
    total: float
    others: Mapping[str, float] = MappingProxyType({})

    @property
    def other(self) -> float | None:
        """The loss that layers and regularizers add without being a term; `None` if there is none.

        There is none if it is 0 within rounding.
        """
        weighted = [x.weighted for x in self.terms.values() if not math.isnan(x.weighted)]
        other = rest(self.total, weighted)
        is_none = math.isnan(other) or is_rounding(other, self.total, weighted)
        return None if is_none else other

    @property
    def unknown(self) -> float:
        """The part of `other` that no layer is known to add, if any is; 0 within rounding.

        Such as what a custom `train_step` adds.
        """
        if self.other is None or not self.others:
            return 0.0
        added = list(self.others.values())
        unknown = rest(self.other, added)
        is_none = math.isnan(unknown) or is_rounding(unknown, self.total, added)
        return 0.0 if is_none else unknown


class Report:
    """The contributions of the terms to the loss, as a table.

    `str` and `print` show it as text, notebooks as HTML.

    Args:
        runs: `RunReport` by the name of the run: `"train"`, `"validation"`.
    """

    def __init__(self, runs: Mapping[str, RunReport]):
        #: The numbers of the table by run.
        self.runs = dict(runs)

    def _rows(self) -> Iterator[tuple[str, list[list[str]]]]:
        """Yields the name of each row, and its cells for each run."""
        names = dict.fromkeys(name for run in self.runs.values() for name in run.terms)
        for name in names:
            found = [run.terms.get(name) for run in self.runs.values()]
            yield name, [[""] * 4 if x is None else _cells(*x) for x in found]
        others = [(run.other, run.total) for run in self.runs.values()]
        if any(other is not None for other, _ in others):
            pairs = [(0.0 if other is None else other, total) for other, total in others]
            yield "other", [_cells(None, None, other, share(other, t)) for other, t in pairs]
            for name in dict.fromkeys(name for run in self.runs.values() for name in run.others):
                added = [(run.others.get(name, 0.0), run.total) for run in self.runs.values()]
                yield name, [_cells(None, None, x, share(x, total)) for x, total in added]
            unknown = [(run.unknown, run.total) for run in self.runs.values()]
            if any(x for x, _ in unknown):
                cells = [_cells(None, None, x, share(x, total)) for x, total in unknown]
                yield "other/unknown", cells
        totals = [run.total for run in self.runs.values()]
        yield "total", [_cells(None, None, total, share(total, total)) for total in totals]

    def __str__(self) -> str:
        rows = list(self._rows())
        width = max(len(name) for name, _ in [*rows, ("term    ", [])]) + 1
        heads = "   ".join("".join(f"{column:>10}" for column in _COLUMNS) for _ in self.runs)
        lines = [
            " " * width + "   ".join(f"{run:>40}" for run in self.runs),
            f"{'term':<{width}}{heads}",
        ]
        for name, runs in rows:
            cells = "   ".join("".join(f"{cell:>10}" for cell in run) for run in runs)
            lines.append(f"{name:<{width}}{cells}".rstrip())
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def to_html(self) -> str:
        """Returns the table as HTML."""
        span = len(_COLUMNS)
        runs = "".join(f'<th colspan="{span}">{html.escape(run)}</th>' for run in self.runs)
        columns = "".join(f"<th>{column}</th>" for _ in self.runs for column in _COLUMNS)
        body = "".join(
            f"<tr><th>{html.escape(name)}</th>"
            f"{''.join(f'<td>{cell}</td>' for run in cells for cell in run)}</tr>"
            for name, cells in self._rows()
        )
        return (
            f"<table><thead><tr><th></th>{runs}</tr><tr><th>term</th>{columns}</tr></thead>"
            f"<tbody>{body}</tbody></table>"
        )

    def _repr_html_(self) -> str:
        return self.to_html()


def report(history: keras.callbacks.History | Mapping[str, Sequence[float]]) -> Report:
    """Returns a table of what each term contributed to the loss in the last epoch of a `fit`.

    For each term it has the mean loss, the weight at the end of the epoch, the mean of weight times
    loss, and its share of the total, in training and, if there was any, validation. A row `other`
    shows what layers and regularizers add without being a term, and rows below it what each layer
    adds. Raw times a constant weight is the weighted loss, unless batches differ in the share of
    items that take part, such as labelled ones: in the total, Keras weights each batch by its size.

    Args:
        history: What `fit` with a `keras_jointloss.callbacks.JointLossCallback` returned, or its
            `history` dict.

    Raises:
        ValueError: If `history` is anything else.

    Example:

    >>> print(
    ...     report(
    ...         {
    ...             "loss": [2.0],
    ...             "label_loss": [1.5], "label_weight": [1.0], "label_share": [0.75],
    ...             "pair_loss": [5.0], "pair_weight": [0.1], "pair_share": [0.25],
    ...         }
    ...     )
    ... )
                                                train
    term            raw    weight  weighted     share
    label         1.500     1.000     1.500     75.0%
    pair          5.000     0.100     0.500     25.0%
    total                             2.000    100.0%
    """
    logs = getattr(history, "history", history)
    latest = {}
    if isinstance(logs, Mapping):
        latest = {key: values[-1] for key, values in logs.items() if values}
    terms = find_term_names(latest)
    if not terms:
        raise invalid(
            "history",
            "what `fit` returned with a `JointLossCallback` among its callbacks, at the end of an "
            "epoch",
            received=f"history={type(history).__name__} with {sorted(latest)}",
        )
    runs = {"train": _run(latest, terms, "")}
    if "val_loss" in latest and any(f"val_{term}_weight" in latest for term in terms):
        runs["validation"] = _run(latest, terms, "val_")
    return Report(runs)


def _run(latest: Mapping[str, float], terms: list[str], prefix: str) -> RunReport:
    total = float(latest.get(f"{prefix}loss", math.nan))
    contributions = {}
    for term in terms:
        raw, weight, part = (
            float(latest.get(f"{prefix}{term}_{key}", math.nan))
            for key in ("loss", "weight", "share")
        )
        # The mean of weight times loss is not the product of the two if the weight moves.
        weighted = raw * weight if total == 0 else part * total
        contributions[term] = Contribution(raw, weight, weighted, part)
    added = {key.removeprefix(prefix): x for key, x in latest.items() if key.startswith(prefix)}
    others = {name: float(x) for key, x in added.items() if (name := layer_of_log(key, terms))}
    return RunReport(contributions, total, others)


def _cells(raw: float | None, weight: float | None, weighted: float, part: float) -> list[str]:
    numbers = [_cell(x) for x in (raw, weight, weighted)]
    return [*numbers, "-" if math.isnan(part) else f"{part:.1%}"]


def _cell(x: float | None) -> str:
    if x is None:
        return ""
    if math.isnan(x):
        return "-"
    # As printed: a weight of 0.01 in float32 is a little less.
    is_fixed = x == 0 or 0.01 <= round(abs(x), 6) < 1e5
    return f"{x:.3f}" if is_fixed else f"{x:.2e}"
