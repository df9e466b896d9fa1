"""Gradient statistics: compared with NumPy, in logs and in TensorBoard."""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests import balanced_models as models
from tests.backends import BACKEND
from tests.balanced_models import X, Y, build, compile_again, fit, train, weights_of
from tests.comparisons import assert_all_close
from tests.summaries import read_images, read_scalars

STEPS = len(X) // 8


def assert_statistics(statistics, gradients):
    norms = np.linalg.norm(gradients, axis=2)
    cosines = np.einsum("sm,sm->s", gradients[:, 0], gradients[:, 1]) / norms.prod(axis=1)
    np.testing.assert_allclose(statistics.norms, norms.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(statistics.cosines[0, 1], cosines.mean(), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(np.diag(statistics.cosines), 1, rtol=1e-5)
    np.testing.assert_allclose(statistics.conflicts[0, 1], np.mean(cosines < 0))
    np.testing.assert_allclose(statistics.conflict, np.mean(cosines < 0))


def statistics_of(model):
    return model.get_layer("balancer").statistics()


def statistics_after(model):
    """Trains for an epoch, and returns the statistics."""
    train(model)
    return statistics_of(model)


def test_layer_that_combines_no_gradients_warns_once():
    inputs = keras.Input((5,))
    trunk = keras.layers.Dense(4, trainable=False)
    z = kj.layers.SharedTrunk(trunk, ["a", "b"], name="shared")(inputs)
    message = "'shared' has recorded no gradients in the 5 batches of epoch 0"
    with pytest.warns(UserWarning, match=message) as caught:
        train(models.with_heads(inputs, z), 2)
    assert sum("recorded no gradients" in str(warning.message) for warning in caught) == 1


@pytest.mark.backend("jax")  # Elsewhere the record is no gradient of a variable.
def test_layer_in_a_frozen_model_warns_on_jax():
    model = build("mgda")
    model.get_layer("balancer").trainable = False
    compile_again(model)
    with pytest.warns(UserWarning, match="on JAX, the layer itself .* may be frozen"):
        train(model)


def test_statistics_are_means_over_the_epoch():
    weights = {"a": 1.0, "b": 3.0}
    model = build(None, weights)
    _, gradients = models.by_hand(model, kj.aggregators.Sum(), weights, 2 * STEPS)
    history = train(model, 2).history
    assert_statistics(statistics_of(model), gradients[STEPS:])
    norms = np.linalg.norm(gradients, axis=2).reshape(2, STEPS, 2).mean(axis=1)
    np.testing.assert_allclose(history["gradients_a_norm"], norms[:, 0], rtol=1e-3)
    assert history["gradients_b_coefficient"] == [1.0, 1.0]
    assert {"gradients_a~b_cosine", "gradients_a~b_conflict", "gradients_conflict"} <= set(history)


def test_evaluation_and_prediction_change_nothing():
    model = build("mgda")
    before = statistics_after(model)
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    assert_all_close(statistics_of(model), before, 0)


def test_lengths_are_independent_of_loss_scale():
    expected = statistics_after(build(None))
    actual = statistics_after(compile_again(build(None), loss_scale_factor=1024.0))
    np.testing.assert_allclose(actual.norms, expected.norms, rtol=1e-4)


def test_mixed_precision_reports_unscaled_gradients():
    keras.config.set_dtype_policy("mixed_float16")
    mixed = build(None)
    # With the default initial scale, some gradients overflow float16.
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.02), initial_scale=512)
    mixed.compile(optimizer, **kj.joint_loss(models.LOSSES))
    actual = statistics_after(mixed)
    keras.config.set_dtype_policy("float32")
    expected = statistics_after(build(None))
    np.testing.assert_allclose(actual.norms, expected.norms, rtol=0.02)
    np.testing.assert_allclose(actual.cosines, expected.cosines, atol=0.02)


def test_unscaled_rule_trains_identically_with_scaled_loss():
    def trained(factor):
        model = build(kj.aggregators.NashMTL(rescale=False))
        optimizer = keras.optimizers.SGD(0.002, loss_scale_factor=factor)
        model.compile(optimizer, loss=models.LOSSES)
        fit(model, 1)
        return weights_of(model)

    assert_all_close(trained(1024.0), trained(None), 1e-4, 1e-6)


def test_accumulated_gradients_are_reported():
    model = compile_again(build(None), learning_rate=0.0, gradient_accumulation_steps=5)
    values, batches = weights_of(model), [slice(i, i + 8) for i in range(0, len(X), 8)]
    at_z = [models.by_hand_step(values, rows, {"a": 1.0, "b": 1.0})[0] for rows in batches]
    gradients = np.stack(at_z).reshape(STEPS, 2, -1)
    # JAX reports only the last of the accumulated gradients.
    told = gradients[-1:] if BACKEND == "jax" else gradients
    assert_statistics(statistics_after(model), told)


def test_only_term_of_weight_0_has_no_cosine():
    model = build("mgda", {"a": 0.0, "b": 1.0})
    history = train(model).history
    statistics = statistics_of(model)
    assert statistics.norms[0] == 0 < statistics.norms[1]
    np.testing.assert_allclose(statistics.coefficients, [0, 1], atol=1e-6)
    assert np.isnan(statistics.cosines[0, 1])
    assert np.isnan(history["gradients_a~b_cosine"]).all()


def test_coefficients_are_smoothed_over_steps():
    def coefficients(ema):
        model, result = build(kj.aggregators.CAGrad(ema=ema)), []
        for start in (0, 8):
            rows = slice(start, start + 8)
            train(model, 1, X[rows], {term: y[rows] for term, y in Y.items()})
            result.append(statistics_of(model).coefficients)
        return result

    (first, second), (smooth_first, smooth_second) = coefficients(0.0), coefficients(0.75)
    np.testing.assert_allclose(smooth_first, first, rtol=1e-5)
    assert not np.allclose(first, second, rtol=1e-2)
    np.testing.assert_allclose(smooth_second, 0.75 * first + 0.25 * second, rtol=1e-3)


def test_tensorboard_shows_scalars_and_an_image(tmp_path):
    model = build("mgda")
    train(model, 2, log_dir=tmp_path)
    scalars = read_scalars(tmp_path / "train")
    tags = ("a/norm", "b/coefficient", "a~b/cosine", "a~b/conflict", "conflict")
    assert all(len(scalars[f"gradients/{tag}"]) == 2 for tag in tags)
    pictures = read_images(tmp_path / "train", "gradients/cosines")
    assert list(pictures) == [STEPS, 2 * STEPS]
    width, height, png = pictures[STEPS]
    assert (width, height) == (b"64", b"64")
    assert png.startswith(b"\x89PNG")


def length(y_true, y_pred):
    """A loss that is 0 where `y_true` is 0, with a non-finite gradient there."""
    return ops.sqrt(ops.sum(ops.square(y_true * y_pred), axis=-1))


def test_first_terms_with_nonfinite_gradients_are_reported():
    model = build("mgda")
    losses = {"a": length, "b": "mean_squared_error"}
    model.compile("sgd", **kj.joint_loss(losses))
    y = {**Y, "a": Y["a"].copy()}
    y["a"][16:24] = 0  # In the third step.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, 2, y=y)
    told = [str(warning.message) for warning in caught if "gradients" in str(warning.message)]
    assert told == [
        "The gradients of the terms ['a'] are not finite at layer 'balancer' (train, step 3)."
    ]
    layer = model.get_layer("balancer")
    # Nothing is finite from then on, and only this term is the cause.
    assert layer.statistics().nonfinite_step.tolist() == [3, 0]


def test_several_layers_log_under_distinct_names():
    inputs = keras.Input((5,))
    trunk = keras.layers.Dense(4)(inputs)
    upper = kj.layers.GradientBalancer(["a", "b"], name="upper")(trunk)
    lower = kj.layers.GradientBalancer(["c", "d"], name="lower")(trunk)
    outputs = {
        name: keras.layers.Dense(1)(z[name])
        for z, names in ((upper, "ab"), (lower, "cd"))
        for name in names
    }
    model = keras.Model(inputs, outputs)
    model.compile("sgd", loss=dict.fromkeys("abcd", "mean_squared_error"))
    history = train(model, y=dict.fromkeys("abcd", X[:, :1])).history
    assert "gradients_upper_a_norm" in history
    assert "gradients_lower_c~d_cosine" in history


def test_disabled_telemetry_records_nothing(tmp_path):
    inputs = keras.Input((5,))
    z = kj.layers.GradientBalancer(["a", "b"], telemetry=False)(keras.layers.Dense(4)(inputs))
    model = keras.Model(inputs, {name: keras.layers.Dense(1)(z[name]) for name in "ab"})
    model.compile("sgd", loss=models.LOSSES)
    model.fit(X, dict.fromkeys("ab", X[:, :1]), verbose=0)
    layer = model.layers[2]
    assert layer.statistics() is None
    layer.reset_statistics()
    step = int(ops.convert_to_numpy(layer.record.step))
    model.save_weights(tmp_path / "m.weights.h5")
    other = keras.models.clone_model(model)
    other.load_weights(tmp_path / "m.weights.h5")
    assert int(ops.convert_to_numpy(other.layers[2].record.step)) == step > 0
    assert sum(v.trainable for v in layer.variables) == 0
    with pytest.raises(ValueError, match="JointLossCallback expects a model with a term"):
        kj.callbacks.JointLossCallback().set_model(model)


def test_only_jax_record_is_trainable():
    layer = kj.layers.GradientBalancer(["a", "b"])
    layer.build((None, 3))
    assert len(layer.trainable_variables) == (BACKEND == "jax")
    assert sum(ops.size(v) for v in layer.trainable_variables) == (20 if BACKEND == "jax" else 0)


def test_weights_files_are_independent_of_variable_order(tmp_path):
    model, other = build("mgda"), build("mgda")
    train(model)
    model.save_weights(tmp_path / "m.weights.h5")
    other.load_weights(tmp_path / "m.weights.h5")
    layers = model.get_layer("balancer"), other.get_layer("balancer")
    records = [ops.convert_to_numpy(layer.record.latest) for layer in layers]
    np.testing.assert_array_equal(*records)
    assert layers[1].statistics() is None


def test_heat_map_of_cosines():
    picture = kj.tensorboard.heat_map(np.array([[1.0, -1.0], [0.0, np.nan]]))
    assert picture.shape == (64, 64, 3)
    assert picture.dtype == np.uint8
    blue, red, white, grey = picture[16, 16], picture[16, 48], picture[48, 16], picture[48, 48]
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert min(white) > 240
    assert len(set(grey.tolist())) == 1
