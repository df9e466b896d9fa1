"""All tables and logs show the same means over items, also if the last batch is smaller."""

import csv

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback
from keras_jointloss.tensorboard import read
from tests.backends import once_compiled
from tests.small_models import fit

ITEMS, BATCH = 20, 8  # The last batch has 4 items.
GENERATOR = np.random.default_rng(5)
X = GENERATOR.normal(size=(ITEMS, 3)).astype("float32")
# The targets of the last batch are far off.
FAR = np.where(np.arange(ITEMS) < 16, 0.0, 9.0)[:, None].astype("float32")
Y = {name: GENERATOR.normal(size=(ITEMS, 1)).astype("float32") + FAR for name in ("a", "mask")}
LABELLED = np.arange(ITEMS) % 4 == 1
Y["seldom"] = np.where(LABELLED[:, None], Y["a"], np.nan)
SAMPLE_WEIGHT = {
    "a": np.linspace(0.0, 2.0, ITEMS).astype("float32"),
    "mask": np.ones(ITEMS, "float32"),
    "seldom": np.ones(ITEMS, "float32"),
}
WEIGHTS = {"a": 0.5, "mask_square": 2.0, "mask_absolute": 0.25, "seldom": 3.0, "size": 0.1}


def make_model(optimizer=None):
    """Returns a model with all kinds of terms, and a regularizer, which does not learn."""
    keras.utils.set_random_seed(3)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.1))(inputs)
    hidden = kj.layers.LossTerm(weight=WEIGHTS["size"], name="size")(hidden, hidden**2)
    model = keras.Model(inputs, {name: keras.layers.Dense(1)(hidden) for name in Y})
    several = {"square": "mean_squared_error", "absolute": "mean_absolute_error"}
    joint = kj.joint_loss(
        {"a": "mse", "mask": several, "seldom": "mse"},
        {name: WEIGHTS[name] for name in WEIGHTS if name != "size"},
        missing={"seldom": np.nan},
    )
    model.compile(optimizer or keras.optimizers.SGD(0.0), **joint)
    return model


def expected_losses(model):
    """Returns the mean of each term over its items, computed by NumPy from the predictions."""
    predicted = model.predict(X, verbose=0)
    errors = {name: (predicted[name] - Y[name])[:, 0].astype("float64") for name in Y}
    kernel, bias = model.layers[1].get_weights()
    return {
        "a": np.sum(SAMPLE_WEIGHT["a"] * errors["a"] ** 2) / ITEMS,
        "mask_square": np.mean(errors["mask"] ** 2),
        "mask_absolute": np.mean(np.abs(errors["mask"])),
        "seldom": np.mean(errors["seldom"][LABELLED] ** 2),
        "size": np.mean((X @ kernel + bias) ** 2),
    }


def test_every_table_and_log_shows_the_mean_over_the_items(tmp_path, capsys):
    model, callback, received = make_model(), JointLossCallback(tmp_path), {}
    others = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: received.update(epoch=logs),
        on_test_end=lambda logs: received.update(evaluation=logs),
    )
    table = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    data = {"sample_weight": SAMPLE_WEIGHT, "batch_size": BATCH}
    options = {"validation_data": (X, Y, SAMPLE_WEIGHT), "shuffle": False, "verbose": 2, **data}
    history = model.fit(X, Y, callbacks=[others, table, callback], **options)
    data |= {"verbose": 0, "return_dict": True}
    callbacks = [JointLossCallback(tmp_path / "alone")]
    evaluated = model.evaluate(X, Y, callbacks=callbacks, **data)
    with open(tmp_path / "log.csv") as file:
        (row,) = csv.DictReader(file)
    printed = capsys.readouterr().out
    scalars = read(tmp_path)
    expected = expected_losses(model)
    names = {name: f"{name}_loss" for name in expected}
    reports = {"history": kj.report(history).runs, "callback": callback.summary().runs}
    for prefix, run in (("", "train"), ("val_", "validation")):
        found = {
            "History": {x: history.history[prefix + key][0] for x, key in names.items()},
            "callbacks": {x: received["epoch"][prefix + key] for x, key in names.items()},
            "CSVLogger": {x: float(row[prefix + key]) for x, key in names.items()},
            "events": {x: scalars[run][f"joint_loss/{x}/raw"].values[-1] for x in names},
            **{k: {x: r[run].terms[x].raw for x in names} for k, r in reports.items()},
        }
        for where, losses in found.items():
            assert losses == pytest.approx(expected, rel=1e-5), (where, run)
        # Keras logs the weighted sum of the losses of an output.
        parts = [WEIGHTS[x] * expected[x] for x in ("mask_square", "mask_absolute")]
        assert history.history[f"{prefix}mask_loss"] == [pytest.approx(sum(parts), rel=1e-5)]
        for name, loss in expected.items():
            assert f"{prefix}{name}_loss: {loss:.4f}" in printed
        for report in reports.values():
            terms = report[run].terms
            for name in set(names) - {"seldom"}:
                assert terms[name].weight == pytest.approx(WEIGHTS[name])
                product = terms[name].raw * terms[name].weight
                assert product == pytest.approx(terms[name].weighted, rel=1e-5)
            parts = [*(x.weighted for x in terms.values()), report[run].other]
            assert sum(parts) == pytest.approx(report[run].total, rel=1e-5)
    alone = read(tmp_path / "alone")["validation"]
    events = {key: alone[f"joint_loss/{x}/raw"].values[0] for x, key in names.items()}
    for logs in (evaluated, received["evaluation"], events):
        logged = {x: logs[key] for x, key in names.items() if key in logs}
        assert set(names) - {"size"} <= set(logged)
        assert logged == pytest.approx({x: expected[x] for x in logged}, rel=1e-5)


@once_compiled
def test_missing_targets_contribute_to_the_total_as_keras_weights_their_batches():
    model, callback = make_model(), JointLossCallback()
    x, y = X[:16], {name: y[:16] for name, y in Y.items()}
    squares = (model.predict(x, verbose=0)["seldom"] - y["seldom"])[:, 0] ** 2
    # 3 labels among 12 items, then 1 among 4: all batches have the same share of labels.
    for batch_size in (12, 10):
        model.evaluate(x, y, batch_size, verbose=0, callbacks=[callback])
        term = callback.summary().runs["validation"].terms["seldom"]
        assert term.raw == pytest.approx(np.nanmean(squares), rel=1e-5)
        batches = [np.nanmean(squares[:batch_size]), np.nanmean(squares[batch_size:])]
        weighted = 3.0 * np.average(batches, weights=[batch_size, 16 - batch_size])
        assert term.weighted == pytest.approx(weighted, rel=1e-5)


def test_evaluate_returns_the_same_list_of_values_with_the_callback():
    model = make_model()
    plain = model.evaluate(X, Y, BATCH, verbose=0)
    mended = model.evaluate(X, Y, BATCH, verbose=0, callbacks=[JointLossCallback()])
    assert len(mended) == len(plain)
    assert mended[0] == plain[0]


@once_compiled
def test_losses_of_a_single_output_are_means_over_the_items():
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    square, absolute = "mean_squared_error", "mean_absolute_error"
    joint = kj.joint_loss([square, absolute], {square: 2.0})
    model.compile(keras.optimizers.SGD(0.0), **joint)
    history = fit(model, y=Y["a"], x=X, batch_size=BATCH)
    error = (model.predict(X, verbose=0) - Y["a"]).astype("float64")
    expected = {square: np.mean(error**2), absolute: np.mean(np.abs(error))}
    for name, loss in expected.items():
        assert history[f"{name}_loss"] == [pytest.approx(loss, rel=1e-5)]
    assert history["loss"] == pytest.approx([2 * expected[square] + expected[absolute]], rel=1e-5)


@once_compiled
def test_second_callback_sees_the_same_means():
    model, callbacks = make_model(), [JointLossCallback(), JointLossCallback()]
    options = {"sample_weight": SAMPLE_WEIGHT, "validation_data": (X, Y, SAMPLE_WEIGHT)}
    history = fit(model, callbacks, Y, X, batch_size=BATCH, epochs=2, **options)
    for name, loss in expected_losses(model).items():
        for prefix, run in (("", "train"), ("val_", "validation")):
            assert history[f"{prefix}{name}_loss"] == pytest.approx([loss] * 2, rel=1e-5)
            for callback in callbacks:
                term = callback.summary().runs[run].terms[name]
                assert term.raw == pytest.approx(loss, rel=1e-5)
