"""Missing targets in `fit` and `evaluate`: weights, logs, rules, masks and replicas."""

import functools

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.joint.find_terms import find_terms
from tests import small_models
from tests.backends import once_compiled
from tests.comparisons import approx_logs, assert_all_close
from tests.small_models import LOSSES, X, Y, build, fit
from tests.summaries import read_scalars

NAN = float("nan")
LABELLED = np.random.default_rng(5).random(len(X)) < 0.3
LABELLED[20:30] = False  # One batch has no labels.
Y_MISSING = {
    "a": np.where(LABELLED[:, None], Y["a"], np.float32(NAN)),
    "b": np.where(LABELLED, Y["b"], -1),
}
MISSING = {"a": NAN, "b": -1}


def with_one_output(loss, missing=None):
    model = build()
    model = keras.Model(model.input, model.output["b"])
    arguments = kj.joint_loss({"b": loss}, missing=missing, metrics="accuracy")
    model.compile(keras.optimizers.Adam(0.05), **arguments)
    return model


def test_training_equals_that_on_the_labelled_items_alone():
    options = {"batch_size": len(X), "epochs": 3, "class_weight": {0: 3.0, 1: 0.5, 2: 1.0}}
    model, alone = with_one_output(LOSSES["b"], -1), with_one_output(LOSSES["b"])
    history = fit(model, y=Y_MISSING["b"], **options)
    expected = fit(alone, y=Y["b"][LABELLED], x=X[LABELLED], **options)
    assert_all_close(model.trainable_variables, alone.trainable_variables, 1e-4, 1e-6)
    assert history.pop("b_labelled") == pytest.approx([LABELLED.mean()] * 3)
    assert history.pop("b_labelled_loss") == pytest.approx(history["b_loss"])
    assert history == approx_logs(expected, 1e-4)


compiled = functools.partial(small_models.compiled, missing=MISSING)


def test_logs_are_means_over_labelled_targets(tmp_path):
    metrics = {"a": "mae", "b": ["accuracy"]}
    model = compiled(metrics=metrics, weighted_metrics={"a": ["mae"]})
    callback = kj.callbacks.JointLossCallback(str(tmp_path))
    history = fit(model, [callback], y=Y_MISSING, validation_data=(X, Y_MISSING))
    a, b = (np.asarray(model.predict(X, verbose=0)[name]) for name in ("a", "b"))
    rows = np.flatnonzero(LABELLED)
    expected = {
        "a_loss": np.mean((a - Y["a"])[rows] ** 2),
        "b_loss": -np.mean(np.log(b[rows, Y["b"][rows]])),
        "a_labelled": LABELLED.mean(),
        "b_labelled": LABELLED.mean(),
        "a_mae": np.mean(np.abs(a - Y["a"])[rows]),
        "a_weighted_mae": np.mean(np.abs(a - Y["a"])[rows]),
        "b_accuracy": np.mean(np.argmax(b[rows], axis=1) == Y["b"][rows]),
    }
    for key, value in expected.items():
        assert history[key] == pytest.approx([value], 1e-4), key
        assert history[f"val_{key}"] == pytest.approx([value], 1e-4), key
    scalars = read_scalars(tmp_path / "train")
    assert scalars["joint_loss/a/raw"][4] == pytest.approx(expected["a_loss"], 1e-4)
    assert scalars["joint_loss/b/labelled"][4] == pytest.approx(LABELLED.mean())
    evaluated = model.evaluate(X, Y_MISSING, batch_size=len(X), verbose=0, return_dict=True)
    logged = {name: values[0] for name, values in history.items() if name in evaluated}
    logged["loss"] = expected["a_loss"] + expected["b_loss"]
    assert evaluated == approx_logs(logged, 1e-4)
    # Without a callback and in batches of unequal labels, Keras' own `a_loss` counts items.
    evaluated = model.evaluate(X, Y_MISSING, batch_size=7, verbose=0, return_dict=True)
    for name in "ab":
        assert evaluated[f"{name}_labelled_loss"] == pytest.approx(expected[f"{name}_loss"], 1e-4)


@once_compiled
def test_metrics_and_shares_of_one_unnamed_output(tmp_path):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)])
    arguments = kj.joint_loss(["mse", "mae"], metrics=["mse"], missing=NAN)
    model.compile(keras.optimizers.SGD(0.0), **arguments)
    history = fit(model, y=Y_MISSING["a"])
    assert history["mse_labelled"] == history["mae_labelled"] == pytest.approx([LABELLED.mean()])
    assert history["mse"] == pytest.approx(history["mse_loss"], 1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert fit(loaded, y=Y_MISSING["a"]) == approx_logs(history)


@pytest.mark.parametrize("rule", [pytest.param("uncertainty", marks=once_compiled), "famo"])
def test_rule_does_not_move_for_a_term_without_labels(rule):
    model = compiled(build(), keras.optimizers.SGD(0.05), weighting=rule)
    y = {"a": np.full_like(Y["a"], NAN), "b": np.full_like(Y["b"], -1)}
    before = model.get_weights()
    history = fit(model, y=y)
    assert_all_close(model.get_weights(), before, 0)
    assert history["loss"] == [0.0]
    initial = [float(weight) for weight in find_terms(model).values()]
    weights = {"a": np.zeros(len(X)), "b": np.ones(len(X))}
    fit(model, y=Y_MISSING, sample_weight=weights)
    assert all(np.isfinite(value).all() for value in model.get_weights())
    fit(model, y=y, epochs=2)
    resting = [float(weight) for weight in find_terms(model).values()]
    fit(model, y=y)
    assert [float(weight) for weight in find_terms(model).values()] == resting
    assert initial != resting


@once_compiled
def test_masked_time_steps_are_left_out_too():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(6, 4, 3)).astype("float32")
    x[generator.random((6, 4)) < 0.3] = 0
    y = generator.normal(size=(6, 4, 2)).astype("float32")
    y[generator.random((6, 4, 2)) < 0.4] = NAN
    inputs = keras.Input((4, 3))
    masked = keras.layers.Masking()(inputs)
    model = keras.Model(inputs, {"a": keras.layers.Dense(2)(masked)})
    model.compile("sgd", **kj.joint_loss({"a": "mse"}, metrics="mae", missing=NAN))
    logs = model.evaluate(x, {"a": y}, verbose=0, return_dict=True)
    error = np.abs(np.asarray(model.predict(x, verbose=0)["a"]) - y)
    valid = np.any(x != 0, axis=-1)
    assert logs["loss"] == pytest.approx(np.nanmean(error[valid] ** 2), 1e-4)
    assert logs["mae"] == pytest.approx(np.nanmean(error[valid]), 1e-4)
    assert logs["a_labelled_loss"] == pytest.approx(logs["loss"])
    labelled = find_terms(model)["a"].read()["labelled"]
    assert labelled == pytest.approx(np.mean(~np.isnan(y[valid])))


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum"])
def test_replicas_weigh_by_their_labelled_targets(reduction):
    from tests.test_replicas import assert_like_one_device

    def make():
        losses = {"a": keras.losses.MeanSquaredError(reduction=reduction), "b": LOSSES["b"]}
        rule = "uncertainty" if reduction == "sum_over_batch_size" else None
        metrics = {"a": "mae", "b": "accuracy"}
        joint = kj.joint_loss(losses, {"b": 0.5}, rule, metrics=metrics, missing=MISSING)
        return build(), joint

    halves = LABELLED.reshape(-1, 2, 4).sum(axis=2)
    assert np.any(halves[:, 0] != halves[:, 1])
    weight = dict.fromkeys(MISSING, np.linspace(0.5, 2, len(X)).astype("float32"))
    # Keras' own logs count unequal replicas alike.
    assert_like_one_device(
        make, [(X, Y_MISSING, weight)], r" (a_)?loss$|_share|evaluated b_loss", epochs=2
    )
