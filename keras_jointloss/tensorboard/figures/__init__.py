"""Figures of a training, as pure functions from its values to figures of Plotly.

Each takes a sequence of `keras_jointloss.tensorboard.runs.Run` and a `View`, and returns a
`Drawing`: on demand a `plotly.graph_objects.Figure` or its JSON. They serve `keras_jointloss.plot`
and the tab in TensorBoard.
"""

from collections.abc import Sequence

from keras_jointloss._core.validation import invalid
from keras_jointloss.tensorboard.figures.cosines import cosines
from keras_jointloss.tensorboard.figures.events import mark_events
from keras_jointloss.tensorboard.figures.lines import (
    gradients,
    losses,
    readings,
    retrieval,
    weights,
)
from keras_jointloss.tensorboard.figures.panels import Drawing, NothingToShowError
from keras_jointloss.tensorboard.figures.pareto import pareto
from keras_jointloss.tensorboard.figures.terms import terms
from keras_jointloss.tensorboard.figures.view import View
from keras_jointloss.tensorboard.runs import Run

__all__ = ["KINDS", "Drawing", "NothingToShowError", "View", "draw"]

#: The functions by kind.
KINDS = {
    "terms": terms,
    "losses": losses,
    "weights": weights,
    "readings": readings,
    "gradients": gradients,
    "cosines": cosines,
    "retrieval": retrieval,
    "pareto": pareto,
}


def draw(kind: str, runs: Sequence[Run], view: View) -> Drawing:
    """Returns the figure of a kind.

    Raises `ValueError` if the kind is unknown, an argument is invalid, or there is nothing to show.
    """
    if kind not in KINDS:
        raise invalid("kind", f"one of {tuple(KINDS)}", kind)
    if not runs:
        raise ValueError("There is no run to show.")
    drawing = KINDS[kind](runs, view)
    return drawing if kind in ("cosines", "pareto") else mark_events(drawing, runs, view)
