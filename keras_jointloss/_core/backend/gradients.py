"""`custom_gradient` for each backend."""

import weakref
from typing import Any

from keras import ops

#: The attribute of a TensorFlow graph that holds its gradient functions. Graphs within it would
#: copy an entry of `Graph.add_to_collection`, also those of functions that outlive the graph.
_GRADIENTS = "keras_jointloss_gradients"


def of_keras(compute, inputs):
    """`custom_gradient` on JAX and PyTorch."""

    def computed(*inputs):
        result, gradient = compute(*inputs)

        # PyTorch passes the upstream gradient by name, after the inputs.
        def of_upstream(*arguments, upstream=None):
            return gradient(arguments[0] if upstream is None else upstream)

        return result, of_upstream

    return ops.custom_gradient(computed)(*inputs)


class _Result:
    """A tensor of a graph, until it is released."""

    def __init__(self, tensor):
        self.tensor: Any = tensor

    @property
    def graph(self):
        return self.tensor.graph

    def __tf_tensor__(self, dtype=None, name=None):
        return self.tensor


def of_tensorflow(compute, inputs):
    """`custom_gradient` on TensorFlow, where a result may be a tuple with a gradient for each.

    In a graph, `tf.custom_gradient` registers the results and the gradient function forever, and
    both refer to the graph. Here it holds the results only while it runs, and the graph owns the
    gradient function, a cycle that Python frees.
    """
    import tensorflow as tf

    # Outside of a graph, Keras leaves a variable what it is.
    inputs = [tf.convert_to_tensor(x) for x in inputs]
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

    value = computed(*inputs)
    for result in results:
        result.tensor = None
    return value
