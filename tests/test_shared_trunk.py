"""The shared trunk: combined parameter gradients compared with manual gradients per term."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.gradients import dtypes
from tests.test_aggregators import combine
from tests.test_gradient_balancer import (
    BACKEND,
    X,
    Y,
    by_hand_step,
    fit,
    weights_of,
    with_heads,
)


def build(aggregator, trunk=None, weights=None, floatx="float32", **compile_arguments):
    keras.config.set_floatx(floatx)
    keras.utils.set_random_seed(2)
    trunk = trunk or keras.layers.Dense(4, name="trunk")
    inputs = keras.Input((5,))
    z = kj.layers.SharedTrunk(trunk, ["a", "b"], aggregator, name="shared")(inputs)
    return with_heads(inputs, z, weights=weights, **compile_arguments)


@pytest.mark.parametrize("rule", ["mgda", "pcgrad"])
def test_fit_equals_manual_loop(rule):
    is_exact = BACKEND == "tensorflow"  # On others, Keras computes some operations in float32.
    term_weights = {"a": 1.0, "b": 3.0}
    model = build(rule, weights=term_weights, floatx="float64" if is_exact else "float32")
    values = {name: value.astype("float64") for name, value in weights_of(model).items()}
    aggregator = kj.aggregators.get(rule)
    for step in range(20):
        rows = slice(8 * (step % 5), 8 * (step % 5 + 1))
        at_z, updates = by_hand_step(values, rows, term_weights)
        # Each term's gradient for the kernel and bias of the trunk.
        of_terms = [np.concatenate([(X[rows].T @ g).ravel(), g.sum(axis=0)]) for g in at_z]
        combined = combine(aggregator, np.stack(of_terms), dtypes()[-1], step)
        updates["shared_0"], updates["shared_1"] = combined[:20].reshape(5, 4), combined[20:]
        for name, update in updates.items():
            values[name] = values[name] - 0.02 * update
    fit(model)
    tolerance = 1e-6 if is_exact else 2e-3
    for name, value in weights_of(model).items():
        np.testing.assert_allclose(value, values[name], rtol=tolerance, atol=tolerance)


def stateful_trunk():
    keras.utils.set_random_seed(2)
    return keras.Sequential(
        [
            keras.layers.Dense(4, activation="tanh", kernel_regularizer="l2"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5, seed=1),
        ],
        name="trunk",
    )


def test_sum_trains_like_plain_trunk():
    def trained(is_shared):
        model = build("sum", stateful_trunk())
        if not is_shared:
            inputs = keras.Input((5,))
            z = model.get_layer("shared").trunk(inputs)
            model = keras.Model(inputs, {term: model.get_layer(f"head_{term}")(z) for term in "ab"})
            losses = dict.fromkeys("ab", "mean_squared_error")
            model.compile(keras.optimizers.SGD(0.02), **kj.joint_loss(losses))
        fit(model)
        trunk = model.get_layer("shared").trunk if is_shared else model.get_layer("trunk")
        return [ops.convert_to_numpy(v) for v in trunk.weights]

    for actual, expected in zip(trained(True), trained(False), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)


def test_evaluation_equals_evaluation_of_the_trunk():
    model = build("mgda", stateful_trunk())
    fit(model, 1)
    z = model.get_layer("shared").trunk(X, training=False)
    copies = model.get_layer("shared")(X, training=False)
    for copy in copies.values():
        np.testing.assert_array_equal(ops.convert_to_numpy(copy), ops.convert_to_numpy(z))


def test_statistics_refer_to_parameter_gradients():
    model = build(None)
    values = {name: value.astype("float64") for name, value in weights_of(model).items()}
    at_z, _ = by_hand_step(values, slice(0, 8), {"a": 1.0, "b": 1.0})
    of_terms = [np.concatenate([(X[:8].T @ g).ravel(), g.sum(axis=0)]) for g in at_z]
    callback = kj.callbacks.JointLossCallback()
    targets = {term: y[:8] for term, y in Y.items()}
    model.fit(X[:8], targets, batch_size=8, verbose=0, callbacks=[callback])
    statistics = model.get_layer("shared").statistics()
    np.testing.assert_allclose(statistics.norms, np.linalg.norm(of_terms, axis=1), rtol=1e-4)


def test_frozen_trunk_is_unchanged():
    model = build("mgda")
    model.get_layer("shared").trunk.trainable = False
    joint = kj.joint_loss(dict.fromkeys("ab", "mean_squared_error"))
    model.compile(keras.optimizers.SGD(0.02), **joint)
    before = weights_of(model)
    trunk = [ops.convert_to_numpy(v) for v in model.get_layer("shared").trunk.variables]
    fit(model, 1)
    for old, new in zip(trunk, model.get_layer("shared").trunk.variables, strict=True):
        np.testing.assert_array_equal(old, ops.convert_to_numpy(new))
    assert not np.array_equal(weights_of(model)["head_a_0"], before["head_a_0"])


@pytest.mark.backend("tensorflow")
@pytest.mark.slow
def test_replicas_balance_like_one_device():
    from tests.test_training import replicas

    one = build("mgda")
    fit(one)
    with replicas(2).scope():
        two = build("mgda")
    fit(two)
    for expected, actual in zip(one.trainable_variables, two.trainable_variables, strict=True):
        np.testing.assert_allclose(np.array(actual), np.array(expected), rtol=1e-4, atol=1e-6)


def test_trunk_that_adds_losses_is_refused():
    with pytest.raises(ValueError, match=r"`trunk`.*Received: trunk='dense'"):
        kj.layers.SharedTrunk("dense", ["a", "b"])
    inputs = keras.Input((5,))
    a, b = kj.layers.ContrastiveTerm("InfoNCE")((inputs, inputs))
    with pytest.raises(ValueError, match="no layer adds to the loss"):
        kj.layers.SharedTrunk(keras.Model(inputs, a + b), ["a", "b"])
    layer = kj.layers.SharedTrunk(keras.layers.Dense(2, activity_regularizer="l2"), ["a", "b"])
    with pytest.raises(ValueError, match="no layer adds to the loss"):
        layer(X[:4], training=True)
