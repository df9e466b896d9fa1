"""The gradient of a function is the one that it comes with, wherever TensorFlow computes it."""

import gc

import numpy as np
import pytest
from keras import ops

from keras_jointloss._core.backend import custom_gradient
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
    import tensorflow as tf

    return tf.function(compute, autograph=False, **options)


def in_function(x):
    return function(square)(x)


def in_compiled_function(x):
    return function(square, jit_compile=True)(x)


def in_nested_function(x):
    return function(lambda x: function(square)(x) + 0)(x)


def in_condition(x):
    import tensorflow as tf

    return function(lambda x: tf.cond(x[0] > 0, lambda: square(1 * x), lambda: x))(x)


def in_loop(x):
    import tensorflow as tf

    def loop(x):
        return tf.while_loop(lambda i, _: i < 1, lambda i, x: (i + 1, square(x)), (0, x))[1]

    return function(loop)(x)


def in_recomputed_function(x):
    import tensorflow as tf

    return function(tf.recompute_grad(square))(x)


PLACES = [square, in_function, in_compiled_function, in_nested_function, in_condition, in_loop]


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("place", [*PLACES, in_recomputed_function], ids=lambda x: x.__name__)
@pytest.mark.parametrize("is_inner", [False, True])
def test_gradient_on_tensorflow(place, is_inner, graphs):
    """The gradient is taken outside of the function, or within another function."""
    import tensorflow as tf

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(3 * place(x))
        return tape.gradient(y, x)

    before = graphs()
    found = (function(gradient) if is_inner else gradient)(tf.constant(X))
    np.testing.assert_array_equal(found, 30 * X)
    # TensorFlow itself keeps one of a function that it computes again.
    assert place is in_recomputed_function or graphs() == before


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("is_inner", [False, True])
def test_second_gradient_on_tensorflow(is_inner):
    import tensorflow as tf

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
    import tensorflow as tf

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
    import tensorflow as tf

    spec = tf.TensorSpec((3,), name="x")
    definition = function(square).get_concrete_function(spec).graph.as_graph_def()
    gc.collect()
    with tf.Graph().as_default():
        (last,) = (node.name for node in definition.node if node.op == "IdentityN")
        names = ["x:0", f"{last}:0"]
        x, y = tf.graph_util.import_graph_def(definition, return_elements=names)
        with pytest.raises(RuntimeError, match="forward pass was deleted"):
            tf.gradients(y, x)
