"""The latest values of the terms, and the values of a figure as comma-separated text."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_jointloss.tensorboard.judgement.epochs import epochs_of
from keras_jointloss.tensorboard.judgement.finding import guide_file
from keras_jointloss.tensorboard.judgement.judge import judge
from keras_jointloss.tensorboard.runs import OTHER, SPLITS, Run, Series, find_others, term_tag

#: The values of a term in the table.
COLUMNS = ("raw", "weight", "weighted", "share")


def latest(runs: Sequence[Run], terms: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a row for each run and term, and for what else the loss has.

    Args:
        runs: The runs.
        terms: The names of the terms.

    Returns:
        Dicts with `run`, `term`, `step`, and for `train` and `validation` a dict with the latest
        `raw`, `weight`, `weighted` and `share`, the `change` of the raw loss since the epoch before
        as a share of it, and `trend`, raw losses of the whole training, at most 40. `None` stands
        for what is not known. `marks` are the faults of the term, each with `kind` and `reason`.
    """
    rows = []
    for run in runs:
        faults = [x for x in judge(epochs_of(run)) if x.is_fault]
        for term in [*terms, OTHER, *find_others([run])]:
            marks = [
                {"kind": x.kind, "reason": f"{x.text} Guide: {guide_file(x.guide)}"}
                for x in faults
                if x.term == term
            ]
            row: dict[str, Any] = {"run": run.name, "term": term, "marks": marks}
            for split in SPLITS:
                row[split] = _values(run, split, term)
            steps = [x["step"] for x in (row["train"], row["validation"]) if x]
            if steps:
                rows.append({**row, "step": max(steps)})
    return rows


def _values(run: Run, split: str, term: str) -> dict[str, Any] | None:
    tags = run.split(split)
    found = {key: tags[tag] for key in COLUMNS if (tag := term_tag(term, key)) in tags}
    found = {key: series.without_restarts() for key, series in found.items()}
    if not any(len(series.steps) for series in found.values()):
        return None
    values: dict[str, Any] = {key: number(x.values[-1]) for key, x in found.items()}
    values.update(change=None, trend=[])
    trend = found.get("raw", found.get("weighted"))
    if trend is not None:  # A term that was never computed has a weight only.
        before = _epoch_before(run, trend)
        now = float(trend.values[-1])
        values["change"] = None if before in (None, 0) else number((now - before) / abs(before))
        at = np.unique(np.linspace(0, len(trend.values) - 1, 40).round().astype("int64"))
        values["trend"] = [number(x) for x in trend.values[at]]
    values["step"] = int(max(series.steps[-1] for series in found.values()))
    return values


def _epoch_before(run: Run, series: Series) -> float | None:
    """Returns the value of a series at the end of the epoch before the one that ended last."""
    earlier = series.steps < series.steps[-1]
    if run.epochs is not None and len(run.epochs.steps) > 1:
        epoch = run.positions(series.at(np.array([-1])), "epoch")[0]
        end = np.interp(epoch - 1, run.epochs.values, run.epochs.steps)
        earlier = series.steps <= round(float(end))
    return float(series.values[earlier][-1]) if earlier.any() else None


def number(value: float) -> float | None:
    """Returns a number for JSON, which has none for NaN and infinity."""
    return float(value) if np.isfinite(value) else None


def to_csv(rows: Iterable[tuple[Run, str, str, Series]]) -> str:
    """Returns series as comma-separated text with a heading, from run, split, tag and series."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["run", "split", "tag", "step", "epoch", "wall_time", "value"])
    for run, split, tag, series in rows:
        epochs: Any = [""] * len(series.steps)
        if run.epochs is not None and len(run.epochs.steps):
            epochs = np.round(run.positions(series, "epoch"), 4)
        for step, epoch, time, value in zip(
            series.steps, epochs, series.wall_times, series.values, strict=True
        ):
            writer.writerow(
                [run.name, split, tag, step, epoch, repr(float(time)), repr(float(value))]
            )
    return text.getvalue()
