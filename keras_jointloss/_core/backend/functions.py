"""What the running function and the variables of a layer are to each backend."""

import inspect
from types import CodeType
from typing import Any

import keras

from keras_jointloss._core.backend import name


def current_trace() -> Any:
    """Returns an object that equals another one if both are of the same traced function.

    A tensor of a function must not be used in one that encloses it. `None` for operations that run
    immediately, except on JAX.
    """
    if name() == "torch":
        return None
    if name() == "jax":
        from jax.extend.core import get_opaque_trace_state

        return get_opaque_trace_state()
    import tensorflow as tf

    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def has_own_gradient(outermost: CodeType) -> bool:
    """Returns whether a function runs that leaves out the gradients of the tensors it captures.

    On TensorFlow, a function with a gradient of its own has gradients of its arguments and of
    variables only.

    Args:
        outermost: The code of a running function, beyond which not to look.
    """
    if name() != "tensorflow":
        return False
    frame: Any = inspect.currentframe()
    while frame is not None and frame.f_code is not outermost:
        if frame.f_globals.get("__name__") == "tensorflow.python.ops.custom_gradient":
            return True
        frame = frame.f_back
    return False


def native_state(layer: keras.layers.Layer) -> list[str]:
    """Returns the names of the attributes of a layer that are variables, but not of Keras."""
    if name() == "torch":
        return [attribute for attribute, _ in layer.named_buffers(recurse=False)]
    if name() == "jax":
        return []
    import tensorflow as tf

    return [key for key, value in vars(layer).items() if isinstance(value, tf.Variable)]
