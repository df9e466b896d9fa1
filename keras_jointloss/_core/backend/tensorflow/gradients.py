"""Gradients on TensorFlow."""

import inspect
import weakref
from types import CodeType
from typing import Any

import tensorflow as tf

#: The attribute of a TensorFlow graph that holds its gradient functions. Graphs within it would
#: copy an entry of `Graph.add_to_collection`, also those of functions that outlive the graph.
_GRADIENTS = "keras_jointloss_gradients"


class _Result:
    """A tensor of a graph, until it is released."""

    def __init__(self, tensor):
        self.tensor: Any = tensor

    @property
    def graph(self):
        return self.tensor.graph

    def __tf_tensor__(self, dtype=None, name=None):
        return self.tensor


def custom_gradient(compute, *inputs):
    """Returns what `compute` returns, differentiated with the function it returns.

    The result may be a tuple with a gradient for each tensor.

    In a graph, `tf.custom_gradient` registers the results and the gradient function forever, and
    both refer to the graph. Here it holds the results only while it runs, and the graph owns the
    gradient function, a cycle that Python frees.
    """
    # Outside of a graph, Keras leaves a variable what it is.
    tensors = [tf.convert_to_tensor(x) for x in inputs]
    results: list[_Result] = []

    @tf.custom_gradient
    def computed(*inputs):
        result, gradient = compute(*inputs)
        if tf.executing_eagerly():
            return result, gradient
        graph = tf.compat.v1.get_default_graph()
        setattr(graph, _GRADIENTS, [*getattr(graph, _GRADIENTS, []), gradient])
        reference = weakref.ref(gradient)

        def of_upstream(*upstream):
            gradient = reference()
            if gradient is None:
                raise RuntimeError("The forward pass was deleted before the backward pass.")
            return gradient(*upstream)

        result = tf.nest.map_structure(_Result, result)
        results.extend(tf.nest.flatten(result))
        return result, of_upstream

    value = computed(*tensors)
    for result in results:
        result.tensor = None
    return value


def differentiated(x):
    """Returns the tensor: TensorFlow differentiates with respect to trainable variables."""
    return x


def has_own_gradient(outermost: CodeType) -> bool:
    """Returns whether a function runs that has a gradient of its own.

    It has gradients of its arguments and of variables only.
    """
    frame: Any = inspect.currentframe()
    while frame is not None and frame.f_code is not outermost:
        if frame.f_globals.get("__name__") == "tensorflow.python.ops.custom_gradient":
            return True
        frame = frame.f_back
    return False
