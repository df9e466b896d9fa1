"""The layer that scales or reverses the gradient."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.layers import GradientScale
from tests.backends import BACKEND, once_compiled, tf, torch
from tests.comparisons import assert_all_close
from tests.gradients import compiled_value_and_gradient, dtypes, value_and_gradient
from tests.refusals import refuses
from tests.small_models import X, Y, copies_of
from tests.test_export import operation_types

#: That of DANN over 10 steps: 0 at first, nearly -1 at the end.
SCHEDULE = kj.schedules.Sigmoid(1.0, -1.0, midpoint=0, width=1)
SPECIAL = np.array([0.0, -0.0, 1e-40, -3.7, np.inf, np.nan], "float32")


def steep(x):
    """Returns a number whose gradient differs from element to element."""
    return ops.sum(ops.sin(3 * x) * x)


def scaled(scale):
    layer = GradientScale(scale)
    return lambda x: steep(layer(x))


@pytest.mark.parametrize("compute", [value_and_gradient, "compiled"])
@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize("scale", [-1.0, 0.25, 0.0, 3.0, -0.1])
def test_gradient_is_the_plain_one_times_the_scale(scale, dtype, compute):
    x = np.random.default_rng(0).normal(size=(7, 5)).astype(dtype)

    def found(function):
        if compute == "compiled":
            return compiled_value_and_gradient(function)(x)
        return compute(function, x)

    plain, gradient = found(steep)
    value, changed = found(scaled(scale))
    np.testing.assert_array_equal(value, plain)
    # The reversed one to the last bit, and others as NumPy rounds the product.
    np.testing.assert_array_equal(changed, (gradient * np.asarray(scale, dtype)).astype(dtype))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_scales_in_float32(dtype):
    x = np.array([1.0, 2.5, -3.0], "float32")

    def function(x):
        half = GradientScale(1e-3, dtype="mixed_float16")(ops.cast(x, dtype))
        assert keras.backend.standardize_dtype(half.dtype) == dtype
        return ops.sum(ops.cast(half, "float32") * 3)

    _, gradient = value_and_gradient(function, x)
    rounded = ops.convert_to_numpy(ops.cast(ops.cast(3 * np.float32(1e-3), dtype), "float32"))
    np.testing.assert_array_equal(gradient, np.full(3, rounded))


def test_inputs_are_returned_bit_by_bit_in_any_structure():
    inputs = {"a": SPECIAL, "b": [np.arange(3, dtype="int32"), np.array([True, False])]}
    inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
    for training in (True, False):
        outputs = GradientScale(-1.0)(inputs, training=training)
        keras.tree.assert_same_structure(inputs, outputs)
        for x, y in zip(*map(keras.tree.flatten, (inputs, outputs)), strict=True):
            assert ops.convert_to_numpy(x).tobytes() == ops.convert_to_numpy(y).tobytes()
    symbolic = keras.tree.map_structure(lambda x: keras.Input((2,), dtype=x.dtype), inputs)
    found = GradientScale(-1.0)(symbolic)
    assert [x.dtype for x in keras.tree.flatten(found)] == ["float32", "int32", "bool"]


@once_compiled  # JAX differentiates the forward pass of a custom gradient without it.
def test_second_derivative_is_scaled_twice():
    layer = GradientScale(-2.0)
    x = np.array([0.5, 2.0], "float32")

    def slope(x):
        """Returns the sum of the gradient of the sum of cubes."""
        if BACKEND == "tensorflow":
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = ops.sum(layer(x) ** 3)
            return ops.sum(tape.gradient(y, x))
        (first,) = torch.autograd.grad((layer(x) ** 3).sum(), x, create_graph=True)
        return first.sum()

    _, found = value_and_gradient(slope, x)
    # The gradient is -2 * 3 y^2, and y is x with a gradient that is scaled again.
    np.testing.assert_allclose(found, 4 * 6 * x, rtol=1e-6)


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
def mean_output(target, output):
    return ops.mean(output, axis=-1)


def make(scale, calls=1):
    """Returns a linear model, whose kernel has the same gradient in each step."""
    inputs = keras.Input((5,), name="x")
    z = keras.layers.Dense(2, use_bias=False, kernel_initializer="ones", name="trunk")(inputs)
    layer = GradientScale(scale, name="adversary")
    z = sum(layer(z) for _ in range(calls))
    model = keras.Model(inputs, z)
    model.compile(keras.optimizers.SGD(1.0), mean_output)
    return model


def steps_of(model, epochs, callbacks=None, start=0):
    """Returns how far the kernel moves in each step of one batch, and the logs."""
    kernel = model.get_layer("trunk").kernel
    moves, before = [], ops.convert_to_numpy(kernel).copy()
    if callbacks is None:
        callbacks = [kj.callbacks.JointLossCallback()]
    logs = {}
    for epoch in range(start, start + epochs):
        options = {"epochs": epoch + 1, "initial_epoch": epoch, "callbacks": callbacks}
        data = {"validation_data": (X, X[:, :1]), "batch_size": len(X), "verbose": 0}
        history = model.fit(X, X[:, :1], **data, **options).history
        for name, values in history.items():
            logs.setdefault(name, []).extend(values)
        now = ops.convert_to_numpy(kernel).copy()
        moves.append(now - before)
        before = now
    return np.array(moves), logs


@pytest.mark.parametrize("calls", [1, 2])
def test_schedule_follows_the_steps_of_training_through_saving(tmp_path, calls):
    (plain,), _ = steps_of(make(1.0, calls), 1, [])
    model = make(SCHEDULE, calls)
    moves, logs = steps_of(model, 2)
    model.predict(X, verbose=0)
    model(X, training=True)
    clone, loaded = copies_of(model, tmp_path) if calls == 1 else (None, model)
    if calls == 1:
        assert clone.get_layer("adversary").scale.get_config() == SCHEDULE.get_config()
    more, more_logs = steps_of(loaded, 2, start=2)
    numbers = [float(SCHEDULE(step)) for step in range(5)]
    expected = [number * plain for number in numbers[:4]]
    np.testing.assert_allclose([*moves, *more], expected, rtol=1e-5, atol=1e-6)
    # At the end of an epoch, of one step, the logs show the value of the next step.
    found = [*logs["adversary_scale"], *more_logs["adversary_scale"]]
    np.testing.assert_allclose(found, numbers[1:], rtol=1e-5)
    assert logs["val_adversary_scale"] == logs["adversary_scale"]


@once_compiled
def test_schedule_without_callback_warns_and_stands_still():
    model = make(kj.schedules.Linear(0.5, -1.0, 4))
    with pytest.warns(UserWarning, match="scales of gradients.*do not move.*JointLossCallback"):
        moves, _ = steps_of(model, 2, [])
    np.testing.assert_allclose(moves[1], moves[0], rtol=1e-5)


@once_compiled
def test_constant_has_no_state_and_is_not_logged():
    model = make(-1.0)
    plain = keras.Sequential([keras.Input((5,)), keras.layers.Dense(2, use_bias=False)])
    assert len(model.variables) == len(plain.variables)
    _, logs = steps_of(model, 1, [])
    assert set(logs) == {"loss", "val_loss"}


def test_term_hardly_moves_the_trunk_and_trains_its_head():
    def trained(scale):
        keras.utils.set_random_seed(0)
        inputs = keras.Input((5,))
        z = keras.layers.Dense(3, name="trunk")(inputs)
        scaled = z if scale is None else GradientScale(scale)(z)
        model = keras.Model(inputs, {"a": keras.layers.Dense(2, name="head")(scaled)})
        before = [np.copy(ops.convert_to_numpy(x)) for x in model.trainable_variables]
        model.compile(keras.optimizers.SGD(0.1), **kj.joint_loss({"a": "mse"}))
        model.fit(X, {"a": Y["a"]}, batch_size=len(X), verbose=0)
        after = [ops.convert_to_numpy(x) for x in model.trainable_variables]
        return [y - x for x, y in zip(before, after, strict=True)]

    plain = trained(None)
    for scale in (0.25, -1.0):
        found = trained(scale)
        assert_all_close(found[:2], [scale * x for x in plain[:2]], 1e-4, 1e-7)
        assert_all_close(found[2:], plain[2:], 1e-6)


@pytest.mark.backend("tensorflow")
def test_prediction_has_no_operation_of_the_layer():
    model = make(-1.0)
    model.predict(X, verbose=0)

    @tf.function
    def predict(x):
        return model.predict_step((x,))

    types = operation_types(predict.get_concrete_function(tf.TensorSpec((None, 5))))
    assert "IdentityN" not in types


@once_compiled
def test_two_scales_of_one_name_are_refused():
    inputs = keras.Input((5,))

    def part(name):
        output = GradientScale(SCHEDULE, name="scale")(keras.layers.Dense(2)(inputs))
        return keras.Model(inputs, output, name=name)(inputs)

    model = keras.Model(inputs, part("a") + part("b"))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="two layers named 'scale'"):
        model.fit(X, X[:, :2], callbacks=[kj.callbacks.JointLossCallback()], verbose=0)


@once_compiled
def test_mask_passes_through():
    inputs = keras.Input((3, 2))
    masked = GradientScale(0.5)(keras.layers.Masking()(inputs))
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling1D()(masked))
    x = np.array([[[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]]], "float32")
    np.testing.assert_allclose(ops.convert_to_numpy(model(x)), [[2.0, 3.0]])


test_invalid_arguments_are_refused = refuses(
    GradientScale,
    ({"scale": "reverse"}, "`scale`.*finite number or a.*LearningRateSchedule.*'reverse'"),
    ({"scale": float("nan")}, "`scale`.*finite number.*Received: scale=nan"),
    ({"scale": float("inf")}, "`scale`.*Received: scale=inf"),
    ({"scale": True}, "`scale`.*Received: scale=True"),
    ({"scale": None}, "`scale`.*Received: scale=None"),
)


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_inputs_without_a_gradient_are_refused(dtype):
    layer = GradientScale(-1.0)
    for x in (np.ones(3, dtype), keras.Input((3,), dtype=dtype)):
        with pytest.raises(ValueError, match=f"`inputs`.*floating-point tensor.*'{dtype}'"):
            layer(x)
