"""JAX, whose training step is a function of the variables and computes the global batch."""

import contextlib
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from keras import ops

from keras_jointloss._core.backend.numbers import FirstRow, Number, all_finite, is_immediate
from keras_jointloss._core.backend.replicas import ONE_DEVICE, OneDevice

__all__ = [
    "FirstRow", "Number", "all_finite", "batch_shards", "checked", "current_replicas",
    "current_trace", "custom_gradient", "decided", "differentiated", "has_own_gradient", "is_chief",
    "is_immediate", "is_on_accelerator", "is_readable", "is_traced", "native_state", "predict",
    "quick_ops", "replica_values", "runs_in_python", "trains_functionally", "variable_scope",
    "vector",
]  # fmt: skip


def trains_functionally() -> bool:
    """Returns True: a training step is a function of the variables."""
    return True


def runs_in_python() -> bool:
    """Returns False: loops are compiled."""
    return False


def current_replicas() -> OneDevice:
    """Returns one device: a loss is always that of the global batch."""
    return ONE_DEVICE


def batch_shards() -> int:
    """Returns over how many devices `keras.distribution` splits a batch."""
    distribution = keras.distribution.distribution()
    if distribution is None:
        return 1
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]


def is_chief(model: keras.Model) -> bool:
    """Returns whether this is the first process."""
    return jax.process_index() == 0


def predict(model: keras.Model, x: Any, batch_size: int | None = None) -> Any:
    """Returns what `model.predict` returns, which cannot return outputs split over processes.

    Each of several processes computes all outputs, on one of its devices.
    """
    if jax.process_count() == 1:
        return model.predict(x, batch_size=batch_size, verbose=0)
    from jax.experimental import multihost_utils

    batch_size = batch_size or 32

    def values(variables):
        values = [variable.value for variable in variables]
        return [np.asarray(x) for x in multihost_utils.process_allgather(values, tiled=True)]

    @jax.jit
    def step(trainable, others, x):
        return model.stateless_call(trainable, others, x, training=False)[0]

    state = values(model.trainable_variables), values(model.non_trainable_variables)
    rows = len(keras.tree.flatten(x)[0])
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        parts = []
        for start in range(0, rows, batch_size):
            cut = operator.itemgetter(slice(start, start + batch_size))
            part = keras.tree.map_structure(cut, x)
            parts.append(jax.tree.map(np.asarray, step(*state, part)))
    finally:
        keras.distribution.set_distribution(distribution)
    return jax.tree.map(lambda *parts: np.concatenate(parts), *parts)


def variable_scope(model: keras.Model):
    """Returns a context that does nothing."""
    return contextlib.nullcontext()


def is_on_accelerator(x) -> bool:
    """Returns whether JAX computes on a GPU or TPU."""
    return jax.default_backend() != "cpu"


def decided(condition):
    """Returns the condition."""
    return condition


def is_traced(tensors: Any) -> bool:
    """Returns whether one of the tensors is traced."""
    return any(isinstance(x, jax.core.Tracer) for x in keras.tree.flatten(tensors))


def is_readable(x: Any) -> bool:
    """Returns whether an array has values in this process."""
    return not is_traced(x) and (not ops.is_tensor(x) or x.is_fully_addressable)


def current_trace() -> Any:
    """Returns the state of the trace, also where operations run immediately."""
    from jax.extend.core import get_opaque_trace_state

    return get_opaque_trace_state()


def custom_gradient(compute, *inputs):
    """Returns the tensor that `compute` returns, differentiated with the function it returns."""
    return ops.custom_gradient(compute)(*inputs)


def checked(compute, inputs, judge, check):
    """Returns what `compute` returns, whose gradients are computed and checked at once.

    What else it depends on, such as variables, has the gradient of the value itself.
    """
    structure: Any = None

    def run(*tensors):
        nonlocal structure
        value, others = compute(list(tensors))
        leaves, tree = jax.tree.flatten(others)
        are_arrays = [isinstance(x, jax.Array) for x in leaves]
        known = [None if is_array else x for x, is_array in zip(leaves, are_arrays, strict=True)]
        structure = tree, are_arrays, known
        arrays = [x for x, is_array in zip(leaves, are_arrays, strict=True) if is_array]
        return value, arrays

    fixed = [jax.lax.stop_gradient(x) for x in inputs]
    value, backward, arrays = jax.vjp(run, *fixed, has_aux=True)
    tree, are_arrays, known = structure
    rest = iter(arrays)
    leaves = [next(rest) if a else x for x, a in zip(known, are_arrays, strict=True)]
    others = jax.tree.unflatten(tree, leaves)
    judgement = judge(others)
    if value.shape:  # The gradient of what becomes of the values is unknown.
        return compute(list(inputs))[0], others, judgement
    gradients = check(judgement, list(backward(jax.numpy.ones_like(value))))
    gradients = [jax.lax.stop_gradient(x) for x in gradients]
    return _with_gradients(value, list(inputs), gradients), others, judgement


@jax.custom_vjp
def _with_gradients(value, inputs, gradients):
    """Returns the value, with further gradients with respect to the inputs."""
    return value


def _forward(value, inputs, gradients):
    return value, gradients


def _backward(gradients, upstream):
    zeros = [jax.numpy.zeros_like(x) for x in gradients]
    return upstream, [upstream.astype(x.dtype) * x for x in gradients], zeros


_with_gradients.defvjp(_forward, _backward)


def replica_values(variable: keras.Variable) -> list:
    """Returns the value: a variable has the same one on all devices."""
    return [np.asarray(variable.value)]


def differentiated(x):
    """Returns the tensor: JAX differentiates with respect to the arguments of a function."""
    return x


def has_own_gradient(outermost) -> bool:
    """Returns False: no function leaves out the gradients of the tensors it captures."""
    return False


def native_state(layer: keras.layers.Layer) -> list[str]:
    """Returns nothing: JAX has no variables of its own."""
    return []


def quick_ops() -> Any:
    """Returns `keras.ops`: Keras' checks run only in the trace."""
    return ops


def vector(numbers: Sequence[Any]) -> Any:
    """Returns a vector of scalar tensors of one dtype.

    By selection, which XLA compiles to one kernel, with the arithmetic before it. For what it
    concatenates, XLA on a CPU compiles and starts one kernel for each number.
    """
    index, found = jnp.arange(len(numbers)), jnp.broadcast_to(numbers[0], len(numbers))
    for i, number in enumerate(numbers):
        found = jnp.where(index == i, number, found)
    return found
