"""Arranges the axes of a figure, and draws lines into them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go
import plotly.io

from keras_jointloss.tensorboard._sampling import smooth, thin
from keras_jointloss.tensorboard.figures.coincidence import shared_stretches
from keras_jointloss.tensorboard.figures.style import THEMES, Mark, layout, number, text
from keras_jointloss.tensorboard.figures.view import View
from keras_jointloss.tensorboard.runs import Run, Series

_HEIGHT = 270
#: The number of points that a page draws without delay.
_MOST_POINTS = 12_000
_FEWEST_POINTS = 60
#: Plotly adds to the range: up to this ratio of the values, it is less than a decade.
_PART_OF_DECADE = 7.0
#: The titles of x axes.
X_TITLES = {"step": "step", "epoch": "epoch", "time": "minutes"}


class Line(NamedTuple):
    """A line of a panel."""

    run: Run
    series: Series  # The points
    name: str  # The name of the term, or of what else it shows
    mark: Mark  # How it is drawn
    note: str = ""  # What tells it from a line of the same name in the same panel
    dash: str = "solid"
    #: How its run is drawn, where several share the axes.
    of_run: Mark | None = None
    #: Facts for programs that read the figure.
    extra: dict[str, Any] = {}  # noqa: RUF012

    @property
    def symbol(self) -> Mark:
        """What the symbol says: which term, if the color alone does not, or else which run."""
        return self.of_run if self.of_run and not self.mark.is_repeated else self.mark

    def changed(self, **fields: Any) -> "Line":
        """Returns the line with other values of some fields."""
        return Line(**{**dict(zip(Line.__annotations__, self, strict=True)), **fields})


class Panel(NamedTuple):
    """The content of a pair of axes."""

    title: str  # The words above it
    lines: list[Line]
    y: str = ""  # The title of the y axis
    scale: str = "linear"  # `"linear"` or `"log"`
    group: str = ""  # Panels of the same group have the same range of y

    def changed(self, **fields: Any) -> "Panel":
        """Returns the panel with other values of some fields."""
        return Panel(**{**dict(zip(Panel.__annotations__, self, strict=True)), **fields})


class Drawing(NamedTuple):
    """A figure as Plotly's script reads it: to validate it takes longer than to make it."""

    layout: dict[str, Any]  # The axes, titles and colors
    traces: list[dict[str, Any]]  # The lines, areas and heat maps

    def axis(self, letter: str, index: int) -> dict[str, Any]:
        """Returns the x or y axis of a panel."""
        return self.layout[_long(axes(index)[f"{letter}axis"])]

    def all_axes(self, letter: str) -> list[dict[str, Any]]:
        """Returns all x or y axes."""
        return [axis for name, axis in self.layout.items() if name.startswith(f"{letter}axis")]

    def as_percent(self) -> "Drawing":
        """Returns the figure with y axes in percent."""
        for axis in self.all_axes("y"):
            axis["tickformat"] = ".0%"
        return self

    def figure(self) -> go.Figure:
        """Returns the figure, validated."""
        return go.Figure(self.traces, self.layout)

    def to_json(self) -> str:
        """Returns the JSON of the figure."""
        content = {"data": self.traces, "layout": self.layout}
        return plotly.io.to_json(content, validate=False)


def grid(
    view: View, titles: Sequence[str], columns: int, height: int = _HEIGHT, spacing: float = 0.09
) -> Drawing:
    """Returns an empty figure with a pair of axes for each title, `spacing` of its width apart."""
    rows = max(1, -(-len(titles) // columns))
    total = rows * height + 120
    theme = THEMES[view.theme]
    right = spacing if columns > 1 else 0.0
    below = min(82 / total, 0.9 / rows) if rows > 1 else 0.0
    width, depth = (1 - right * (columns - 1)) / columns, (1 - below * (rows - 1)) / rows
    drawing = Drawing({**layout(theme, total), "annotations": []}, [])
    for index, title in enumerate(titles):
        row, column = divmod(index, columns)
        left, top = column * (width + right), 1 - row * (depth + below)
        x, y = axes(index).values()
        sides, ends = (left, left + width), (top - depth, top)
        drawing.layout[_long(x)] = {"anchor": y, "domain": [round(side, 6) for side in sides]}
        drawing.layout[_long(y)] = {"anchor": x, "domain": [round(end, 6) for end in ends]}
        drawing.layout["annotations"].append(
            {
                "text": f"<b>{title}</b>" if title else "",
                "font": {"size": 13, "color": theme.ink},
                "x": left + width / 2,
                "y": top,
                "xref": "paper",
                "yref": "paper",
                "xanchor": "center",
                "yanchor": "bottom",
                "showarrow": False,
            }
        )
    return drawing


def axes(index: int) -> dict[str, str]:
    """Returns the names of the axes of a panel, for a trace."""
    suffix = "" if index == 0 else str(index + 1)
    return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}


def _long(name: str) -> str:
    """Returns the name in the layout of an axis that is called `y2`."""
    return f"{name[0]}axis{name[1:]}"


def draw_panels(panels: Sequence[Panel], view: View, columns: int) -> Drawing:
    """Returns a figure of panels of lines."""
    panels = [panel for panel in panels if panel.lines]
    columns = min(columns, view.columns, len(panels))
    drawing = grid(view, [panel.title for panel in panels], columns)
    limit = point_limit(view, sum(len(panel.lines) for panel in panels))
    named: set[str] = set()
    firsts: dict[str, str] = {}
    for index, panel in enumerate(panels):
        traces = [_trace(line, view, limit) for line in panel.lines]
        for line, trace in zip(panel.lines, traces, strict=True):
            # The first in the legend says no more than the name: `_key` explains the others.
            trace["showlegend"] = not line.note and line.name not in named
            named |= {line.name} if trace["showlegend"] else set()
        for trace in [*traces, *shared_stretches(traces)]:
            drawing.traces.append({**trace, **axes(index)})
        axis, own = drawing.axis("y", index), axes(index)["yaxis"]
        same = [x for x in panels if x.group == panel.group] if panel.group else [panel]
        axis |= {"title": {"text": panel.y}, "type": panel.scale, **_range(same, panel.scale)}
        match = firsts.setdefault(panel.group or str(index), own)
        if match != own:
            axis["matches"] = match
    finish_x_axes(drawing, view)
    drawing.traces.extend(_key(panels, view, named))
    return drawing


def finish_x_axes(drawing: Drawing, view: View) -> None:
    """Names the x axes and lets them move together."""
    bottom = {}
    for axis in drawing.all_axes("x"):  # Row by row, from the top.
        axis["matches"] = "x"
        bottom[tuple(axis["domain"])] = axis
    for axis in bottom.values():
        axis["title"] = {"text": X_TITLES[view.x]}


def point_limit(view: View, lines: int) -> int:
    """Returns how many points to draw of each of so many lines."""
    return max(_FEWEST_POINTS, min(view.points, _MOST_POINTS // max(lines, 1)))


class NothingToShowError(ValueError):
    """The runs have no values of the kind that a figure shows."""


def _trace(line: Line, view: View, limit: int) -> dict[str, Any]:
    series = line.series.without_restarts()
    values = smooth(series.values, view.smoothing)
    keep = thin(values[None], limit)
    x = line.run.positions(series.at(keep), view.x)
    mark, symbol, is_short = line.mark, line.symbol, len(keep) < 25
    return dict(
        type="scatter",
        x=x,
        y=values[keep],
        name=text(f"{line.name}{f' ({line.note})' if line.note else ''}"),
        mode="lines+markers" if is_short or symbol.is_repeated else "lines",
        line={"color": mark.color, "width": 2, "dash": line.dash},
        marker={
            "size": symbol.size,
            "symbol": symbol.symbol,
            "maxdisplayed": 0 if is_short else 8,
        },
        cliponaxis=False,  # A symbol at 0 is whole.
        legendgroup=line.name,
        hovertemplate="%{y}",
        meta={"run": line.run.name, "term": line.name, **line.extra},
    )


def _key(panels: Sequence[Panel], view: View, named: set[str]) -> list[dict[str, Any]]:
    """Returns entries of the legend: names it still lacks, and what dashes and symbols mean."""
    lines = [line for panel in panels for line in panel.lines]
    faint = THEMES[view.theme].faint
    entries = {}
    for line in lines:
        if line.name not in named:
            looks = {"line": {"color": line.mark.color, "width": 2}}
            if line.mark.is_repeated:
                looks |= _with_symbol(line.mark, line.mark.color)
            entries[line.name] = key_entry(line.name, legendgroup=line.name, **looks)
    for line in lines:
        if not line.note:
            continue
        looks = {"line": {"color": faint, "dash": line.dash, "width": 2}}
        if line.of_run and line.symbol is line.of_run:
            looks |= _with_symbol(line.of_run, faint)
        key = f"key {line.note}"
        entries[key] = key_entry(line.note, legendgroup=key, **looks)
    return [*entries.values()]


def _with_symbol(mark: Mark, color: str) -> dict[str, Any]:
    marker = {"color": color, "symbol": mark.symbol, "size": mark.size}
    return {"mode": "lines+markers", "marker": marker}


def key_entry(name: str, **looks: Any) -> dict[str, Any]:
    """Returns an entry of the legend that stands for no line of its own."""
    return {
        "type": "scatter",
        "x": [None],
        "y": [None],
        "mode": "lines",
        "name": text(name),
        "hoverinfo": "skip",
        "meta": {"key": name},
        **looks,
    }


def _range(panels: Sequence[Panel], scale: str) -> dict[str, Any]:
    """Returns the range and the ticks of an axis that these panels share."""
    values = np.concatenate([line.series.values for panel in panels for line in panel.lines])
    values = values[np.isfinite(values)]
    if scale == "log":
        return _log_ticks(values)
    if (values < 0).any():
        return {}
    # Nothing below 0, where no value can be; weights are compared with 0.
    return {"rangemode": "tozero" if panels[0].y == "weight" else "nonnegative"}


def _log_ticks(values: np.ndarray) -> dict[str, Any]:
    """Returns the ticks of a logarithmic axis: decades, or 1, 2 and 5 within each if they are few.

    Plotly would write the latter as single digits, 2 and 5 between 0.1 and 1. Within a decade, it
    has ticks on a linear scale.
    """
    values = values[values > 0]
    if not values.size or values.max() > 2000 * values.min():
        return {"dtick": 1}
    if values.max() < _PART_OF_DECADE * values.min():
        return {}
    decades = range(
        math.floor(math.log10(values.min())) - 1, math.ceil(math.log10(values.max())) + 2
    )
    texts = [f"{digit}e{decade}" for decade in decades for digit in (1, 2, 5)]
    return {"tickvals": [float(x) for x in texts], "ticktext": [number(float(x)) for x in texts]}


def can_be_log(panels: Iterable[Panel]) -> bool:
    """Returns whether all values are positive."""
    values = [line.series.values for panel in panels for line in panel.lines]
    return all(not np.any(x <= 0) for x in values)
