"""Draws the figures of the dashboard in a notebook or a file."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from keras_jointloss._core.validation import invalid
from keras_jointloss.tensorboard.history import from_history
from keras_jointloss.tensorboard.read import read_runs
from keras_jointloss.tensorboard.runs import Run

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Kind: TypeAlias = Literal[
    "terms", "losses", "weights", "readings", "gradients", "cosines", "retrieval", "pareto"
]


def plot(source: Any, kind: Kind = "terms", **options: Any) -> "Figure":
    """Returns a figure of a training, or of several to compare them.

    It needs Plotly: `pip install "keras-jointloss[dashboard]"`. A notebook shows the figure;
    `write_html` writes it to a file, and `write_image` too, where the package kaleido is installed.

    Kinds:

    - `"terms"`: the weighted losses of the terms, stacked, and their total,
    - `"losses"`: the raw losses, on a logarithmic axis if all are positive,
    - `"weights"`: the weights; from a `log_dir`, also the rest of each schedule, dashed,
    - `"readings"`: what else terms report, such as a temperature, a bias or a noise,
    - `"gradients"`: norms and coefficients of the gradients, and how often they conflict,
    - `"cosines"`: the cosines between gradients over time, and the latest as a matrix,
    - `"retrieval"`: the recalls of `RetrievalEvaluation` in both directions,
    - `"pareto"`: the final value `a` of two runs or more against `b`, with the Pareto front.

    Args:
        source: What `fit` returned with a `JointLossCallback`, its `history` dict, a `log_dir` with
            one run or many, or a list of these. A dict of these by name is a list with names. Or
            what `keras_jointloss.probe` returned: its lengths and cosines, with the option `theme`.
        kind: The kind of the figure.
        **options: `terms`: the names of the terms to show, all by default. `compare`: `"rows"`,
            each run in a row of its own, or `"overlay"`. `ranges`: in rows, `"run"` for y axes that
            suit each run, or `"shared"`. `events=False`: no marks of the ends of schedules, of
            terms switched off and of faults that `kj.diagnose` finds. `x`: `"step"`, `"epoch"` or
            `"time"`, minutes; by default `"epoch"` if a history is among the sources, else
            `"step"`. `smoothing`: the factor, at least 0 and less than 1, of an exponential moving
            average. `share=True`: shares of the total in `"terms"`. `splits`: `"train"` and
            `"validation"` by default, in a sequence. `scale`: `"linear"` or `"log"`. `theme`:
            `"light"` or `"dark"`. `a`, `b`: for `"pareto"`, on the horizontal and the vertical
            axis, the names of terms, which stand for their raw loss (in validation, if there is
            any), or of any logged value, such as `"validation/joint_loss/total"`; the first two
            terms by default. `points`: the number of points to draw of a line at most, about.
            `columns`: that of axes side by side at most.

    Returns:
        A `plotly.graph_objects.Figure`.

    Raises:
        ImportError: If Plotly is not installed.
        ValueError: If an argument is invalid, or the runs have nothing to show in this kind.

    Example:

    >>> history = {
    ...     "loss": [2.0, 1.5],
    ...     "label_loss": [1.5, 1.0], "label_weight": [1.0, 1.0], "label_share": [0.75, 0.6],
    ...     "pair_loss": [5.0, 6.0], "pair_weight": [0.1, 0.1], "pair_share": [0.25, 0.4],
    ... }
    >>> [trace.name for trace in plot(history).data]
    ['label', 'pair', 'total']
    """
    if importlib.util.find_spec("plotly") is None:
        raise ImportError(
            "`plot` needs Plotly. Install it with: pip install 'keras-jointloss[dashboard]'"
        )
    if hasattr(source, "to_figure"):
        return source.to_figure(**options)
    from keras_jointloss.tensorboard.figures import View, draw

    pairs = collect(source)
    runs, has_history = [run for run, _ in pairs], any(_is_history(part) for _, part in pairs)
    try:
        view = View(**{"x": "epoch" if has_history else "step", **options})
    except TypeError:
        known = [name for name in View.__dataclass_fields__ if name != "palette"]
        raise invalid("options", f"some of {known}", received=str(sorted(options))) from None
    return draw(kind, runs, view).figure()


def collect(source: Any) -> list[tuple[Run, Any]]:
    """Returns the runs of a source, each with the part of the source that has it."""
    named = isinstance(source, Mapping) and all(
        isinstance(x, str | os.PathLike) or _is_history(x) for x in source.values()
    )
    if named and source:
        parts = list(source.items())
    elif isinstance(source, Sequence) and not isinstance(source, str | bytes):
        parts = [("", part) for part in source]
    else:
        parts = [("", source)]
    runs: list[Run] = []
    sources: list[Any] = []
    histories = [part for _, part in parts if _is_history(part)]
    for position, (name, part) in enumerate(parts):
        if isinstance(part, str | os.PathLike):
            found = read_runs(part)
            if name:
                found = [
                    replace(x, name=name if len(found) == 1 else f"{name}/{x.name}") for x in found
                ]
        elif _is_history(part):
            default = "run" if len(histories) == 1 else f"run {position + 1}"
            found = [from_history(part, name or default)]
        else:
            raise invalid(
                "source",
                "what `fit` returned, its `history`, a folder, or a list or dict of these",
                part,
            )
        runs += found
        sources += [part] * len(found)
    return list(zip(_with_distinct_names(runs), sources, strict=True))


def _is_history(part: Any) -> bool:
    return isinstance(getattr(part, "history", part), Mapping)


def _with_distinct_names(runs: list[Run]) -> list[Run]:
    """Returns the runs, with a number after a name that an earlier one has."""
    seen: dict[str, int] = {}
    result = []
    for run in runs:
        seen[run.name] = count = seen.get(run.name, 0) + 1
        result.append(run if count == 1 else replace(run, name=f"{run.name} ({count})"))
    return result
