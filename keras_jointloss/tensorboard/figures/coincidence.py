"""Shows all the lines where several of them lie on each other, such as equal weights."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

#: Lines that differ by less, relative to their values, look like one.
_VISIBLE = 2e-3
#: The length in pixels of the piece of a line that is seen before the next line has its turn.
_PIECE = 12


def shared_stretches(traces: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yields traces that repeat the stretches where a line is hidden by later ones, in pieces.

    So lines that are equal look like one of alternating colors. Lines with dashes, as of runs that
    differ by them, are left alone.
    """
    lines = [x for x in traces if x["line"]["dash"] == "solid" and len(x["x"]) > 1]
    if len(lines) < 2 or any(len(x["x"]) != len(lines[0]["x"]) for x in lines):
        return
    values = np.stack([x["y"] for x in lines])
    same_x = np.stack([x["x"] for x in lines]) == lines[0]["x"]
    # From the top to the bottom, so that each is seen in its pieces.
    for index in range(len(lines) - 2, -1, -1):
        close = np.isclose(values, values[index], _VISIBLE, 0.0) & same_x & same_x[index]
        hidden = close[index + 1 :].any(axis=0)
        stretch = hidden[:-1] & hidden[1:]
        shown = np.append(stretch, False) | np.append(False, stretch)
        if not shown.any():
            continue
        above = int(close[index + 1 :, shown].sum(axis=0).max())
        below = int(close[:index, shown].sum(axis=0).max(initial=0))
        line = lines[index]
        yield {
            **line,
            "y": np.where(shown, values[index], np.nan),
            "mode": "lines",
            "line": {**line["line"], "dash": f"{(below + 1) * _PIECE}px,{above * _PIECE}px"},
            "showlegend": False,
            "hoverinfo": "skip",
            "hovertemplate": None,
            "meta": {"shared": line["meta"]["term"]},
        }
