"""The figure of one final value against another over many runs."""

from collections.abc import Sequence

import numpy as np

from keras_jointloss._core.validation import invalid
from keras_jointloss.tensorboard.figures.panels import Drawing, grid, nothing
from keras_jointloss.tensorboard.figures.style import THEMES, marks, text
from keras_jointloss.tensorboard.figures.view import View
from keras_jointloss.tensorboard.runs import SPLITS, Run, find_terms, is_larger_better, term_tag


def pareto(runs: Sequence[Run], view: View) -> Drawing:
    """Returns the final value `a` against `b` of each run, with the Pareto front."""
    a, b = view.a, view.b
    if a is None or b is None:
        # The first two terms of the runs that have not been asked for.
        rest = [term for term in view.shown_terms(runs) if term not in (a, b)]
        if len(rest) < (a is None) + (b is None):
            raise nothing("two terms to compare")
        a = a or rest.pop(0)
        b = b or rest.pop(0)
    tags = [_resolve(name, runs, argument) for name, argument in ((a, "a"), (b, "b"))]
    found = [(run, [_final(run, *tag) for tag in tags]) for run in runs]
    shown = [(run, pair) for run, pair in found if np.isfinite(pair).all()]
    if not shown:
        raise nothing(f"runs with final values of both {a!r} and {b!r}")
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
            hoverinfo="skip",
            meta={"front": [shown[i][0].name for i in front]},
        )
    )
    own = marks([run.name for run in runs])
    for run, pair in shown:
        mark = own[run.name]
        drawing.traces.append(
            dict(
                type="scatter",
                x=[pair[0]],
                y=[pair[1]],
                mode="markers",
                name=text(run.name),
                marker={
                    "size": 11,
                    "color": mark.color,
                    "symbol": mark.symbol,
                    "line": {"width": 1, "color": theme.paper},
                },
                hovertemplate="%{x:.4g}, %{y:.4g}",
                meta={"run": run.name},
            )
        )
    for letter, tag, is_up in zip("xy", tags, larger, strict=True):
        name = text(f"{_words(*tag)}{' (larger is better)' if is_up else ''}")
        axis = drawing.axis(letter, 0)
        axis |= {"title": {"text": name}, "type": view.scale or "linear"}
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
