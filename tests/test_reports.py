"""The table of what each term contributed to the loss."""

import contextlib
import html
import re

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback
from tests.backends import once_compiled
from tests.small_models import X, Y, ramp

NAMES = ("a>b", "val_x", "pair")


def make_model():
    """Returns a model with an annealed output term, a layer term and a regularizer."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    pair = (keras.layers.Dense(4)(inputs), keras.layers.Dense(4)(inputs))
    a, b = kj.layers.ContrastiveTerm("MeanSquaredError", weight=0.5, name="pair")(pair)
    l2 = keras.regularizers.L2(0.05)
    penalized = keras.layers.Dense(2, kernel_regularizer=l2, name="heavy")
    outputs = {"a>b": penalized(a), "val_x": keras.layers.Dense(2)(b)}
    model = keras.Model(inputs, outputs)
    losses, weights = {"a>b": "mse", "val_x": "mae"}, {"a>b": ramp()}
    model.compile(keras.optimizers.SGD(0.01), **kj.joint_loss(losses, weights))
    return model


def cells(text):
    """Returns the text of the cells of each row of a table in HTML."""
    assert {*re.findall(r"<(\w+)", text)} <= {"table", "thead", "tbody", "tr", "th", "td"}
    rows = re.findall(r"<tr\b.*?</tr>", text, re.DOTALL)
    return [[*map(html.unescape, re.findall(r"<t[hd]\b[^>]*>(.*?)</t[hd]>", x))] for x in rows]


@once_compiled
def test_table_of_history_equals_that_of_the_callback():
    model, callback = make_model(), JointLossCallback()
    y = {"a>b": Y["a"], "val_x": Y["a"]}
    with pytest.raises(ValueError, match="after the first epoch"):
        callback.summary()
    totals = []

    def summarize(batch, logs):
        if batch == 1:
            with contextlib.suppress(ValueError):
                totals.append(callback.summary().runs["train"].total)

    asks = keras.callbacks.LambdaCallback(on_train_batch_end=summarize)
    options = {"batch_size": 16, "epochs": 2, "verbose": 0, "validation_data": (X, y)}
    history = model.fit(X, y, callbacks=[callback, asks], **options)
    assert totals == history.history["loss"][:1]  # None before the first epoch ends.
    report = kj.report(history)
    summary = callback.summary()
    assert list(report.runs) == list(summary.runs) == ["train", "validation"]
    for name, run in report.runs.items():
        other = summary.runs[name]
        prefix = "" if name == "train" else "val_"
        assert run.total == other.total == history.history[f"{prefix}loss"][-1]
        assert set(run.terms) == set(other.terms) == set(NAMES)
        for term in NAMES:
            raw = history.history[f"{prefix}{term}_loss"][-1]
            assert tuple(run.terms[term])[1:] == pytest.approx(tuple(other.terms[term])[1:])
            assert other.terms[term].raw == pytest.approx(raw, rel=0.1)
        assert run.other == pytest.approx(other.other)
        parts = [*(x.weighted for x in run.terms.values()), run.other]
        assert sum(parts) == pytest.approx(run.total)
    kernel = model.layers[-2].get_weights()[0]
    assert summary.runs["validation"].other == pytest.approx(0.05 * np.sum(kernel**2), 1e-4)
    # While the weight moves, the mean of weight times loss is not their product.
    moving = summary.runs["train"].terms["a>b"]
    assert moving.weighted < 0.95 * moving.raw * moving.weight

    lines = str(summary).splitlines()
    terms = summary.runs["train"].terms
    names = ["term", *terms, "other", "other/heavy", "total"]
    assert [line.split()[0] for line in lines[1:]] == names
    totals = [f"{run.total:.3f} 100.0%" for run in summary.runs.values()]
    assert lines[-1].split()[1:] == " ".join(totals).split()
    assert max(map(len, lines)) <= 100
    rows = cells(summary._repr_html_())
    assert [[x for x in row if x] for row in rows[1:]] == [line.split() for line in lines[1:]]
    assert html.escape("a>b") in summary.to_html()
    model.evaluate(X, y, verbose=0, callbacks=[evaluated := JointLossCallback()])
    assert list(evaluated.summary().runs) == ["validation"]


def test_term_that_was_not_computed_has_empty_cells():
    logs = {"loss": [0.0], "a_loss": [0.0], "a_weight": [1.0], "a_share": [np.nan]}
    logs = {**logs, "b_weight": [2e-7], "b_share": [np.nan]}
    lines = [" ".join(line.split()) for line in str(kj.report(logs)).splitlines()]
    assert lines[2:] == ["a 0.000 1.000 0.000 -", "b - 2.00e-07 - -", "total 0.000 -"]


def test_table_is_shown_where_a_notebook_shows_objects():
    report = kj.report({"loss": [1.0], "a_loss": [2.0], "a_weight": [0.5], "a_share": [1.0]})
    assert repr(report) == str(report)


def test_weight_in_float32_is_printed_as_it_was_given():
    weight = float(np.float32(0.01))
    logs = {"loss": [0.02], "a_loss": [2.0], "a_weight": [weight], "a_share": [1.0]}
    row = str(kj.report(logs)).splitlines()[2]
    assert row.split() == ["a", "2.000", "0.010", "0.020", "100.0%"]


@pytest.mark.parametrize("history", [{}, {"loss": [1.0], "a_weight": [1.0]}, None, [1.0]])
def test_history_without_the_callback_is_refused(history):
    with pytest.raises(ValueError, match=r"`history`.*`JointLossCallback`"):
        kj.report(history)
