"""The figures, as data: names, values and axes."""

import numpy as np
import pytest
from plotly.graph_objects import Figure

import keras_jointloss as kj
from keras_jointloss.tensorboard._sampling import smooth, thin
from keras_jointloss.tensorboard.figures import KINDS
from keras_jointloss.tensorboard.figures.pareto import pareto_front
from keras_jointloss.tensorboard.figures.style import marks
from keras_jointloss.tensorboard.runs import Series, find_pairs
from tests.refusals import refuses
from tests.training_logs import HOSTILE, history_of

HISTORY = {
    "loss": [2.1, 1.6],
    "val_loss": [2.5, 2.0],
    "learning_rate": [0.1, 0.05],
    **{"a_loss": [1.5, 1.0], "a_weight": [1.0, 1.0], "a_share": [1.5 / 2.1, 1.0 / 1.6]},
    **{"val_a_loss": [1.5, 1.2], "val_a_weight": [1.0, 1.0], "val_a_share": [0.5, 0.5]},
    **{"a_b_loss": [5.0, 5.0], "a_b_weight": [0.1, 0.1], "a_b_share": [0.5 / 2.1, 0.5 / 1.6]},
    **{"val_a_b_loss": [10.0, 8.0], "val_a_b_weight": [0.1, 0.1], "val_a_b_share": [0.4, 0.4]},
    **{"a_b_temperature": [0.2, 0.1], "a_accuracy": [0.5, 0.75]},
    **{"gradients_a_norm": [1.0, 2.0], "gradients_a_b_norm": [3.0, 4.0]},
    **{"gradients_a_coefficient": [1.0, 1.5], "gradients_a_b_coefficient": [1.0, 0.5]},
    **{"gradients_a~a_b_cosine": [-0.5, 0.25], "gradients_a~a_b_conflict": [1.0, 0.25]},
    "gradients_conflict": [1.0, 0.25],
    **{"a_b_a_to_b_recall_at_1": [0.1, 0.3], "a_b_b_to_a_recall_at_1": [0.2, 0.4]},
    "a_b_recall_at_1": [0.15, 0.35],
}


def traces(figure, **meta):
    """Returns the traces of a figure whose `meta` has these values."""
    return [
        trace
        for trace in figure.data
        if trace.meta and all(trace.meta.get(key) == value for key, value in meta.items())
    ]


def trace(figure, **meta):
    (found,) = traces(figure, **meta)
    return found


def test_terms_add_up_to_the_total():
    figure = kj.plot(HISTORY)
    assert isinstance(figure, Figure)
    for split, totals in (("train", [2.1, 1.6]), ("validation", [2.5, 2.0])):
        areas = [trace(figure, split=split, term=name) for name in ("a", "a_b", "other")]
        assert np.sum([area.y for area in areas], axis=0) == pytest.approx(totals)
        assert len({area.stackgroup for area in areas}) == 1
        total = trace(figure, split=split, term=None)
        assert total.stackgroup is None
        assert list(total.y) == totals
        assert list(total.x) == [1, 2]
    assert trace(figure, split="train", term="a_b").y == pytest.approx([0.5, 0.5])
    assert figure.layout.xaxis.title.text == "epoch"


def test_shares_are_of_the_total():
    figure = kj.plot(HISTORY, share=True, splits=["train"])
    assert trace(figure, term="a").y == pytest.approx([1.5 / 2.1, 1.0 / 1.6])
    assert list(trace(figure, term=None).y) == [1, 1]
    assert figure.layout.yaxis.tickformat == ".0%"


def test_negative_losses_do_not_hide_others():
    figure = kj.plot(history_of({"a": 3.0, "b": -2.0}))
    above, below = traces(figure, term="b")
    assert (list(above.y), list(below.y)) == ([0], [-2])
    assert above.stackgroup != below.stackgroup == "below 0"
    minus = "\N{MINUS SIGN}"
    assert list(above.customdata[0]) == [f"{minus}2", f"{minus}200.0%"]


def test_losses_are_logarithmic_where_they_can_be():
    figure = kj.plot(HISTORY, "losses")
    assert list(trace(figure, term="a", split="validation").y) == [1.5, 1.2]
    assert trace(figure, term="a", split="validation").line.dash == "dot"
    assert figure.layout.yaxis.type == "log"
    assert kj.plot({**HISTORY, "a_loss": [1.0, -1.0]}, "losses").layout.yaxis.type == "linear"
    assert kj.plot(HISTORY, "losses", scale="linear").layout.yaxis.type == "linear"


def test_ticks_of_logarithmic_axes_are_whole_numbers():
    few = kj.plot(HISTORY, "losses").layout.yaxis  # 1 to 10.
    texts = dict(zip(few.tickvals, few.ticktext, strict=True))
    assert {1.0: "1", 2.0: "2", 5.0: "5", 0.2: "0.2", 20.0: "20"}.items() <= texts.items()
    many = kj.plot({**HISTORY, "a_loss": [1.5, 1e-5]}, "losses").layout.yaxis
    assert (many.tickvals, many.dtick) == (None, 1)


def test_weights_and_readings():
    assert list(trace(kj.plot(HISTORY, "weights"), term="a_b").y) == [0.1, 0.1]
    figure = kj.plot(HISTORY, "readings", terms=["a_b"])
    assert list(trace(figure, term="a_b").y) == [0.2, 0.1]
    assert not traces(figure, term="a")


def test_gradients():
    figure = kj.plot(HISTORY, "gradients")
    norm, coefficient = traces(figure, term="a_b")
    assert (list(norm.y), list(coefficient.y)) == ([3, 4], [1, 0.5])
    assert list(trace(figure, tag="gradients/conflict").y) == [1, 0.25]
    titles = {axis.title.text for axis in figure.select_yaxes()}
    assert titles == {"norm", "coefficient", "conflict"}


def test_cosines():
    over_time, latest = kj.plot(HISTORY, "cosines").data
    assert np.allclose(over_time.z, [[-0.5, 0.25]])
    assert list(over_time.y) == ["a ~ a_b"]
    assert np.allclose(latest.z, [[1, 0.25], [0.25, 1]])
    nearly_0 = {**HISTORY, "gradients_a~a_b_cosine": [-0.5, -0.001]}
    assert kj.plot(nearly_0, "cosines").data[1].text[0].tolist() == ["1.00", "0.00"]
    assert list(latest.x) == list(latest.y) == ["a", "a_b"]
    assert latest.coloraxis == "coloraxis"


def test_retrieval_in_both_directions():
    figure = kj.plot(HISTORY, "retrieval")
    there, back = traces(figure, term="a_b R@1")
    assert (list(there.y), list(back.y)) == ([0.1, 0.3], [0.2, 0.4])
    assert [x.text for x in figure.layout.annotations] == ["<b>a → b</b>", "<b>b → a</b>"]


def test_pareto_front_is_drawn():
    worse = {**HISTORY, "val_a_loss": [2.0, 2.0], "val_a_b_loss": [9.0, 9.0]}
    other = {**HISTORY, "val_a_loss": [2.0, 3.0], "val_a_b_loss": [9.0, 1.0]}
    figure = kj.plot({"one": HISTORY, "two": worse, "three": other}, "pareto")
    assert figure.data[0].meta["front"] == ["one", "three"]
    assert list(figure.data[0].x) == [1.2, 3.0]
    two = trace(figure, run="two")
    assert (two.x[0], two.y[0]) == (2.0, 9.0)
    # Of the accuracy, a larger one is better.
    better = {**HISTORY, "a_accuracy": [0.5, 0.9]}
    figure = kj.plot({"one": HISTORY, "two": better}, "pareto", a="joint_loss/a/accuracy", b="a")
    assert figure.data[0].meta["front"] == ["two"]


def test_pareto_front_keeps_ties():
    points = np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 3.0], [0.5, 9.0]])
    assert sorted(pareto_front(points)) == [0, 1, 3]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("cosines", "pareto")])
@pytest.mark.parametrize("compare", ["rows", "overlay"])
def test_runs_are_compared(kind, compare):
    figure = kj.plot({"x": HISTORY, "y": HISTORY}, kind, compare=compare)
    first, second = traces(figure, run="x"), traces(figure, run="y")
    assert len(first) == len(second) > 0
    same_axes = {x.xaxis for x in first} & {x.xaxis for x in second}
    assert bool(same_axes) == (compare == "overlay")
    if compare == "overlay":
        assert {x.line.dash for x in first}.isdisjoint({x.line.dash for x in second})


def test_colors_stay_with_a_term():
    kinds = {"terms": {"split": "train"}, "weights": {}, "losses": {"split": "train"}}
    figures = [(kj.plot(HISTORY, kind), more) for kind, more in kinds.items()]
    colors = [trace(figure, term="a_b", **more).line.color for figure, more in figures]
    alone = trace(kj.plot(HISTORY, "weights", terms=["a_b"]), term="a_b").line.color
    assert {*colors, alone} == {marks(["a", "a_b"])["a_b"].color}
    many = marks([f"term {i:02}" for i in range(20)]).values()
    assert len({(x.color, x.pattern) for x in many}) == 20
    assert len({(x.color, x.symbol) for x in many}) == 20


def test_hostile_names_are_text():
    history = history_of(dict.fromkeys(HOSTILE, 1.0))
    for kind in ("terms", "losses", "weights"):
        figure = kj.plot({"<b>one": history, "two/": history}, kind)
        assert {x.meta.get("term") for x in traces(figure, run="<b>one")} >= set(HOSTILE)
        shown = [x.name for x in figure.data] + [x.text for x in figure.layout.annotations]
        shown = [x.removeprefix("<b>").removesuffix("</b>") for x in shown]
        assert not any("<" in x or len(x) > 120 for x in shown)


def test_pairs_are_found_whatever_the_names():
    tags = ["gradients/a~b/norm", "gradients/c/d/norm", "gradients/a~b~c/d/cosine"]
    assert find_pairs(tags) == {"gradients/a~b~c/d": ("a~b", "c/d")}
    layers = ["gradients/one/a/norm", "gradients/one/b/norm", "gradients/one/a~b/cosine"]
    assert find_pairs(layers) == {"gradients/one/a~b": ("one/a", "one/b")}
    assert find_pairs(["gradients/a/norm", "gradients/a~b/cosine"]) == {}


def test_thinning_keeps_the_extremes_of_all_rows():
    values = np.random.default_rng(0).normal(size=(20, 100_000)) * np.arange(1, 21)[:, None]
    values[3, 777], values[4, 99_000], values[5, 5] = 500, -900, np.nan
    keep = thin(values, 600)
    assert {0, 777, 99_000, 99_999} <= set(keep.tolist())
    assert len(keep) <= 600 + 2 + 40
    assert np.array_equal(np.nanmax(values[:, keep], axis=1), np.nanmax(values, axis=1))
    assert np.array_equal(np.nanmin(values[:, keep], axis=1), np.nanmin(values, axis=1))
    assert np.array_equal(thin(values[:, :50], 600), np.arange(50))
    assert len(thin(np.full((1, 1000), np.nan), 10)) <= 14


def test_smoothing_is_that_of_tensorboard():
    values = np.array([1.0, np.nan, 3.0, 5.0])
    expected, mean, count = [], 0.0, 0
    for value in values:
        if np.isnan(value):
            expected.append(np.nan)
            continue
        mean, count = 0.6 * mean + 0.4 * value, count + 1
        expected.append(mean / (1 - 0.6**count))
    assert np.allclose(smooth(values, 0.6), expected, equal_nan=True)
    assert smooth(values, 0) is values
    figure = kj.plot(HISTORY, "losses", smoothing=0.6)
    assert trace(figure, term="a", split="train").y == pytest.approx([1.5, (0.6 * 1.5 + 1) / 1.6])


def test_restarts_replace_what_was_logged_after_them():
    series = Series(*np.array([[1, 2, 3, 4, 3, 4, 5], range(7), [0, 1, 2, 3, 20, 30, 40]], float))
    kept = series.without_restarts()
    assert kept.steps.tolist() == [1, 2, 3, 4, 5]
    assert kept.values.tolist() == [0, 1, 20, 30, 40]


def test_terms_without_patterns_and_with_them_are_stacked():
    names = [f"term {i}" for i in range(9)]
    figure = kj.plot(history_of(dict.fromkeys(names, 1.0)))
    areas = [trace(figure, term=name) for name in names]
    patterns = [marks(names)[name].pattern or None for name in names]
    assert [area.fillpattern.shape for area in areas] == patterns
    assert areas[-1].fillpattern.shape


def test_shares_of_runs_are_compared():
    figure = kj.plot({"x": HISTORY, "y": HISTORY}, compare="overlay", share=True, splits=["train"])
    for name in "xy":
        assert trace(figure, run=name, term="a").y == pytest.approx([1.5 / 2.1, 1.0 / 1.6])
    assert not traces(figure, term="total")


def test_gradients_and_cosines_of_chosen_terms():
    figure = kj.plot(HISTORY, "gradients", terms=["a_b"])
    terms = {x.meta["term"] for x in figure.data if x.meta and "term" in x.meta}
    assert terms == {"a_b", "any two in conflict"}
    history = {**HISTORY, "c_loss": [1.0, 1.0], "c_weight": [1.0, 1.0]}
    history |= {"gradients_c_norm": [1.0, 2.0], "gradients_a~c_cosine": [0.5, 0.75]}
    both = kj.plot(history, "cosines", terms=["a", "c"]).data[0]
    assert (list(both.y), both.z.tolist()) == (["a ~ c"], [[0.5, 0.75]])
    with pytest.raises(ValueError, match="The runs have no cosines"):
        kj.plot(history, "cosines", terms=["c"])


test_invalid_arguments_raise = refuses(
    lambda **options: kj.plot(**{"source": HISTORY, **options}),
    ({"kind": "pie"}, "`kind`. Expected one of"),
    ({"x": "hours"}, "`x`"),
    ({"compare": "none"}, "`compare`"),
    ({"smoothing": 1.0}, "`smoothing`"),
    ({"smoothing": "much"}, "`smoothing`"),
    ({"splits": "train"}, "`splits`"),
    ({"splits": ["test"]}, "`splits`"),
    ({"scale": "cubic"}, "`scale`"),
    ({"theme": "pink"}, "`theme`"),
    ({"terms": ["c"]}, "unknown terms \\['c'\\]"),
    ({"kind": "pareto", "a": "c"}, "`a`. Expected one of"),
    ({"colour": "red"}, "`options`"),
    ({"x": "time"}, "no wall times"),
    ({"points": 0}, "`points`. Expected a whole number >= 1"),
    ({"columns": 1.5}, "`columns`. Expected a whole number >= 1"),
    *(({"source": x}, "`source`") for x in (3, {"loss": [1.0]}, [3])),
    ({"source": []}, "no run"),
)


def test_what_is_not_there_is_named():
    history = {key: HISTORY[key] for key in ("loss", "a_loss", "a_weight", "a_share")}
    for kind in ("readings", "gradients", "cosines", "retrieval", "pareto"):
        with pytest.raises(ValueError, match="The runs have no"):
            kj.plot(history, kind)
    with pytest.raises(ValueError, match="The runs have no weighted losses"):
        kj.plot(history, splits=["validation"])
    with pytest.raises(ValueError, match="The runs have no raw losses of the chosen terms in"):
        kj.plot(history, "losses", splits=["validation"])
    other = history_of({"b": 1.0})
    with pytest.raises(ValueError, match="no final values of both 'a' and 'b'"):
        kj.plot({"x": history, "y": other}, "pareto", splits=["train"])


def test_values_that_not_every_epoch_has_are_at_their_epochs():
    history = {**HISTORY, "val_a_loss": [1.2]}
    assert list(trace(kj.plot(history, "losses"), term="a", split="validation").x) == [2]
    # There is no regular distance: these may be of any epochs.
    history = {"loss": [3.0] * 5, "a_loss": [3.0] * 5, "a_weight": [1.0] * 5, "a_share": [1.0] * 5}
    history["val_a_loss"] = [2.0, 2.0, 2.0]
    figure = kj.plot(history, "losses")
    assert list(trace(figure, term="a", split="validation").x) == [1, 2, 3]


def test_missing_plotly_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'keras-jointloss\[dashboard\]'"):
        kj.plot(HISTORY)
