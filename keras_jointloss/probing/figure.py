"""The figure of a probe: the lengths of the gradients and the cosines between them."""

from typing import Any, Literal

from keras_jointloss.tensorboard.figures import Drawing, View
from keras_jointloss.tensorboard.figures.panels import axes, grid
from keras_jointloss.tensorboard.figures.style import marks, text


def draw(probe: Any, theme: Literal["light", "dark"] = "light") -> Drawing:
    """Returns bars of the weighted lengths and of the cosines, before and after the warm-up."""
    epochs = probe.warmup_epochs
    states = [("untrained", probe.untrained)]
    states += [(f"after {epochs} epoch{'s' * (epochs > 1)}", probe)] * (epochs > 0)
    titles = ["length of the weighted gradient", *["mean cosine"] * bool(probe.cosine)]
    drawing = grid(View(theme=theme), titles, len(titles), spacing=0.12)
    colors = [mark.color for mark in marks([title for title, _ in states]).values()]
    for color, (title, state) in zip(colors, states, strict=True):
        shared: dict[str, Any] = dict(
            type="bar", name=title, legendgroup=title, marker={"color": color}
        )
        lengths = state.lengths()
        drawing.traces.append(
            {
                **shared,
                **axes(0),
                "x": [text(x) for x in state.terms],
                "y": [probe.current_weights[x] * lengths[x] for x in state.terms],
                "hovertemplate": "%{x}: %{y:.4g}<extra>" + title + "</extra>",
            }
        )
        if probe.cosine:
            drawing.traces.append(
                {
                    **shared,
                    **axes(1),
                    "showlegend": False,
                    "x": [f"{text(a)} ~ {text(b)}" for a, b in state.cosine],
                    "y": [*state.cosine.values()],
                    "error_y": {"type": "data", "array": [*state.cosine_error.values()]},
                    "hovertemplate": "%{x}: %{y:.3f}<extra>" + title + "</extra>",
                }
            )
    drawing.axis("y", 0)["type"] = "log"
    drawing.layout.update(barmode="group", hovermode="closest")
    return drawing
