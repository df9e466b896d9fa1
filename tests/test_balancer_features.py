"""The gradient balancer with several features: joined in one call, and refused in several."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.balanced_models import LOSSES, TERMS, weights_of
from tests.gradients import value_and_gradient

GENERATOR = np.random.default_rng(6)
# The batch sizes and the ranks differ.
SHAPES = ((2, 4), (5, 3), (3, 2, 2))
SIZES = [int(np.prod(shape)) for shape in SHAPES]
FEATURES = GENERATOR.normal(size=sum(SIZES)).astype("float32")
# The losses of the terms are linear in the features, with these gradients.
GRADIENTS = GENERATOR.normal(size=(len(TERMS), sum(SIZES))).astype("float32")


def parts_of(rows):
    """Returns the features in the last axis of an array."""
    ends = np.cumsum(SIZES)
    return [
        rows[..., end - size : end].reshape(*rows.shape[:-1], *shape)
        for end, size, shape in zip(ends, SIZES, SHAPES, strict=True)
    ]


@pytest.mark.parametrize("reduction", ["flatten", "sum"])
@pytest.mark.parametrize("rule", ["mgda", "pcgrad"])
def test_gradients_of_features_of_different_batch_sizes_are_combined(rule, reduction):
    layer = kj.layers.GradientBalancer(TERMS, rule, reduction)
    layer.build(None)

    def total(z):
        parts = ops.split(z, np.cumsum(SIZES)[:-1].tolist())
        parts = [ops.reshape(x, shape) for x, shape in zip(parts, SHAPES, strict=True)]
        copies = layer({"first": parts[0], "others": parts[1:]}, training=True)
        flat = [[ops.reshape(x, (-1,)) for x in keras.tree.flatten(copies[t])] for t in TERMS]
        joined = [ops.concatenate(parts) for parts in flat]
        pairs = zip(joined, GRADIENTS, strict=True)
        return sum(ops.sum(x * ops.convert_to_tensor(gradient)) for x, gradient in pairs)

    rows = GRADIENTS
    if reduction == "sum":
        sums = [part.sum(axis=1).reshape(len(TERMS), -1) for part in parts_of(GRADIENTS)]
        rows = np.concatenate(sums, axis=1)
    coefficients = kj.aggregators.get(rule).solve((rows @ rows.T).astype("float32"))
    expected = ops.convert_to_numpy(coefficients) @ GRADIENTS
    _, actual = value_and_gradient(total, FEATURES)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def build(calls, rule="mgda", telemetry=True):
    """Returns a model with a head for each input, between which a balancer is called."""
    keras.utils.set_random_seed(3)
    trunk = keras.layers.Dense(4, name="trunk")
    balancer = kj.layers.GradientBalancer(["a", "b"], rule, telemetry=telemetry, name="balancer")
    heads = {term: keras.layers.Dense(1, name=f"head_{term}") for term in "ab"}
    inputs = [keras.Input((5,), name=term) for term in "ab"]
    features = [trunk(x) for x in inputs]
    if calls == 1:
        z = balancer(features)
        of_heads = {"a": z["a"][0], "b": z["b"][1]}
    else:
        of_heads = {term: balancer(x)[term] for term, x in zip("ab", features, strict=True)}
    model = keras.Model(inputs, {term: head(of_heads[term]) for term, head in heads.items()})
    model.compile(keras.optimizers.SGD(0.1), loss=LOSSES)
    return model


X = [GENERATOR.normal(size=(size, 5)) for size in (8, 3)]
Y = {"a": GENERATOR.normal(size=(8, 1)), "b": 10 * GENERATOR.normal(size=(3, 1))}


@pytest.mark.parametrize("jit_compile", [False, True])
def test_inputs_of_different_batch_sizes_are_balanced_in_training(jit_compile):
    if jit_compile and keras.backend.backend() == "torch":
        pytest.skip("Compiles for minutes.")
    model = build(1)
    model.jit_compile = jit_compile
    values = weights_of(model)
    gradients = []
    for x, (term, y) in zip(X, Y.items(), strict=True):
        kernel, bias = values[f"head_{term}_0"], values[f"head_{term}_1"]
        error = (x @ values["trunk_0"] + values["trunk_1"]) @ kernel + bias - y
        gradients.append(2 * error / error.size @ kernel.T)
    # The gradients of the terms are orthogonal: these coefficients give the shortest combination.
    squares = np.array([np.sum(gradient**2) for gradient in gradients])
    coefficients = squares[::-1] / squares.sum()
    combined = sum(c * x.T @ g for c, x, g in zip(coefficients, X, gradients, strict=True))
    model.train_on_batch(X, Y)
    expected = values["trunk_0"] - 0.1 * combined
    np.testing.assert_allclose(weights_of(model)["trunk_0"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("telemetry", [True, False])
def test_several_calls_in_a_step_warn_once(telemetry):
    model = build(2, telemetry=telemetry)
    message = "'balancer' is called several times.*with a list of all the features.*`SharedTrunk`"
    with pytest.warns(UserWarning, match=message):
        model.train_on_batch(X, Y)
    model.run_eagerly, model.train_function = True, None  # Is traced again, or not at all.
    model.train_on_batch(X, Y)
    # One call alone has no gradient of the other's term: that is no second thing to warn of.
    callbacks = [kj.callbacks.JointLossCallback()] if telemetry else []
    y = {"a": Y["a"], "b": Y["a"]}
    model.optimizer.learning_rate = 1e-3
    model.fit([X[0]] * 2, y, batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
