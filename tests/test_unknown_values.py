"""Logged values that an epoch does not have: NaN in `History`, no point in TensorBoard."""

import csv
import math

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback
from keras_jointloss.tensorboard import read
from tests.backends import once_compiled
from tests.callbacks import Evaluates
from tests.small_models import X, Y, compiled, fit

GENERATOR = np.random.default_rng(0)


def model_with_large_gradients():
    """Returns a model in half precision; at first, the scale of its loss is too large."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(4, dtype="mixed_float16")(inputs)
    z = kj.layers.GradientBalancer(["a", "b"], dtype="mixed_float16")(hidden)
    heads = {name: keras.layers.Dense(1, dtype="float32")(z[name]) for name in z}
    model = keras.Model(inputs, heads)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-4), 2.0**15)
    model.compile(optimizer, **kj.joint_loss({"a": "mse", "b": "mse"}))
    return model


@pytest.mark.traces_twice
def test_epoch_without_gradient_statistics_has_nan(tmp_path):
    model = model_with_large_gradients()
    y = {name: 100 * GENERATOR.normal(size=(40, 1)).astype("float32") for name in "ab"}
    key, best = "gradients_a_norm", tmp_path / "best.weights.h5"
    callbacks = [
        stopping := keras.callbacks.EarlyStopping(key, mode="max", patience=8),
        keras.callbacks.ModelCheckpoint(best, key, 0, True, True, mode="max"),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        JointLossCallback(tmp_path, hparams={}),
    ]
    if keras.backend.backend() == "tensorflow":
        callbacks.append(keras.callbacks.TensorBoard(tmp_path))
    options = {"batch_size": 20, "epochs": 8, "verbose": 0, "shuffle": False}
    history = model.fit(X, y, callbacks=callbacks, **options)
    logs = history.history
    assert {len(values) for values in logs.values()} == {8}
    norms = np.array(logs[key])
    is_known = ~np.isnan(norms)
    assert list(is_known[[0, -1]]) == [False, True], norms
    for name in ("gradients_conflict", "gradients_a~b_cosine", "gradients_b_coefficient"):
        np.testing.assert_array_equal(np.isnan(logs[name]), ~is_known)
    # Keras compares the first value with all others.
    assert stopping.best == np.nanmax(norms)
    assert stopping.stopped_epoch == 0
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row[key]) for row in rows] == pytest.approx(norms, nan_ok=True)
    # Event files have a point for each epoch, but none where the gradients are unknown.
    events = read(tmp_path)["train"]
    np.testing.assert_allclose(events["gradients/a/norm"].values, norms[is_known], rtol=1e-6)
    np.testing.assert_allclose(events["joint_loss/a/raw"].values, logs["a_loss"], rtol=1e-6)
    if keras.backend.backend() == "torch":
        return  # Plotly is the same everywhere.
    for source in (history, tmp_path):
        for kind in ("terms", "losses", "weights", "gradients", "cosines"):
            assert kj.plot(source, kind, smoothing=0.5).data
        assert kj.plot([source, source], "pareto").data
    run = kj.report(history).runs["train"]
    assert run.terms["a"].raw == logs["a_loss"][-1]


@once_compiled
def test_term_without_labels_has_no_loss():
    def without_labels(y):
        return {**y, "a": np.full_like(y["a"], np.nan)}

    model = compiled(missing={"a": math.nan})
    options = {"batch_size": 16, "epochs": 2, "verbose": 0, "callbacks": [JointLossCallback()]}
    history = model.fit(X, Y, validation_data=(X, without_labels(Y)), **options)
    logs = history.history
    for key in ("val_a_loss", "val_a_labelled_loss", "val_a_share"):
        assert np.isnan(logs[key]).all()
    assert logs["val_a_labelled"] == [0.0, 0.0]
    assert np.isfinite(logs["a_loss"]).all()
    assert {len(values) for values in logs.values()} == {2}
    assert logs["val_loss"] == pytest.approx(logs["val_b_loss"])
    assert math.isnan(kj.report(history).runs["validation"].terms["a"].raw)
    for kind in ("terms", "losses", "weights", "readings"):
        assert kj.plot(history, kind).data
    with pytest.raises(ValueError, match="no final values of both 'a' and 'b'"):
        kj.plot(history, "pareto")
    nothing = model.fit(X, without_labels(Y), **options).history
    assert np.isnan(nothing["a_loss"]).all()
    assert kj.plot(nothing, "terms").data


@once_compiled
def test_values_of_an_epoch_that_another_callback_has_replaced_are_unknown():
    # After the last batch of an epoch.
    evaluates = Evaluates(X[:10], {name: y[:10] for name, y in Y.items()}, batch=3)
    callbacks = [evaluates, JointLossCallback(validation_weights="equal")]
    history = fit(compiled(), callbacks, epochs=2, validation_data=(X, Y))
    assert {len(values) for values in history.values()} == {2}
    for key in ("a_loss", "a_share", "b_loss", "b_share", "joint_loss"):
        assert np.isnan(history[key]).all()
        assert np.isfinite(history[f"val_{key}"]).all()
    assert history["a_weight"] == [1.0, 1.0]
