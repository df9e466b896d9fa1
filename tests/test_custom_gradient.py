"""The gradient of a function is the one that it comes with, wherever TensorFlow computes it."""

import gc

import numpy as np
import pytest
from keras import ops

from keras_jointloss._core.backend import custom_gradient
from tests.backends import tf
from tests.gradients import value_and_gradient

X = np.array([1.0, -2.0, 3.0], "float32")
Y = np.array([0.5, 0.25, 2.0], "float32")


def square(x):
    """Returns `x**2` with 5 times its gradient."""
    return custom_gradient(lambda x: (x * x, lambda upstream: upstream * 10 * x), x)


def product(x, y):
    """Returns `x y` with the gradients of the two exchanged."""

    def compute(x, y):
        return x * y, lambda upstream: (upstream * x, upstream * y)

    return custom_gradient(compute, x, y)


def test_one_input():
    _, found = value_and_gradient(lambda x: ops.sum(3 * square(x)), X)
    np.testing.assert_array_equal(found, 30 * X)


def test_several_inputs():
    _, found = value_and_gradient(lambda x: ops.sum(3 * product(x[0], x[1])), np.stack([X, Y]))
    np.testing.assert_array_equal(found, [3 * X, 3 * Y])


def function(compute, **options):
    return tf.function(compute, autograph=False, **options)


def recomputed(x):
    return tf.recompute_grad(square)(x)


def if_positive(x):
    return tf.cond(x[0] > 0, lambda: square(1 * x), lambda: x)


def once_in_a_loop(x):
    return tf.while_loop(lambda i, _: i < 1, lambda i, x: (i + 1, square(x)), (0, x))[1]


PLACES = {
    "eager": square,
    "function": lambda x: function(square)(x),
    "compiled function": lambda x: function(square, jit_compile=True)(x),
    "nested function": lambda x: function(lambda x: function(square)(x) + 0)(x),
    "condition": lambda x: function(if_positive)(x),
    "loop": lambda x: function(once_in_a_loop)(x),
    "recomputed function": lambda x: function(recomputed)(x),
}


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("is_inner", [False, True])
def test_gradient_on_tensorflow(place, is_inner, graphs):
    """The gradient is taken outside of the function, or within another function."""

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(3 * PLACES[place](x))
        return tape.gradient(y, x)

    before = graphs()
    found = (function(gradient) if is_inner else gradient)(tf.constant(X))
    np.testing.assert_array_equal(found, 30 * X)
    # TensorFlow itself keeps one of a function that it computes again.
    assert place == "recomputed function" or graphs() == before


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("is_inner", [False, True])
def test_second_gradient_on_tensorflow(is_inner):

    def second(x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as inner:
                inner.watch(x)
                y = tf.reduce_sum(square(x) * square(x))
            first = inner.gradient(y, x)
        # The first gradient is 20 x * square(x).
        return outer.gradient(first, x)

    found = (function(second) if is_inner else second)(tf.constant(X))
    np.testing.assert_allclose(found, 20 * X**2 + 20 * X * 10 * X, rtol=1e-6)


@pytest.mark.backend("tensorflow")
def test_gradient_in_a_saved_module(tmp_path):
    module = tf.Module()
    module.square = function(square, input_signature=[tf.TensorSpec((None,))])
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = loaded.square(x)
    np.testing.assert_array_equal(y, X * X)
    np.testing.assert_array_equal(tape.gradient(y, x), 10 * X)


@pytest.mark.backend("tensorflow")
def test_deleted_forward_pass_raises():
    spec = tf.TensorSpec((3,), name="x")
    definition = function(square).get_concrete_function(spec).graph.as_graph_def()
    gc.collect()
    with tf.Graph().as_default():
        (last,) = (node.name for node in definition.node if node.op == "IdentityN")
        names = ["x:0", f"{last}:0"]
        x, y = tf.graph_util.import_graph_def(definition, return_elements=names)
        with pytest.raises(RuntimeError, match="forward pass was deleted"):
            tf.gradients(y, x)
