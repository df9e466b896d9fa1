"""Value and gradient of a function, with one interface for all backends."""

import keras
from keras import ops

#: Whether numeric tests spend time on compilation. PyTorch runs them eagerly.
COMPILES = keras.backend.backend() != "torch"


def dtypes() -> tuple[str, ...]:
    """Returns the dtypes that the backend supports; JAX has no float64 by default."""
    return ("float32",) if keras.backend.backend() == "jax" else ("float32", "float64")


def value_and_gradient(function, x):
    """Returns the scalar `function(x)` and its gradient as NumPy arrays."""
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


def compiled(function):
    """Returns `function`, compiled once for each shape if the backend compiles."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    if backend == "jax":
        import jax

        return jax.jit(function)
    return function


def compiled_value_and_gradient(function, **options):
    """Returns `value_and_gradient` of `function(x, *others)`, compiled by XLA for each shape.

    Other options are of `tf.function`.
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(**{"jit_compile": True, **options})
        def compiled(x, *others):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function(x, *others)
            return value, tape.gradient(value, x)

    elif backend == "jax":
        import jax

        compiled = jax.jit(jax.value_and_grad(function))

    def compute(x, *others):
        others = [None if other is None else ops.convert_to_tensor(other) for other in others]
        if backend == "torch":
            return value_and_gradient(lambda x: function(x, *others), x)
        value, gradient = compiled(ops.convert_to_tensor(x), *others)
        return ops.convert_to_numpy(value), ops.convert_to_numpy(gradient)

    return compute
