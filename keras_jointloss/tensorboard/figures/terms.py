"""The figure of the weighted losses, which add up to the loss that training minimizes."""

from collections.abc import Sequence

import numpy as np

from keras_jointloss.tensorboard._sampling import smooth, thin
from keras_jointloss.tensorboard.figures.lines import looks_of_runs, select_marks
from keras_jointloss.tensorboard.figures.panels import (
    Drawing,
    Line,
    NothingToShowError,
    Panel,
    axes,
    draw_panels,
    finish_x_axes,
    grid,
    point_limit,
)
from keras_jointloss.tensorboard.figures.style import THEMES, Mark, number, shades, text
from keras_jointloss.tensorboard.figures.view import View
from keras_jointloss.tensorboard.runs import (
    OTHER,
    Run,
    Series,
    find_others,
    is_rounding,
    term_tag,
)

_TOTAL = "joint_loss/total"


def terms(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the stacked weighted losses of the terms, with the total as a line.

    With `compare="overlay"` and several runs, lines that are not stacked.
    """
    others = find_others(runs)
    names = [*view.shown_terms(runs), *others, OTHER]
    marks = {**select_marks(runs, view), **shades([OTHER, *others], THEMES[view.theme].faint)}
    key, label = ("share", "share of the total") if view.share else ("weighted", "weighted loss")
    cells = [
        (run, split, found)
        for run in runs
        for split in view.splits
        if (found := _parts(run, split, names, others, key))
    ]
    if not cells:
        where = f" in {view.splits[0]}" if len(view.splits) == 1 else ""
        raise NothingToShowError(f"The runs have no weighted losses of the chosen terms{where}.")
    if view.compare == "overlay" and len(runs) > 1:
        return _overlay(cells, view, marks, label)
    columns = min(len(view.splits), view.columns, len(cells))
    titles = [text(f"{r.name} · {s}" if len(runs) > 1 else s) for r, s, _ in cells]
    drawing = grid(view, titles, columns)
    limit = point_limit(view, sum(len(found) + 1 for _, _, found in cells))
    named: set[str] = set()
    firsts: dict[str, str] = {}
    for index, (run, split, found) in enumerate(cells):
        for trace in _stack(run, split, found, view, marks, limit, index):
            group = trace["legendgroup"]
            shown = {"showlegend": group not in named}
            drawing.traces.append({**trace, **axes(index), **shown})
            named.add(group)
        axis = drawing.axis("y", index)
        axis |= {"title": {"text": label}, "type": view.scale or "linear"}
        if not any((x.values < 0).any() for *_, parts in cells for x in parts.values()):
            axis["rangemode"] = "nonnegative"
        match = firsts.setdefault(view.group(label, run), axes(index)["yaxis"])
        if match != axes(index)["yaxis"]:
            axis["matches"] = match
    finish_x_axes(drawing, view)
    return drawing.as_percent() if view.share else drawing


def _parts(
    run: Run, split: str, names: Sequence[str], others: Sequence[str], key: str
) -> dict[str, Series]:
    """Returns the series that a run has of names: of terms, of others by layer, and `other`."""
    tags = run.split(split)
    found = {name: tags[term_tag(name, key)] for name in names if term_tag(name, key) in tags}
    if _TOTAL not in tags:
        return {}
    by_layer = [series for name, series in found.items() if name in others]
    if by_layer and OTHER in found:
        other = found[OTHER]
        known = [_at_steps(series, other.steps) for series in by_layer]
        values = other.values - np.nansum(known, axis=0)
        totals = np.ones_like(values) if key == "share" else _at_steps(tags[_TOTAL], other.steps)
        # Only what no layer is known to add is left.
        found[OTHER] = Series(*other[:2], values)
        pairs = zip(values, totals, other.values, strict=True)
        if all(np.isnan(x) or is_rounding(x, total, [whole]) for x, total, whole in pairs):
            del found[OTHER]
    return found


def _stack(run, split, found, view, marks, limit, index):
    """Yields the areas of the terms, and the line of the total."""
    total = run.split(split)[_TOTAL].without_restarts()
    rows = {
        name: smooth(_at_steps(series.without_restarts(), total.steps), view.smoothing)
        for name, series in found.items()
    }
    sums = smooth(total.values, view.smoothing)
    reference = np.ones_like(sums) if view.share else sums
    keep = thin(np.stack([*rows.values(), sums]), limit)
    x = run.positions(total.at(keep), view.x)
    for name, values in rows.items():
        mark, values = marks[name], values[keep]
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = values if view.share else values / sums[keep]
        # Values above and below 0 are stacked apart: else a loss below 0 would hide others.
        above, below = np.nan_to_num(np.maximum(values, 0)), np.nan_to_num(np.minimum(values, 0))
        for part, stack in ((above, "above"), (below, "below")):
            if stack == "below" and not part.any():
                continue
            customdata, hover = np.stack([values, shares], axis=1), "%{customdata[0]:.4g}"
            if (values < 0).any():  # In such a template, Plotly writes a hyphen for a minus.
                words = [[number(x), number(y, ".1%")] for x, y in customdata]
                customdata, hover = np.array(words), "%{customdata[0]}"
            area = dict(
                type="scatter",
                x=x,
                y=part,
                name=text(name),
                mode="lines",
                stackgroup=f"{stack} {index}",
                line={"color": mark.color, "width": 0.8},
                customdata=customdata,
                hovertemplate=hover + " (%{customdata[1]" + (":.1%})" if ":" in hover else "})"),
                legendgroup=name,
                meta={"run": run.name, "split": split, "term": name, "stack": stack},
            )
            if mark.pattern:
                area["fillpattern"] = {
                    "shape": mark.pattern,
                    "fgcolor": mark.color,
                    "fillmode": "overlay",
                    "size": 7,
                    "solidity": 0.35,
                }
            if stack == "below":
                area["hoverinfo"] = "skip"
            yield area
    yield dict(
        type="scatter",
        x=x,
        y=reference[keep],
        name="total",
        mode="lines+markers" if len(keep) < 25 else "lines",
        line={"color": THEMES[view.theme].total, "width": 1.8},
        marker={"size": 4},
        customdata=sums[keep],
        hovertemplate="%{customdata:.4g}",
        legendgroup=_TOTAL,
        meta={"run": run.name, "split": split, "term": None},
    )


def _at_steps(series: Series, steps: np.ndarray) -> np.ndarray:
    """Returns the values at steps, interpolated where TensorBoard has kept other ones."""
    if np.array_equal(series.steps, steps):
        return series.values
    return np.interp(steps, series.steps, series.values, left=np.nan, right=np.nan)


def _overlay(cells, view, marks, label):
    """Returns the figure of the lines of all runs, each split in axes of its own."""
    looks = looks_of_runs(list(dict.fromkeys(run.name for run, *_ in cells)), view)
    mark = Mark(THEMES[view.theme].total)
    panels = []
    for split in dict.fromkeys(split for _, split, _ in cells):
        lines = []
        for run, of, found in cells:
            if of != split:
                continue
            if not view.share:
                found = {**found, "total": run.split(split)[_TOTAL]}
            lines += [
                Line(run, x, name, marks.get(name, mark), *looks[run.name], {"split": split})
                for name, x in found.items()
            ]
        panels.append(Panel(split, lines, label, view.scale or "linear", "terms"))
    drawing = draw_panels(panels, view, len(panels))
    return drawing.as_percent() if view.share else drawing
