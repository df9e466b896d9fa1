"""The figure of the angles between gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_jointloss.tensorboard._sampling import thin
from keras_jointloss.tensorboard.figures.panels import Drawing, axes, finish_x_axes, grid, nothing
from keras_jointloss.tensorboard.figures.style import text
from keras_jointloss.tensorboard.figures.view import View
from keras_jointloss.tensorboard.heat_map import COSINE_COLORS
from keras_jointloss.tensorboard.runs import Run, find_pairs

# A heat map cannot show more columns.
_COLUMNS = 400


def cosines(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the cosines of all pairs of gradients over time, and the latest as a matrix."""
    found = [(run, pairs) for run in runs if (pairs := _pairs(run, view))]
    if not found:
        raise nothing("cosines: they come from a layer that combines gradients of several terms")
    titles = []
    for run, _ in found:
        name = f"{run.name} · " if len(runs) > 1 else ""
        titles += [text(f"{name}cosines over time"), text(f"{name}latest")]
    most = max(max(len(pairs), 4) for _, pairs in found)
    height = min(600, max(270, 24 * most + 90))
    longest = max(len(name) for _, pairs in found for pair in pairs.values() for name in pair)
    drawing = grid(view, titles, 2, height, spacing=min(0.3, 0.03 + 0.008 * longest))
    for index, (run, pairs) in enumerate(found):
        drawing.traces.append({**_over_time(run, pairs, view), **axes(2 * index)})
        drawing.traces.append({**_latest(run, pairs), **axes(2 * index + 1)})
    finish_x_axes(drawing, view)
    # Names are longer than numbers. Plotly draws twice to make room for them.
    for axis in drawing.all_axes("x"):
        axis["automargin"] = True
    for axis in drawing.all_axes("y"):
        axis |= {"automargin": True, "autorange": "reversed"}
    for index in range(len(found)):
        axis = drawing.axis("x", 2 * index + 1)
        axis |= {"title": {"text": ""}, "type": "category"}
        del axis["matches"]
    drawing.layout.update(hovermode="closest", modebar={"orientation": "h"})
    drawing.layout["coloraxis"] = {
        "colorscale": [*zip((0.0, 0.5, 1.0), COSINE_COLORS, strict=True)],
        "cmin": -1,
        "cmax": 1,
        "colorbar": {"title": {"text": "cosine"}, "thickness": 12, "len": 0.8},
    }
    return drawing


def _pairs(run: Run, view: View) -> dict[str, tuple[str, str]]:
    pairs = find_pairs(run.train).items()
    return {tag: pair for tag, pair in pairs if all(map(view.has_gradient, pair))}


def _over_time(run: Run, pairs: dict[str, tuple[str, str]], view: View) -> dict[str, Any]:
    series = {tag: run.train[f"{tag}/cosine"].without_restarts() for tag in pairs}
    longest = max(series.values(), key=lambda x: len(x.steps))
    rows = np.full((len(pairs), len(longest.steps)), np.nan)
    for row, values in zip(rows, series.values(), strict=True):
        at = np.searchsorted(longest.steps, values.steps).clip(max=len(longest.steps) - 1)
        same = longest.steps[at] == values.steps
        row[at[same]] = values.values[same]
    keep = thin(rows, _COLUMNS)
    return dict(
        type="heatmap",
        x=run.positions(longest.at(keep), view.x),
        y=[f"{text(a)} ~ {text(b)}" for a, b in pairs.values()],
        z=rows[:, keep],
        coloraxis="coloraxis",
        hovertemplate="%{y}<br>%{x:.4g}: %{z:.3f}<extra></extra>",
        meta={"run": run.name, "pairs": [list(pair) for pair in pairs.values()]},
    )


def _latest(run: Run, pairs: dict[str, tuple[str, str]]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for pair in pairs.values() for name in pair))
    matrix = np.full((len(names), len(names)), np.nan)
    np.fill_diagonal(matrix, 1)
    for tag, pair in pairs.items():
        i, j = (names.index(name) for name in pair)
        matrix[i, j] = matrix[j, i] = run.train[f"{tag}/cosine"].values[-1]
    labels = [text(name) for name in names]
    return dict(
        type="heatmap",
        x=labels,
        y=labels,
        z=matrix,
        text=np.where(np.isnan(matrix), "", np.char.mod("%.2f", matrix.round(2) + 0.0)),
        texttemplate="%{text}" if len(names) <= 12 else "",
        coloraxis="coloraxis",
        hovertemplate="%{y} ~ %{x}: %{z:.3f}<extra></extra>",
        meta={"run": run.name, "terms": names},
    )
