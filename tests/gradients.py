"""Value and gradient of a function, with one interface for all backends."""

from keras import ops

from tests.backends import BACKEND, jax, tf

#: Whether numeric tests spend time on compilation. PyTorch runs them eagerly.
COMPILES = BACKEND != "torch"


def dtypes() -> tuple[str, ...]:
    """Returns the dtypes that the backend supports; JAX has no float64 by default."""
    return ("float32",) if BACKEND == "jax" else ("float32", "float64")


def value_and_gradient(function, x):
    """Returns the scalar `function(x)` and its gradient as NumPy arrays."""
    x = ops.convert_to_tensor(x)
    if BACKEND == "tensorflow":
        with tf.GradientTape() as tape:
            tape.watch(x)
            value = function(x)
        gradient = tape.gradient(value, x)
    elif BACKEND == "jax":
        value, gradient = jax.value_and_grad(function)(x)
    else:
        x = x.clone().requires_grad_(True)
        value = function(x)
        value.backward()
        gradient = x.grad
    return ops.convert_to_numpy(value), ops.convert_to_numpy(gradient)


def compiled(function):
    """Returns `function`, compiled once for each shape if the backend compiles."""
    if BACKEND == "tensorflow":
        return tf.function(function, autograph=False)
    if BACKEND == "jax":
        return jax.jit(function)
    return function


def compiled_value_and_gradient(function, **options):
    """Returns `value_and_gradient` of `function(x, *others)`, compiled by XLA for each shape.

    Other options are of `tf.function`.
    """
    if BACKEND == "tensorflow":

        @tf.function(**{"jit_compile": True, **options})
        def compiled(x, *others):
            with tf.GradientTape() as tape:
                tape.watch(x)
                value = function(x, *others)
            return value, tape.gradient(value, x)

    elif BACKEND == "jax":
        compiled = jax.jit(jax.value_and_grad(function))

    def compute(x, *others):
        others = [None if other is None else ops.convert_to_tensor(other) for other in others]
        if BACKEND == "torch":
            return value_and_gradient(lambda x: function(x, *others), x)
        value, gradient = compiled(ops.convert_to_tensor(x), *others)
        return ops.convert_to_numpy(value), ops.convert_to_numpy(gradient)

    return compute
