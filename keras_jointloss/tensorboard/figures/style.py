"""Colors, names and backgrounds of the figures."""

import itertools
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

# What tells terms of the same color apart: patterns of areas and symbols of lines.
_PATTERNS = ("", "/", "x", ".", "\\", "+")
_SYMBOLS = ("circle", "square", "diamond", "x", "triangle-up", "star")
#: How runs in the same axes differ, beside their symbols.
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
# Symbols of runs, and their sizes: where runs are equal, one symbol encloses the other.
_RUN_SYMBOLS = (
    *(("circle", 5), ("circle-open", 10), ("diamond-open", 14), ("square-open", 17)),
    *(("triangle-up-open", 11), ("star-open", 13)),
)
_LENGTH = 44


class Mark(NamedTuple):
    """How a term, or what else has a line, is drawn in all figures."""

    color: str
    pattern: str = ""  # The pattern of its areas
    symbol: str = "circle"  # The symbol of its lines
    is_repeated: bool = False  # Whether the symbol is needed: others have the same color
    size: int = 6  # The size of the symbol


def marks(names: Sequence[str], theme: str = "light") -> dict[str, Mark]:
    """Returns how each of the terms is drawn. No other thing has their colors."""
    colors = THEMES[theme].terms
    result = {}
    for index, name in enumerate(sorted(set(names))):
        cycle, color = divmod(index, len(colors))
        cycle %= len(_PATTERNS)
        result[name] = Mark(colors[color], _PATTERNS[cycle], _SYMBOLS[cycle], cycle > 0)
    return result


def shades(names: Sequence[str], color: str, always: bool = False) -> dict[str, Mark]:
    """Returns how names are drawn in the same color, by patterns and symbols.

    The first has none, unless it `always` has a symbol.
    """
    cycle = itertools.cycle(zip(_PATTERNS, _SYMBOLS, strict=True))
    return {x: Mark(color, *next(cycle), always or index > 0) for index, x in enumerate(names)}


def run_marks(names: Sequence[str], theme: str = "light") -> dict[str, Mark]:
    """Returns how each of the runs is drawn where it has no term: by symbols, in one color."""
    color, cycle = THEMES[theme].total, itertools.cycle(_RUN_SYMBOLS)
    return {x: Mark(color, "", symbol, True, size) for x in names for symbol, size in [next(cycle)]}


def number(value: float, form: str = ".4g") -> str:
    """Returns a number as Plotly writes it on axes, with a minus sign and not a hyphen."""
    return f"{value:{form}}".replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def signs(sentence: str) -> str:
    """Returns a sentence with the minus of its numbers as in `number`, and the hyphens of words."""
    return re.sub(r"(?:(?<=^)|(?<=[\s(=])|(?<=\de))-(?=\d)", "\N{MINUS SIGN}", sentence)


def text(name: str) -> str:
    """Returns a name as text for Plotly, which would take tags for markup, in bearable length."""
    name = " ".join("".join(x if x.isprintable() else " " for x in name).split())
    if len(name) > _LENGTH:
        name = f"{name[: _LENGTH - 16]}…{name[-15:]}"
    return name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


class Theme(NamedTuple):
    """The colors of a background, and of what is drawn on it.

    Against `paper`, texts have a contrast of at least 4.5, and lines of at least 3 (WCAG 2.2).
    """

    paper: str
    ink: str
    faint: str
    grid: str
    total: str
    #: The colors of terms, which readers with any color vision can tell apart.
    terms: tuple[str, ...]
    #: The colors of a cosine of -1, 0 and 1. `ink` can be read on all between them.
    cosines: tuple[str, str, str]


THEMES = {
    "light": Theme(
        *("#ffffff", "#212121", "#5f6368", "#e6e6e6", "#111111"),
        ("#0057A8", "#C08800", "#007A5C", "#CC66A6", "#5393E8", "#8A2B12", "#747A1A"),
        ("#EE8079", "#F4F4F4", "#6BA6DC"),
    ),
    "dark": Theme(
        *("#303030", "#f0f0f0", "#bdbdbd", "#4a4a4a", "#ffffff"),
        ("#4A8FE6", "#EFA41C", "#21A885", "#EA9AC2", "#A2DCF5", "#D8622E", "#EFE372"),
        ("#A83634", "#3F3F3F", "#2A659F"),
    ),
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
        "hoverformat": ".4g",  # With it, Plotly writes the minus sign as on the axes.
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
        "margin": {"l": 84, "r": 44, "t": 54, "b": 48},
        "modebar": {
            "orientation": "v",  # Beside the axes, so that it covers no legend.
            **{"color": theme.faint, "activecolor": theme.ink, "bgcolor": "rgba(0, 0, 0, 0)"},
        },
        "hovermode": "x unified",
        "legend": {
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "yanchor": "bottom",
            "y": 1 + 40 / max(height - 102, 1),
            "traceorder": "normal",
            "font": {"color": theme.ink},
        },
        "uirevision": "kept",
    }
