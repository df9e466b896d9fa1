"""Colors, names and backgrounds of the figures."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

# Okabe & Ito, 2008, Color Universal Design, with the yellow darker so that a line shows on white.
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#B8A400")
# What tells terms of the same color apart: patterns of areas and symbols of lines.
_PATTERNS = ("", "/", "x", ".", "\\", "+")
_SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star")
#: How runs in the same axes differ.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_LENGTH = 44


class Mark(NamedTuple):
    """How a term is drawn in all figures."""

    color: str
    pattern: str  # The pattern of its areas
    symbol: str  # The symbol of its lines, which is drawn only if the color alone is not enough
    is_repeated: bool  # Whether another term has the same color


def marks(names: Sequence[str]) -> dict[str, Mark]:
    """Returns how each of the names is drawn."""
    result = {}
    for index, name in enumerate(sorted(set(names))):
        cycle, color = divmod(index, len(_COLORS))
        cycle %= len(_PATTERNS)
        result[name] = Mark(_COLORS[color], _PATTERNS[cycle], _SYMBOLS[cycle], cycle > 0)
    return result


def shades(names: Sequence[str], color: str) -> dict[str, Mark]:
    """Returns how names are drawn in the same color, by patterns."""
    cycle = itertools.cycle(zip(_PATTERNS, _SYMBOLS, strict=True))
    return {x: Mark(color, *next(cycle), index > 0) for index, x in enumerate(names)}


def text(name: str) -> str:
    """Returns a name as text for Plotly, which would take tags for markup, in bearable length."""
    name = " ".join("".join(x if x.isprintable() else " " for x in name).split())
    if len(name) > _LENGTH:
        name = f"{name[: _LENGTH - 16]}…{name[-15:]}"
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class Theme(NamedTuple):
    """The colors of a background, and of what is drawn on it."""

    paper: str
    ink: str
    faint: str
    grid: str
    total: str


THEMES = {
    "light": Theme("#ffffff", "#212121", "#6b6b6b", "#e6e6e6", "#111111"),
    "dark": Theme("#303030", "#f0f0f0", "#b5b5b5", "#4a4a4a", "#ffffff"),
}


def layout(theme: Theme, height: int) -> dict[str, Any]:
    """Returns the layout that all figures share."""
    axis = {
        "gridcolor": theme.grid,
        "zerolinecolor": theme.grid,
        "linecolor": theme.faint,
        "tickfont": {"color": theme.faint},
        "title": {"font": {"color": theme.faint, "size": 12}, "standoff": 8},
        "exponentformat": "e",
        "ticklabeloverflow": "allow",  # Else Plotly measures each label, and lays out anew for it.
    }
    template = {
        "layout": {
            "font": {"family": "Roboto, system-ui, sans-serif", "size": 12, "color": theme.ink},
            "paper_bgcolor": theme.paper,
            "plot_bgcolor": theme.paper,
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {
                "bgcolor": theme.paper,
                "bordercolor": theme.faint,
                "font": {"color": theme.ink, "size": 12},
                "namelength": -1,
            },
        }
    }
    return {
        "template": template,
        "height": height,
        "margin": {"l": 84, "r": 44, "t": 44, "b": 48},
        "modebar": {"orientation": "v"},  # Beside the axes, so that it covers no legend.
        "hovermode": "x unified",
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "yanchor": "bottom",
            "y": 1 + 34 / max(height - 92, 1),
            "traceorder": "normal",
            "font": {"color": theme.ink},
        },
        "uirevision": "kept",
    }
