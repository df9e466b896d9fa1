"""Marks of events in figures: a line at the step, a symbol in the color of the term, and a key."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_jointloss.tensorboard.events import NAMES, Event, events_of
from keras_jointloss.tensorboard.figures.lines import select_marks
from keras_jointloss.tensorboard.figures.panels import Drawing, key_entry
from keras_jointloss.tensorboard.figures.style import THEMES, signs, text
from keras_jointloss.tensorboard.figures.view import View
from keras_jointloss.tensorboard.runs import SPLITS, Run, Series

#: The symbols by the kind of the event: as text, and in a legend.
_SYMBOLS = {
    "schedule_ends": ("◆", "diamond"),
    "switched_off": ("■", "square"),
    "warning": ("▲", "triangle-up"),
}
#: The size in pixels of a symbol, of which several may stand at the same step.
_SIZE = 13
#: More events of a run hide what it shows.
_MOST = 12


def mark_events(drawing: Drawing, runs: Sequence[Run], view: View) -> Drawing:
    """Returns a figure with the events of the runs that each of its panels shows."""
    if not view.events:
        return drawing
    theme, marks = THEMES[view.theme], select_marks(runs, view)
    found = {run.name: _events(run, view) for run in runs}
    kinds, symbols = set(), []
    shapes = drawing.layout.setdefault("shapes", [])
    for x, y, group in _panels(drawing, runs):
        taken: dict[float, int] = {}
        for run, event in [(x, event) for x in group for event in found[x.name]]:
            at = _position(run, event.step, view.x)
            rank = taken[at] = taken.get(at, -1) + 1
            color = marks[event.term].color if event.term in marks else theme.total
            kinds.add(event.kind)
            place = {"xref": x, "yref": f"{y} domain"}
            if not rank:
                line = {"color": theme.faint, "width": 1, "dash": "dot"}
                ends = {"x0": at, "x1": at, "y0": 0, "y1": 1}
                shapes.append({"type": "line", "layer": "below", "line": line, **ends, **place})
            symbols.append(
                {
                    **{"x": at, "y": 1, "yanchor": "bottom", "xshift": _SIZE * rank, **place},
                    "text": _SYMBOLS[event.kind][0],
                    "font": {"color": color, "size": _SIZE},
                    "showarrow": False,
                    "borderpad": 0,
                    "hovertext": _words(event, run, len(runs)),
                    "name": event.kind,
                }
            )
    if symbols:
        # The symbols stand between the axes and their titles.
        for title in drawing.layout["annotations"]:
            title["yshift"] = _SIZE + 3
    drawing.layout["annotations"] += symbols
    drawing.layout["meta"] = {
        "events": [
            {"run": run, "step": x.step, "kind": x.kind, "term": x.term, "sentence": x.sentence}
            for run, events in found.items()
            for x in events
        ]
    }
    drawing.traces.extend(_key(kind, theme.faint) for kind in NAMES if kind in kinds)
    return drawing


def _events(run: Run, view: View) -> list[Event]:
    """Returns the events of a run that the terms to show have, or the training as a whole."""
    events = events_of(run)
    if view.terms is not None:
        events = [x for x in events if x.term is None or x.term in view.terms]
    return events[:_MOST]


def _panels(drawing: Drawing, runs: Sequence[Run]) -> Iterator[tuple[str, str, list[Run]]]:
    """Yields the names of the axes of each panel, and the runs that it shows."""
    shown: dict[tuple[str, str], set[str]] = {}
    for trace in drawing.traces:
        if "run" in trace["meta"]:
            shown.setdefault((trace["xaxis"], trace["yaxis"]), set()).add(trace["meta"]["run"])
    for (x, y), names in shown.items():
        yield x, y, [run for run in runs if run.name in names]


def _key(kind: Any, color: str) -> dict[str, Any]:
    marker = {"symbol": _SYMBOLS[kind][1], "size": 8, "color": color}
    return key_entry(NAMES[kind], mode="markers", marker=marker, legendgroup=f"key {kind}")


def _words(event: Event, run: Run, count: int) -> str:
    """Returns the text of a mark, broken into lines."""
    lines = [""]
    for word in signs(event.sentence).split():
        if len(lines[-1]) + len(word) > 42:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    head = f"{run.name}, step {event.step}" if count > 1 else f"step {event.step}"
    return "<br>".join([f"<b>{text(head)}</b>", *map(text, lines)])


def _position(run: Run, step: int, axis: str) -> float:
    """Returns where a step of a run is on an axis."""
    time = np.nan
    if axis == "time":
        tags = next(run.split(split) for split in SPLITS if run.split(split))
        known = next(iter(tags.values())).without_restarts()
        time = np.interp(step, known.steps, known.wall_times)
    series = Series(np.array([step]), np.array([time]), np.zeros(1))
    return float(run.positions(series, axis)[0])
