"""Value and gradient of a function, in the same words on every backend."""

import keras
from keras import ops


def dtypes() -> tuple[str, ...]:
    """Returns the dtypes in which the backend can compute; JAX has no float64 by default."""
    return ("float32",) if keras.backend.backend() == "jax" else ("float32", "float64")


def value_and_gradient(function, x):
    """Returns `function(x)`, a scalar, and its gradient, as NumPy arrays."""
    backend = keras.backend.backend()
    x = ops.convert_to_tensor(x)
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        gradient = tape.gradient(value, x)
    elif backend == "jax":
        import jax

        value, gradient = jax.value_and_grad(function)(x)
    else:
        x = x.clone().requires_grad_(True)
        value = function(x)
        value.backward()
        gradient = x.grad
    return ops.convert_to_numpy(value), ops.convert_to_numpy(gradient)
