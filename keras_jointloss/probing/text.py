"""A probe as text and as HTML."""

import html
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from keras_jointloss.probing.statistics import State
from keras_jointloss.tensorboard.judgement.finding import guide_file

_TERMS = ("loss", "± loss", "weight", "gradient", "shared", "share", "noise")


class Table(NamedTuple):
    """A table of cells."""

    title: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]  # The name of each row, and its cells


def tables(probe: Any) -> list[Table]:
    """Returns the tables of a probe: of terms and of pairs of terms, for each state."""
    epochs = probe.warmup_epochs
    after = f"after {epochs} epoch{'s' * (epochs > 1)}"
    states = [("untrained", probe.untrained), (after, probe)][: 1 + (epochs > 0)]
    found = [Table(title, ("term", *_TERMS), _terms(probe, state)) for title, state in states]
    if probe.cosine:
        cells = [_pairs(state) for _, state in states]
        heads = [head for title, _ in states for head in (f"cosine, {title}", "conflict")]
        rows = [(name, *(cell for pairs in cells for cell in pairs[name])) for name in cells[-1]]
        found.append(Table("pairs", ("terms", *heads), rows))
    layers = [
        (term, ", ".join(probe.layers[term]), "; ".join(_shared(probe, term)))
        for term in probe.terms
    ]
    return [*found, Table("layers", ("term", "reaches", "shares"), layers)]


def _terms(probe: Any, state: State) -> list[tuple[str, ...]]:
    return [
        (
            x,
            _number(state.loss[x]),
            _number(state.loss_deviation[x]),
            _number(probe.current_weights[x]),
            _number(state.norm[x]),
            _number(state.shared_norm[x]),
            "-" if math.isnan(state.share[x]) else f"{state.share[x]:.1%}",
            _number(state.noise[x]),
        )
        for x in state.terms
    ]


def _pairs(state: State) -> dict[str, tuple[str, str]]:
    return {
        f"{a} ~ {b}": (
            f"{state.cosine[a, b]:.2f} ± {state.cosine_error[a, b]:.2f}",
            "-" if math.isnan(x := state.conflict[a, b]) else f"{x:.0%}",
        )
        for a, b in state.cosine
    }


def _shared(probe: Any, term: str) -> list[str]:
    return [f"{', '.join(x)} with {other}" for other, x in probe.shared_layers[term].items()]


def to_text(probe: Any) -> str:
    """Returns the tables, the faults and the advice as text."""
    blocks = []
    for table in tables(probe):
        rows = [table.heads, *table.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [table.title]
        for name, *cells in rows:
            is_text = table.title == "layers"
            padded = [
                x.ljust(width) if is_text else x.rjust(width)
                for x, width in zip(cells, widths[1:], strict=True)
            ]
            lines.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
        blocks.append("\n".join(lines))
    blocks += [_listed("faults", [x.text for x in probe.faults])] * bool(probe.faults)
    blocks += [_listed("advice", _advice(probe))] * bool(probe.advice)
    return "\n\n".join(blocks)


def _advice(probe: Any) -> list[str]:
    return [f"{x.text} (guide: {guide_file(x.guide)})" for x in probe.advice]


def _listed(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"- {line}" for line in lines)])


def to_html(probe: Any) -> str:
    """Returns the tables, the faults and the advice as HTML."""
    parts = []
    for table in tables(probe):
        heads = "".join(f"<th>{html.escape(x)}</th>" for x in table.heads)
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th>"
            f"{''.join(f'<td>{html.escape(x)}</td>' for x in cells)}</tr>"
            for name, *cells in table.rows
        )
        parts.append(
            f"<table><caption>{html.escape(table.title)}</caption>"
            f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
        )
    for title, lines in (("faults", [x.text for x in probe.faults]), ("advice", _advice(probe))):
        items = "".join(f"<li>{html.escape(x)}</li>" for x in lines)
        parts.append(f"<p><b>{title}</b></p><ul>{items}</ul>" if lines else "")
    return "".join(parts)


def _number(x: float) -> str:
    if math.isnan(x):
        return "-"
    is_fixed = x == 0 or 0.01 <= abs(x) < 1e5
    return f"{x:.3f}" if is_fixed else f"{x:.2e}"
