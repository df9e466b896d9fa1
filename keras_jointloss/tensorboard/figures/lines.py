"""The figures of lines: raw losses, weights, readings, gradients and retrieval."""

import re
from collections.abc import Callable, Sequence
from functools import partial

from keras_jointloss.tensorboard.figures.panels import (
    Drawing,
    Line,
    Panel,
    can_be_log,
    draw_panels,
    nothing,
    run_dashes,
)
from keras_jointloss.tensorboard.figures.style import Mark, marks, text
from keras_jointloss.tensorboard.figures.view import View
from keras_jointloss.tensorboard.runs import (
    Run,
    Series,
    find_gradients,
    find_keys,
    find_terms,
    term_tag,
)

#: Finds the tag of a name.
TagOf = Callable[[str], str]
_RECALL = re.compile(r"retrieval/(?P<name>.+)/(?P<way>a_to_b|b_to_a)_recall_at_(?P<k>\d+)")
_WAYS = {"a_to_b": "a → b", "b_to_a": "b → a"}


def losses(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the raw losses of the terms, on a logarithmic axis if all are positive."""
    quantities: dict[str, TagOf] = {"raw loss": partial(term_tag, key="raw")}
    return _figure(runs, view, view.shown_terms(runs), quantities, default="log")


def weights(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the weights of the terms, with the rest of their schedules as dashed lines."""
    names = view.shown_terms(runs)
    quantities: dict[str, TagOf] = {"weight": partial(term_tag, key="weight")}
    # Validation does not move the weights: those of training have all of them.
    has_train = any(tag.endswith("/weight") for run in runs for tag in run.train)
    panels = _panels(runs, view, names, quantities, ("train",) if has_train else view.splits)
    own = select_marks(runs, view)
    for run in runs if has_train else ():
        panel = next((x for x in panels for line in x.lines if line.run is run), None)
        for term, schedule in run.schedules.items():
            tag = run.train.get(term_tag(term, "weight"))
            if panel is None or term not in names:
                continue
            ahead = schedule
            if tag is not None and len(tag.steps):
                ahead = schedule.at(schedule.steps >= tag.steps[-1])
            if view.x != "time" and len(ahead.steps):
                line = Line(run, ahead, term, own[term], "schedule", "dash", {"ahead": True})
                panel.lines.append(line)
    return draw_panels(_scaled(panels, view, "linear"), view, _columns(panels, quantities))


def readings(runs: Sequence[Run], view: View) -> Drawing:
    """Returns what else layers and rules report of terms: temperature, bias, noise and others."""
    names = view.shown_terms(runs)
    keys = find_keys(runs, names)
    if not keys:
        raise nothing("readings such as a temperature")
    quantities: dict[str, TagOf] = {key: partial(term_tag, key=key) for key in keys}
    return _figure(runs, view, names, quantities, default="linear")


def gradients(runs: Sequence[Run], view: View) -> Drawing:
    """Returns norms, coefficients and conflicts of the gradients of the terms."""
    names = [name for name in find_gradients(runs) if view.has_gradient(name)]
    if not names:
        raise nothing("statistics of gradients: they come from a layer that combines gradients")
    quantities: dict[str, TagOf] = {
        "norm": lambda name: f"gradients/{name}/norm",
        "coefficient": lambda name: f"gradients/{name}/coefficient",
    }
    panels = _panels(runs, view, names, quantities, ("train",))
    panels = [
        panel.changed(scale="log" if panel.y == "norm" and can_be_log([panel]) else "linear")
        for panel in panels
    ]
    conflict = Mark("#D55E00", "", "circle", False)
    dashes = run_dashes(runs)
    is_overlay = view.compare == "overlay" and len(runs) > 1
    groups = [list(runs)] if is_overlay else [[run] for run in runs]
    for position, group in enumerate(groups):
        lines = [
            Line(
                run,
                series,
                "any two in conflict" if tag.count("/") == 1 else tag.split("/")[1],
                conflict,
                run.name if is_overlay else "",
                dashes[run.name] if is_overlay else "solid",
                {"split": "train", "tag": tag},
            )
            for run in group
            for tag, series in run.train.items()
            if re.fullmatch(r"gradients/([^/~]+/)?conflict", tag)
        ]
        title = text(group[0].name) + " · " if len(runs) > 1 and not is_overlay else ""
        panel = Panel(f"{title}steps in conflict", lines, "conflict", "linear", "conflict")
        panels.insert(position * 3 + 2, panel)
    drawing = draw_panels(_scaled(panels, view, None), view, 3)
    for axis in drawing.all_axes("y"):
        if axis.get("title") == {"text": "conflict"} and axis["type"] == "linear":
            axis |= {"range": [-0.02, 1.02], "tickformat": ".0%"}
    return drawing


def retrieval(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the recalls of `RetrievalEvaluation` in both directions."""
    found = {
        (match["name"], int(match["k"]))
        for run in runs
        for tag in run.validation
        if (match := _RECALL.fullmatch(tag))
    }
    if not found:
        raise nothing("recalls: they come from the callback `RetrievalEvaluation`")
    labels = {f"{name} R@{k}": (name, k) for name, k in sorted(found)}

    def tag_of(label: str, way: str) -> str:
        name, k = labels[label]
        return f"retrieval/{name}/{way}_recall_at_{k}"

    quantities: dict[str, TagOf] = {words: partial(tag_of, way=way) for way, words in _WAYS.items()}
    own = marks(list(labels))
    panels = _panels(runs, view, list(labels), quantities, ("validation",), own)
    panels = [panel.changed(y="recall", group="recall") for panel in panels]
    return draw_panels(_scaled(panels, view, "linear"), view, 2).as_percent()


def select_marks(runs: Sequence[Run], view: View) -> dict[str, Mark]:
    """Returns how each term is drawn."""
    return marks([*(find_terms(runs) if view.palette is None else view.palette)])


def _figure(runs, view, names, quantities, default) -> Drawing:
    panels = _panels(runs, view, names, quantities, view.splits)
    return draw_panels(_scaled(panels, view, default), view, _columns(panels, quantities))


def _columns(panels: Sequence[Panel], quantities) -> int:
    filled = sum(bool(panel.lines) for panel in panels)
    return min(3, len(quantities)) if len(quantities) > 1 else min(2, filled)


def _scaled(panels: list[Panel], view: View, default: str | None) -> list[Panel]:
    """Returns the panels with the axes that the view asks for, or else the default ones."""
    scale = view.scale or (default if default != "log" or can_be_log(panels) else "linear")
    return panels if scale is None else [panel.changed(scale=scale) for panel in panels]


def _panels(
    runs: Sequence[Run],
    view: View,
    names: Sequence[str],
    quantities: dict[str, TagOf],
    splits: Sequence[str],
    own: dict[str, Mark] | None = None,
) -> list[Panel]:
    """Returns a panel for each run and quantity, or, in overlay, for each quantity and split."""
    own = own or {**marks(names), **select_marks(runs, view)}
    splits = [split for split in view.splits if split in splits] or splits
    is_overlay = view.compare == "overlay" and len(runs) > 1
    dashes = run_dashes(runs)

    def lines(run: Run, split: str, tag_of: TagOf, note: str, dash: str) -> list[Line]:
        found: list[tuple[str, Series | None]] = [
            (name, run.split(split).get(tag_of(name))) for name in names
        ]
        extra = {"split": split}
        return [
            Line(run, x, name, own[name], note, dash, extra) for name, x in found if x is not None
        ]

    panels = []
    if is_overlay:
        for words, tag_of in quantities.items():
            for split in splits:
                title = text(words) + (f" · {split}" if len(splits) > 1 else "")
                of_all = [x for r in runs for x in lines(r, split, tag_of, r.name, dashes[r.name])]
                panels.append(Panel(title, of_all, text(words), "linear", words))
        return panels
    for run in runs:
        for words, tag_of in quantities.items():
            of_run = []
            for split in splits:
                is_second = split == "validation" and len(splits) > 1
                note, dash = (split, "dot") if is_second else ("", "solid")
                of_run += lines(run, split, tag_of, note, dash)
            parts = [run.name] * (len(runs) > 1) + [words] * (len(quantities) > 1 or len(runs) == 1)
            panels.append(Panel(text(" · ".join(parts)), of_run, text(words), "linear", words))
    return panels
