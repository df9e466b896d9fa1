"""What happened in a training at one step: found in its logs, for marks in figures."""

from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from keras_jointloss.tensorboard.judgement.epochs import Epochs, epochs_of
from keras_jointloss.tensorboard.judgement.finding import Finding
from keras_jointloss.tensorboard.judgement.judge import judge
from keras_jointloss.tensorboard.runs import Run, Series, find_terms, term_tag

EventKind: TypeAlias = Literal["schedule_ends", "switched_off", "warning"]
#: How the kinds are called in a legend.
NAMES: dict[EventKind, str] = {
    "schedule_ends": "schedule ends",
    "switched_off": "term switched off",
    "warning": "warning",
}
#: Weights that differ by less, relative to the largest, are the same.
_SAME = 1e-6


class Event(NamedTuple):
    """An event of a training.

    Attributes:
        step: The training step.
        kind: `"schedule_ends"`, `"switched_off"` or `"warning"`.
        term: The name of the term, `None` for the training as a whole.
        sentence: What has happened.
    """

    step: int
    kind: EventKind
    term: str | None
    sentence: str


def events_of(run: Run) -> list[Event]:
    """Returns the events of a run in the order of their steps.

    The end of a schedule after which its weight stays; the step from which on the weight of a term
    is 0 although its schedule is not; and the faults that `kj.diagnose` finds, where they begin.
    """
    epochs = epochs_of(run)
    findings = [x for x in judge(epochs) if x.is_fault]
    found = [*_of_weights(run), *_of_findings(findings, epochs)]
    return sorted(found, key=lambda x: (x.step, x.kind, x.term or ""))


def _of_weights(run: Run) -> Iterator[Event]:
    for term in find_terms([run]):
        weight = run.train.get(term_tag(term, "weight"))
        if weight is None or not len(weight.steps):
            continue
        weight, schedule = weight.without_restarts(), run.schedules.get(term)
        end = None if schedule is None else _end(schedule, weight)
        off = _off(weight)
        # A term that follows its schedule to 0 is not switched off.
        is_planned = schedule is not None and off is not None and _value(schedule, off) == 0
        if off is not None and not is_planned:
            yield Event(off, "switched_off", term, f"The term {term!r} is switched off.")
        if end is not None and end <= weight.steps[-1] and (off is None or is_planned or end < off):
            at = weight.values[weight.steps >= end][0]
            text = f"The schedule of the term {term!r} ends: its weight stays {at:.4g}."
            yield Event(end, "schedule_ends", term, text)


def _end(schedule: Series, weight: Series) -> int | None:
    """Returns the step at which a schedule ends, before the training does, if it moves at all."""
    values = schedule.values
    if len(values) < 2:
        return None
    moves = np.flatnonzero(np.abs(np.diff(values)) > _SAME * np.abs(values).max())
    if not len(moves) or moves[-1] + 2 >= len(values):
        return None
    before, after = schedule.steps[moves[-1]], schedule.steps[moves[-1] + 1]
    # The schedule is known at some steps only, and the weight perhaps at more of them.
    is_there = np.isclose(weight.values, values[-1], _SAME, 0)
    between = weight.steps[(weight.steps > before) & (weight.steps <= after) & is_there]
    return int(between[0] if len(between) else after)


def _off(weight: Series) -> int | None:
    """Returns the step from which on a weight is 0 that was not before."""
    nonzero = np.flatnonzero(weight.values != 0)
    if not len(nonzero) or nonzero[-1] + 1 == len(weight.values):
        return None
    return int(weight.steps[nonzero[-1] + 1])


def _value(schedule: Series, step: int) -> float:
    return float(np.interp(step, schedule.steps, schedule.values))


def _of_findings(findings: Iterable[Finding], epochs: Epochs) -> Iterator[Event]:
    for finding in findings:
        at = np.flatnonzero(epochs.numbers == finding.since)
        if len(at):
            yield Event(int(epochs.steps[at[0]]), "warning", finding.term, finding.sentence)
