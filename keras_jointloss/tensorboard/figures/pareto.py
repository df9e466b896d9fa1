"""The figure of one final value against another over many runs."""

from collections.abc import Sequence

import numpy as np

from keras_jointloss._core.validation import invalid
from keras_jointloss.tensorboard.figures.panels import Drawing, NothingToShowError, grid
from keras_jointloss.tensorboard.figures.style import THEMES, run_marks, text
from keras_jointloss.tensorboard.figures.view import View
from keras_jointloss.tensorboard.runs import SPLITS, Run, find_terms, is_larger_better, term_tag

#: The names of more runs would cover each other: then they show when the pointer is on a run.
_MOST_NAMES = 12


def pareto(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the final value `a` against `b` of each run, with the Pareto front."""
    a, b = view.a, view.b
    if a is None or b is None:
        # The first two terms of the runs that have not been asked for.
        rest = [term for term in view.shown_terms(runs) if term not in (a, b)]
        if len(rest) < (a is None) + (b is None):
            raise NothingToShowError(
                "The runs have no two terms to compare. Choose more terms, or other values for "
                "the horizontal and the vertical axis, which are `a` and `b` of `kj.plot`."
            )
        a = a or rest.pop(0)
        b = b or rest.pop(0)
    tags = [_resolve(name, runs, argument) for name, argument in ((a, "a"), (b, "b"))]
    found = [(run, [_final(run, *tag) for tag in tags]) for run in runs]
    shown = [(run, pair) for run, pair in found if np.isfinite(pair).all()]
    if not shown:
        raise NothingToShowError(f"The runs have no final values of both {a!r} and {b!r}.")
    if len(runs) < 2:
        raise NothingToShowError(
            "This figure compares the final values of runs, and needs two of them or more: choose "
            "another run, or train once more with another log_dir."
        )
    if len(shown) < 2:
        raise NothingToShowError(
            f"Only the run {shown[0][0].name!r} has final values of both {a!r} and {b!r}: this "
            "figure needs two runs that have them."
        )
    points = np.array([pair for _, pair in shown])
    larger = [is_larger_better(name) for _, name in tags]
    front = pareto_front(np.where(larger, -points, points))
    drawing = grid(view, [""], 1, height=460)
    theme = THEMES[view.theme]
    drawing.traces.append(
        dict(
            type="scatter",
            x=points[front, 0],
            y=points[front, 1],
            mode="lines",
            name="Pareto front",
            line={"color": theme.faint, "width": 1.5, "dash": "dash"},
            showlegend=len(front) > 1,
            hoverinfo="skip",
            meta={"front": [shown[i][0].name for i in front]},
        )
    )
    # No colors, which are those of terms: symbols, and names beside them.
    own = run_marks([run.name for run in runs], view.theme)
    is_named = len(shown) <= _MOST_NAMES
    for run, pair in shown:
        drawing.traces.append(
            dict(
                type="scatter",
                x=[pair[0]],
                y=[pair[1]],
                mode="markers+text" if is_named else "markers",
                name=text(run.name),
                text=[f"\N{EN SPACE}{text(run.name)}\N{EN SPACE}"],  # Not on the symbol.
                textposition="middle right" if pair[0] <= points[:, 0].mean() else "middle left",
                textfont={"color": theme.ink},
                marker={
                    "size": 11,
                    "color": own[run.name].color,
                    "symbol": own[run.name].symbol,
                    "line": {"width": 1.5},
                },
                cliponaxis=False,
                hovertemplate="%{x}, %{y}",
                meta={"run": run.name},
            )
        )
    for letter, tag, is_up in zip("xy", tags, larger, strict=True):
        name = text(f"{_words(*tag)}{' (larger is better)' if is_up else ''}")
        axis = drawing.axis(letter, 0)
        axis |= {"title": {"text": name}, "type": view.scale or "linear"}
        if (points[:, "xy".index(letter)] >= 0).all():
            axis["rangemode"] = "nonnegative"
    drawing.layout["hovermode"] = "closest"
    return drawing


def pareto_front(points: np.ndarray) -> list[int]:
    """Returns the indices of the points that no other point beats, by the first coordinate.

    A point beats another one if it is smaller in one coordinate and not larger in any.

    Args:
        points: `(points, 2)`.

    Example:

    >>> pareto_front(np.array([[1.0, 3.0], [2.0, 2.0], [3.0, 2.0], [3.0, 1.0]]))
    [0, 1, 3]
    """
    front: list[int] = []
    best = np.inf
    # By the first coordinate, then the second: what follows is on the front only if it is lower.
    for index in np.lexsort((points[:, 1], points[:, 0])):
        tied = front and np.array_equal(points[index], points[front[-1]])
        if points[index, 1] < best or tied:
            front.append(int(index))
            best = points[index, 1]
    return front


def value_names(runs: Sequence[Run]) -> list[str]:
    """Returns the names that `a` and `b` may have: terms, and tags after their split."""
    tags = {f"{split}/{tag}" for run in runs for split in SPLITS for tag in run.split(split)}
    return [*find_terms(runs), *sorted(tags)]


def _resolve(name: str, runs: Sequence[Run], argument: str) -> tuple[str, str]:
    """Returns the split and the tag of a value: of a term, its raw loss, of validation if any."""
    splits = ("validation", "train")
    if name in find_terms(runs):
        candidates = [(split, term_tag(name, "raw")) for split in splits]
    else:
        split, _, tag = name.partition("/")
        candidates = [(split, tag)] if split in SPLITS else [(split, name) for split in splits]
    for split, tag in candidates:
        if any(tag in run.split(split) for run in runs):
            return split, tag
    raise invalid(argument, f"one of {value_names(runs)}", name)


def _final(run: Run, split: str, tag: str) -> float:
    series = run.split(split).get(tag)
    return float(series.values[-1]) if series is not None and len(series.values) else np.nan


def _words(split: str, tag: str) -> str:
    return f"{tag.removeprefix('joint_loss/').replace('/raw', ' loss')}, {split}, final"
