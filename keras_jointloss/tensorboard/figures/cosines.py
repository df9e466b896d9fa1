"""The figure of the angles between gradients."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_jointloss.tensorboard._sampling import thin
from keras_jointloss.tensorboard.figures.panels import (
    X_TITLES,
    Drawing,
    NothingToShowError,
    axes,
    grid,
)
from keras_jointloss.tensorboard.figures.style import THEMES, number, text
from keras_jointloss.tensorboard.figures.view import View
from keras_jointloss.tensorboard.runs import Run, find_pairs

# A heat map cannot show more columns.
_COLUMNS = 400


def cosines(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the cosines of all pairs of gradients over time, and the latest as a matrix."""
    found = [(run, pairs) for run in runs if (pairs := _pairs(run, view))]
    if not found:
        raise NothingToShowError(
            "The runs have no cosines between gradients of the chosen terms. A layer "
            "GradientBalancer of two terms or more logs them, also with aggregator=None, which "
            "changes nothing in training."
        )
    titles = []
    for run, _ in found:
        name = f"{run.name} · " if len(runs) > 1 else ""
        titles += [text(f"{name}cosines over time"), text(f"{name}latest")]
    most = max(max(len(pairs), 4) for _, pairs in found)
    height = min(600, max(270, 24 * most + 90))
    longest = max(len(name) for _, pairs in found for pair in pairs.values() for name in pair)
    # On a narrow page, row labels would cover what is on their left.
    columns = min(2, max(1, view.columns - 1))
    drawing = grid(view, titles, columns, height, spacing=min(0.3, 0.03 + 0.008 * longest))
    for index, (run, pairs) in enumerate(found):
        drawing.traces.append({**_over_time(run, pairs, view), **axes(2 * index)})
        drawing.traces.append({**_latest(run, pairs, view), **axes(2 * index + 1)})
    # Names are longer than numbers. Plotly draws twice to make room for them.
    for axis in drawing.all_axes("x"):
        axis["automargin"] = True
    for axis in drawing.all_axes("y"):
        axis |= {"automargin": True, "autorange": "reversed"}
    for index in range(len(found)):
        drawing.axis("x", 2 * index).update(title={"text": X_TITLES[view.x]}, matches="x")
        drawing.axis("x", 2 * index + 1)["type"] = "category"
    drawing.layout["hovermode"] = "closest"
    drawing.layout["modebar"]["orientation"] = "h"  # The colors are beside the axes.
    drawing.layout["coloraxis"] = {
        "colorscale": [*zip((0.0, 0.5, 1.0), THEMES[view.theme].cosines, strict=True)],
        "cmin": -1,
        "cmax": 1,
        "colorbar": {
            "title": {"text": "cosine", "side": "right"},
            "thickness": 12,
            "len": min(1.0, 260 / drawing.layout["height"] * 1.2),
        },
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
        zhoverformat=".3f",
        hovertemplate="%{y}<br>%{x}: %{z}<extra></extra>",
        meta={"run": run.name, "pairs": [list(pair) for pair in pairs.values()]},
    )


def _latest(run: Run, pairs: dict[str, tuple[str, str]], view: View) -> dict[str, Any]:
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
        text=np.array(
            [
                ["" if np.isnan(x) else number(x, ".2f") for x in row]
                for row in matrix.round(2) + 0.0
            ]
        ),
        texttemplate="%{text}" if len(names) <= 12 else "",
        textfont={"color": THEMES[view.theme].ink},
        coloraxis="coloraxis",
        zhoverformat=".3f",
        hovertemplate="%{y} ~ %{x}: %{z}<extra></extra>",
        meta={"run": run.name, "terms": names},
    )
