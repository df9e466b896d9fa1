"""The figures of lines: raw losses, weights, readings, gradients and retrieval."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from keras_jointloss.tensorboard.figures.panels import (
    Drawing,
    Line,
    NothingToShowError,
    Panel,
    can_be_log,
    draw_panels,
)
from keras_jointloss.tensorboard.figures.style import (
    DASHES,
    THEMES,
    Mark,
    marks,
    run_marks,
    shades,
    text,
)
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
#: What tells a line from others of its name in the same panel: note, dash, and mark of its run.
Look = tuple[str, str, Mark | None]
_RECALL = re.compile(r"retrieval/(?P<name>.+)/(?P<way>a_to_b|b_to_a)_recall_at_(?P<k>\d+)")
_WAYS = {"a_to_b": "a → b", "b_to_a": "b → a"}


def losses(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the raw losses of the terms, on a logarithmic axis if all are positive."""
    quantities: dict[str, TagOf] = {"raw loss": partial(term_tag, key="raw")}
    panels = _panels(runs, view, view.shown_terms(runs), quantities, view.splits)
    if not panels:
        where = f" in {view.splits[0]}" if len(view.splits) == 1 else ""
        raise NothingToShowError(f"The runs have no raw losses of the chosen terms{where}.")
    return _figure(panels, view, 1, "log")


def weights(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the weights of the terms, with the rest of their schedules as dashed lines."""
    names = view.shown_terms(runs)
    quantities: dict[str, TagOf] = {"weight": partial(term_tag, key="weight")}
    # Validation does not move the weights: those of training have all of them.
    has_train = any(tag.endswith("/weight") for run in runs for tag in run.train)
    panels = _panels(runs, view, names, quantities, ("train",) if has_train else view.splits)
    if not panels:
        raise NothingToShowError("The runs have no weights of the chosen terms.")
    own = select_marks(runs, view)
    for run in runs if has_train and view.x != "time" else ():
        panel = next((x for x in panels for line in x.lines if line.run is run), None)
        for term, schedule in run.schedules.items():
            tag = run.train.get(term_tag(term, "weight"))
            if panel is None or term not in names:
                continue
            ahead = schedule
            if tag is not None and len(tag.steps):
                ahead = schedule.at(schedule.steps >= tag.steps[-1])
            if len(ahead.steps) > 1:
                line = Line(run, ahead, term, own[term], "schedule", "dash", extra={"ahead": True})
                panel.lines.append(line)
    return _figure(panels, view, 1, "linear")


def readings(runs: Sequence[Run], view: View) -> Drawing:
    """Returns what else layers and rules report of terms: temperature, bias, noise and others."""
    names = view.shown_terms(runs)
    keys = find_keys(runs, names)
    quantities: dict[str, TagOf] = {key: partial(term_tag, key=key) for key in keys}
    panels = _panels(runs, view, names, quantities, view.splits, draws_repeats=False)
    if not panels:
        raise NothingToShowError(
            "The runs have no readings of the chosen terms beside their losses and weights. Terms "
            "have some if they learn a temperature or a bias, and under a weighting that reports "
            "its state."
        )
    return _figure(panels, view, len(keys), "linear")


def gradients(runs: Sequence[Run], view: View) -> Drawing:
    """Returns norms, coefficients and conflicts of the gradients of the terms."""
    names = [name for name in find_gradients(runs) if view.has_gradient(name)]
    if not names:
        raise NothingToShowError(
            "The runs have no statistics of the gradients of the chosen terms. A layer "
            "GradientBalancer in the model logs them, also with aggregator=None, which changes "
            "nothing in training."
        )
    quantities: dict[str, TagOf] = {
        "norm": lambda name: f"gradients/{name}/norm",
        "coefficient": lambda name: f"gradients/{name}/coefficient",
    }
    panels = []
    for group in _sharing(runs, view):
        of_group = _panels(group, view, names, quantities, ("train",), of_all=runs)
        panels += [
            panel.changed(scale="log" if panel.y == "norm" and can_be_log([panel]) else "linear")
            for panel in of_group
        ]
        conflicts = _conflicts(group, view, len(runs))
        if conflicts.lines:
            panels.append(conflicts)
    drawing = _figure(panels, view, 3, None)
    for axis in drawing.all_axes("y"):
        if axis.get("title") == {"text": "conflict"} and axis["type"] == "linear":
            axis |= {"range": [-0.02, 1.02], "tickformat": ".0%"}
    return drawing


def _conflicts(group: Sequence[Run], view: View, count: int) -> Panel:
    """Returns the panel of the steps in conflict, of a run or of all of them."""
    pattern = re.compile(r"gradients/(?:(?P<layer>[^/~]+)/)?conflict")
    found = [
        (run, tag, match["layer"] or "any two in conflict")
        for run in group
        for tag in run.train
        if (match := pattern.fullmatch(tag))
    ]
    # No term's color: a conflict is between any two.
    own = shades(sorted({name for *_, name in found}), THEMES[view.theme].total)
    looks = looks_of_runs([run.name for run in group], view)
    lines = [
        Line(run, run.train[tag], name, own[name], *looks[run.name], {"split": "train", "tag": tag})
        for run, tag, name in found
    ]
    title = "steps in conflict"
    if count > 1 and len(group) == 1:
        title = f"{text(group[0].name)} · {title}"
    return Panel(title, lines, "conflict", "linear", "conflict")


def retrieval(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the recalls of `RetrievalEvaluation` in both directions."""
    found = {
        (match["name"], int(match["k"]))
        for run in runs
        for tag in run.validation
        if (match := _RECALL.fullmatch(tag))
    }
    if not found:
        raise NothingToShowError(
            "The runs have no recalls. The callback RetrievalEvaluation logs them, with the same "
            "log_dir as JointLossCallback."
        )
    labels = {f"{name} R@{k}": (name, k) for name, k in sorted(found)}

    def tag_of(label: str, way: str) -> str:
        name, k = labels[label]
        return f"retrieval/{name}/{way}_recall_at_{k}"

    quantities: dict[str, TagOf] = {words: partial(tag_of, way=way) for way, words in _WAYS.items()}
    # A search among the embeddings of a term has its color; k differ by symbols and dashes.
    terms = select_marks(runs, view)
    own: dict[str, Mark] = {}
    for name in sorted({name for name, _ in found}):
        color = terms[name].color if name in terms else THEMES[view.theme].total
        own |= shades([x for x in labels if labels[x][0] == name], color, always=True)
    panels = _panels(runs, view, list(labels), quantities, ("validation",), own)
    ks = sorted({k for _, k in found})
    dashes = {x: DASHES[ks.index(k) % len(DASHES)] for x, (_, k) in labels.items()}
    for panel in panels:
        panel.lines[:] = [
            line if line.of_run else line.changed(dash=dashes[line.name]) for line in panel.lines
        ]
    panels = [x.changed(y="recall", group=x.group.replace(x.y, "recall", 1)) for x in panels]
    return _figure(panels, view, 2, "linear").as_percent()


def select_marks(runs: Sequence[Run], view: View) -> dict[str, Mark]:
    """Returns how each term is drawn."""
    return marks([*(find_terms(runs) if view.palette is None else view.palette)], view.theme)


def _figure(panels: list[Panel], view: View, quantities: int, default: str | None) -> Drawing:
    """Returns the figure, with the axes that the view asks for, or else the default ones."""
    columns = min(3, quantities) if quantities > 1 else min(2, len(panels))
    scale = view.scale or (default if default != "log" or can_be_log(panels) else "linear")
    if scale is not None:
        panels = [panel.changed(scale=scale) for panel in panels]
    return draw_panels(panels, view, columns)


def _sharing(runs: Sequence[Run], view: View) -> list[list[Run]]:
    """Returns the runs in groups that share their axes."""
    return [list(runs)] if view.compare == "overlay" else [[run] for run in runs]


def looks_of_runs(names: Sequence[str], view: View) -> dict[str, Look]:
    """Returns by run how its lines look where several share the axes."""
    if len(names) == 1:
        return {names[0]: ("", "solid", None)}
    own = run_marks(names, view.theme)
    return {name: (name, DASHES[i % len(DASHES)], own[name]) for i, name in enumerate(names)}


def _panels(
    runs: Sequence[Run],
    view: View,
    names: Sequence[str],
    quantities: dict[str, TagOf],
    splits: Sequence[str],
    own: dict[str, Mark] | None = None,
    draws_repeats: bool = True,
    of_all: Sequence[Run] = (),
) -> list[Panel]:
    """Returns the panels that have lines: one for each run and quantity, or, in overlay, split.

    Without `draws_repeats`, validation is left out where it has the values of training. The runs
    are some `of_all`.
    """
    own = own or {**marks(names, view.theme), **select_marks(runs, view)}
    splits = [split for split in view.splits if split in splits] or splits
    count = len(of_all or runs)

    def lines(run: Run, split: str, tag_of: TagOf, look: Look) -> list[Line]:
        note, dash, of_run = look
        found = []
        for name in names:
            series = run.split(split).get(tag_of(name))
            if series is None or not np.isfinite(series.values).any():
                continue
            is_second = split == "validation" and "train" in splits
            if is_second and not draws_repeats and _repeats(series, run.train.get(tag_of(name))):
                continue
            line = Line(run, series, name, own[name], note, dash, of_run, {"split": split})
            found.append(line)
        return found

    panels = []
    if view.compare == "overlay" and count > 1:
        looks = looks_of_runs([run.name for run in runs], view)
        for words, tag_of in quantities.items():
            for split in splits:
                title = text(words) + (f" · {split}" if len(splits) > 1 else "")
                of_runs = [x for r in runs for x in lines(r, split, tag_of, looks[r.name])]
                panels.append(Panel(title, of_runs, text(words), "linear", words))
        return [panel for panel in panels if panel.lines]
    for run in runs:
        for words, tag_of in quantities.items():
            of_run = []
            for split in splits:
                is_second = split == "validation" and len(splits) > 1
                look: Look = (split, "dot", None) if is_second else ("", "solid", None)
                of_run += lines(run, split, tag_of, look)
            parts = [run.name] * (count > 1) + [words] * (len(quantities) > 1 or count == 1)
            title, group = text(" · ".join(parts)), view.group(words, run)
            panels.append(Panel(title, of_run, text(words), "linear", group))
    return [panel for panel in panels if panel.lines]


def _repeats(series: Series, of_train: Series | None) -> bool:
    """Returns whether values of validation are those of training at the time, as of a variable."""
    if of_train is None:
        return False
    train = of_train.without_restarts()
    at = np.searchsorted(train.steps, series.steps, side="right") - 1
    return bool((at >= 0).all() and np.allclose(series.values, train.values[at], 1e-5, 1e-8, True))
