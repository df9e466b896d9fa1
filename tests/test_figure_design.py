"""What a reader sees in the figures: colors, ranges, legends, equal lines and events."""

import itertools
import re
from importlib import resources

import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.tensorboard.events import events_of
from keras_jointloss.tensorboard.figures.style import THEMES, marks, number, run_marks, signs
from keras_jointloss.tensorboard.read import read_runs
from keras_jointloss.tensorboard.runs import Run, Series
from tests.dashboard_logs import ENDS, write_runs
from tests.judged_logs import falling, logs_of
from tests.test_figures import HISTORY, trace, traces
from tests.training_logs import write_scalars

pytestmark = pytest.mark.backend("torch")
PAGE = resources.files("keras_jointloss.tensorboard") / "page"


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """Returns the folder of three runs: see `tests/dashboard_logs.py`."""
    folder = tmp_path_factory.mktemp("logs")
    write_runs(folder)
    return str(folder)


# --- Colors.


def luminance(color):
    """Returns the relative luminance of a color (WCAG 2.2)."""
    channels = np.array([*bytes.fromhex(color[1:])]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(first, second):
    """Returns the contrast ratio of two colors, from 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_the_standard():
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


def css_colors(theme):
    """Returns the colors that the style sheet of the page declares for a theme."""
    sheet = (PAGE / "page.css").read_text()
    light, dark = re.findall(r":root(?:\.dark)? \{(.*?)\}", sheet, re.DOTALL)
    pairs = re.findall(r"--([a-z]+): (#[0-9a-f]{6})", light if theme == "light" else dark)
    return dict(pairs)


@pytest.mark.parametrize("theme", THEMES)
def test_texts_have_a_contrast_of_4_5_and_lines_of_3(theme):
    figure, page = THEMES[theme], css_colors(theme)
    assert figure.paper == page["paper"]
    for name in ("ink", "faint", "dim", "accent", "error"):
        assert contrast(page[name], page["paper"]) >= 4.5, name
    assert contrast(page["ink"], page["soft"]) >= 4.5
    assert contrast(page["ink"], page["warn"]) >= 4.5
    assert contrast(page["edge"], page["paper"]) >= 3
    for color in (figure.ink, figure.faint):
        assert contrast(color, figure.paper) >= 4.5, color
    for color in (*figure.terms, figure.total):
        assert contrast(color, figure.paper) >= 3, color


@pytest.mark.parametrize("theme", THEMES)
def test_numbers_can_be_read_on_all_colors_of_cosines(theme):
    ends = np.array([[*bytes.fromhex(x[1:])] for x in THEMES[theme].cosines], float)
    for at in np.linspace(-1, 1, 41):
        channels = [round(np.interp(at, [-1, 0, 1], channel)) for channel in ends.T]
        color = "#" + bytes(channels).hex()
        assert contrast(THEMES[theme].ink, color) >= 4.5, (at, color)
    # The middle is near the background: what has no conflict does not shine.
    assert contrast(THEMES[theme].cosines[1], THEMES[theme].paper) < 1.3


@pytest.mark.parametrize("theme", THEMES)
def test_a_color_is_of_one_term_and_of_nothing_else(theme):
    colors = {x.lower() for x in THEMES[theme].terms}
    assert len(colors) == len(THEMES[theme].terms)
    assert all(x.color not in THEMES[theme].terms for x in run_marks("xyz", theme).values())
    assert len({(x.symbol, x.size) for x in run_marks("uvwxyz").values()}) == 6
    runs = {"x": HISTORY, "y": {**HISTORY, "val_a_loss": [1.5, 1.3]}}
    pareto = traces(kj.plot(runs, "pareto", theme=theme), run="x")[0]
    conflict = trace(kj.plot(HISTORY, "gradients", theme=theme), tag="gradients/conflict")
    assert pareto.marker.color == conflict.line.color == THEMES[theme].total
    # A search among the embeddings of a term has the color of the term.
    history = {**HISTORY, "c_a_to_b_recall_at_1": [0.1, 0.3], "a_b_a_to_b_recall_at_5": [0.1, 0.2]}
    figure = kj.plot(history, "retrieval", theme=theme)
    first, fifth = traces(figure, term="a_b R@1")[0], traces(figure, term="a_b R@5")[0]
    assert first.line.color == fifth.line.color == marks(["a", "a_b"], theme)["a_b"].color
    assert first.marker.symbol != fifth.marker.symbol
    assert first.line.dash != fifth.line.dash
    assert traces(figure, term="c R@1")[0].line.color == THEMES[theme].total


# --- Axes.


def test_each_run_has_its_own_range_of_y_unless_it_is_shared(logs):
    for kind in ("terms", "losses", "weights", "retrieval"):
        figures = {x: kj.plot(logs, kind, ranges=x) for x in ("run", "shared")}
        own, shared = (
            {f"y{i + 1 if i else ''}": axis.matches for i, axis in enumerate(x.select_yaxes())}
            for x in figures.values()
        )
        of_base = {x.yaxis for x in traces(figures["run"], run="base")}
        of_light = {x.yaxis for x in traces(figures["run"], run="light")}
        assert {own[x] for x in of_light}.isdisjoint(of_base), kind
        assert any(shared[x] in of_base for x in of_light), kind
    # In one run, the axes of the same quantity have the same range.
    figure = kj.plot(logs)
    assert trace(figure, run="light", split="validation", term="mood").yaxis == "y4"
    assert figure.layout.yaxis4.matches == "y3"


def test_no_axis_goes_below_0_where_no_value_does():
    assert kj.plot(HISTORY).layout.yaxis.rangemode == "nonnegative"
    assert kj.plot(HISTORY, "losses", scale="linear").layout.yaxis.rangemode == "nonnegative"
    assert kj.plot(HISTORY, "weights").layout.yaxis.rangemode == "tozero"
    figure = kj.plot({"x": HISTORY, "y": HISTORY}, "pareto")
    assert {figure.layout.xaxis.rangemode, figure.layout.yaxis.rangemode} == {"nonnegative"}
    negative = {**HISTORY, "a_loss": [1.0, -1.0]}
    assert kj.plot(negative, "losses").layout.yaxis.rangemode is None


def test_logarithmic_axis_of_less_than_a_decade_has_ticks_of_plotly():
    axis = kj.plot({**HISTORY, "a_b_loss": [1.7, 1.2]}, "losses", splits=["train"]).layout.yaxis
    assert (axis.type, axis.tickvals, axis.dtick) == ("log", None, None)


def test_row_labels_have_a_row_of_their_own_on_a_narrow_page():
    wide, narrow = (kj.plot(HISTORY, "cosines", columns=n).layout for n in (3, 2))
    assert wide.xaxis2.domain[0] > 0
    assert narrow.xaxis2.domain == narrow.xaxis.domain
    assert narrow.yaxis2.domain[1] < narrow.yaxis.domain[0]


# --- Lines and their legend.


def shown_in_legend(figure):
    return [x.name for x in figure.data if x.showlegend is not False]


def test_legend_shows_what_is_drawn_and_no_more(logs):
    runs = [f"{logs}/{x}" for x in ("base", "light")]
    assert shown_in_legend(kj.plot(runs[0], "weights", events=False)) == ["label", "mood", "pair"]
    figure = kj.plot({"x": runs[0], "y": runs[1]}, "losses", compare="overlay", events=False)
    assert shown_in_legend(figure) == ["label", "mood", "pair", "x", "y"]
    unknown = {**HISTORY, "a_loss": [float("nan")] * 2, "val_a_loss": [float("nan")] * 2}
    assert shown_in_legend(kj.plot(unknown, "losses")) == ["a_b", "validation"]
    worse = {**HISTORY, "val_a_loss": [2.0, 2.0], "val_a_b_loss": [9.0, 9.0]}
    assert shown_in_legend(kj.plot({"x": HISTORY, "y": worse}, "pareto")) == ["x", "y"]


def test_equal_lines_show_in_pieces():
    weights = {name: np.full(4, 0.5) for name in "abcd"}
    weights["c"] = np.array([0.5, 0.5, 0.5, 0.1])
    losses = {name: np.linspace(2, 1, 4) for name in "abcd"}
    figure = kj.plot(logs_of(losses, weights=weights), "weights")
    pieces = {x.meta["shared"]: x for x in figure.data if x.meta and "shared" in x.meta}
    # The last one is on top. The others are drawn on it in turns.
    assert [*pieces] == ["c", "b", "a"]
    assert [x.line.dash for x in pieces.values()] == ["36px,12px", "24px,24px", "12px,36px"]
    assert np.isnan(pieces["c"].y).tolist() == [False, False, False, True]
    assert not any(x.showlegend for x in pieces.values())
    assert pieces["a"].legendgroup == "a"
    apart = {name: np.full(4, 0.1 + i) for i, name in enumerate("abcd")}
    figure = kj.plot(logs_of(losses, weights=apart), "weights")
    assert not [x for x in figure.data if x.meta and "shared" in x.meta]


def test_equal_lines_of_runs_have_symbols_of_different_sizes():
    figure = kj.plot({"x": HISTORY, "y": HISTORY}, "weights", compare="overlay")
    first, second = (trace(figure, run=run, term="a") for run in "xy")
    assert first.marker.symbol != second.marker.symbol
    assert first.marker.size < second.marker.size
    keys = {x.name: x for x in figure.data if x.meta and "key" in x.meta}
    assert [keys[run].marker.symbol for run in "xy"] == [first.marker.symbol, second.marker.symbol]
    # Symbols that say how many are searched do not say which run it is, and neither does the key.
    figure = kj.plot({"x": HISTORY, "y": HISTORY}, "retrieval", compare="overlay")
    keys = {x.name: x for x in figure.data if x.meta and "key" in x.meta}
    assert [keys[x].mode for x in ("a_b R@1", "x", "y")] == ["lines+markers", "lines", "lines"]


def test_validation_is_not_drawn_over_training_where_a_reading_is_one_number():
    history = {**HISTORY, "val_a_b_temperature": [0.2, 0.1]}
    figure = kj.plot(history, "readings", terms=["a_b"])
    assert [x.meta["split"] for x in traces(figure, term="a_b")] == ["train"]
    assert shown_in_legend(figure) == ["a_b"]
    assert traces(kj.plot(history, "readings", splits=["validation"]), term="a_b")
    other = {**HISTORY, "val_a_b_temperature": [0.3, 0.1]}
    figure = kj.plot(other, "readings", terms=["a_b"])
    assert [x.meta["split"] for x in traces(figure, term="a_b")] == ["train", "validation"]


def test_numbers_have_a_minus_sign():
    minus = "\N{MINUS SIGN}"
    assert number(-2e-5) == f"{minus}2e{minus}5"
    assert signs("at -0.5 (-1e-05), a-1") == f"at {minus}0.5 ({minus}1e{minus}05), a-1"
    assert kj.plot(HISTORY, "cosines", splits=["train"]).data[1].zhoverformat == ".3f"
    history = {**HISTORY, "gradients_a~a_b_cosine": [0.5, -0.25]}
    assert kj.plot(history, "cosines").data[1].text[0][1] == f"{minus}0.25"
    # Plotly writes a hyphen where a template has a format.
    for kind in ("terms", "losses", "gradients", "cosines", "readings"):
        templates = [x.hovertemplate or "" for x in kj.plot(HISTORY, kind).data]
        assert all("%{y:" not in x and "%{z:" not in x for x in templates)


# --- Events.


def test_events_are_found_in_the_logs(logs):
    base, light, short = read_runs(logs)
    found = {run.name: [x[:3] for x in events_of(run)] for run in (base, light, short)}
    assert found == {
        "base": [
            *((80, "schedule_ends", "pair"), (130, "warning", "mood")),
            (190, "switched_off", "mood"),
        ],
        "light": [(10, "warning", "mood"), (80, "schedule_ends", "pair")],
        "short": [],
    }
    first, second = (x.sentence for x in events_of(light))
    assert first == kj.diagnose(f"{logs}/light").faults[0].sentence
    assert second == "The schedule of the term 'pair' ends: its weight stays 0.01."


def test_what_is_planned_is_no_switch(tmp_path):
    weights = [1.0, 0.5, 0.0, 0.0, 0.0]
    run = Run(
        "x",
        {"joint_loss/a/weight": Series(np.arange(1, 6), np.zeros(5), np.array(weights))},
        schedules={"a": Series(np.array([0, 1, 3, 5]), np.zeros(4), np.array([1.5, 1, 0, 0]))},
    )
    assert [x[:3] for x in events_of(run)] == [(3, "schedule_ends", "a")]
    # One that moves to the end of the training, or that has not yet ended, has no end here.
    moving = Series(np.array([0, 3, 9]), np.zeros(3), np.array([1.5, 1, 0.5]))
    still_to_come = Series(np.array([0, 7, 9]), np.zeros(3), np.array([1.5, 0.9, 0.9]))
    for schedule in (moving, still_to_come):
        other = Run("x", run.train, schedules={"a": schedule})
        assert [x[:3] for x in events_of(other)] == [(3, "switched_off", "a")]
    write_scalars(tmp_path, ({"joint_loss/a/weight": 0.0, "joint_loss/a/raw": 1.0}, 1))
    assert events_of(read_runs(tmp_path)[0]) == []


@pytest.mark.parametrize("x", ["step", "epoch", "time"])
def test_events_are_marked_in_the_color_of_their_term(logs, x):
    figure = kj.plot(f"{logs}/base", "losses", x=x)
    title, *symbols = figure.layout.annotations
    color = marks(["label", "mood", "pair"])
    assert [a.name for a in symbols] == ["schedule_ends", "warning", "switched_off"]
    assert [a.font.color for a in symbols] == [color[x].color for x in ("pair", "mood", "mood")]
    at = {"step": [80, 130, 190], "epoch": [8, 13, 19]}.get(x, [a.x for a in symbols])
    assert [a.x for a in symbols] == [shape.x0 for shape in figure.layout.shapes] == at
    assert title.yshift > symbols[0].font.size
    assert "switched off" in symbols[2].hovertext
    assert shown_in_legend(figure)[-3:] == ["schedule ends", "term switched off", "warning"]
    assert figure.layout.meta["events"][0]["step"] == 80
    only = kj.plot(f"{logs}/base", "losses", x=x, terms=["label"]).layout
    assert (only.shapes, len(only.annotations)) == ((), 1)


def test_events_of_one_step_stand_side_by_side():
    losses = {"a": falling(8), **{name: [2.5] * 8 for name in "bc"}}
    figure = kj.plot(logs_of(losses), "losses")
    first, second = figure.layout.annotations[1:]
    assert (first.x, first.name) == (second.x, "warning")
    assert (first.xshift, second.xshift) == (0, 13)
    assert len(figure.layout.shapes) == 1
    assert not kj.plot(logs_of(losses), "losses", events=False).layout.shapes


def test_every_panel_of_a_run_has_its_events(logs):
    for kind, compare in itertools.product(("terms", "gradients", "weights"), ("rows", "overlay")):
        figure = kj.plot(logs, kind, compare=compare)
        places = {a.xref for a in figure.layout.annotations if a.name == "switched_off"}
        assert places == {x.xaxis for x in traces(figure, run="base")}, (kind, compare)
    assert ENDS[-1] == 240
