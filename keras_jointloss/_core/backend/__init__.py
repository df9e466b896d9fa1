"""Everything that depends on the backend or on distributed training, for all other modules."""

import contextlib
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.backend import chunks, gradients, mirrored, processes, ranks, workers
from keras_jointloss._core.backend.replicas import OneDevice


def name() -> str:
    """Returns the name of the backend, as Keras calls it."""
    return keras.backend.backend()


def trains_functionally() -> bool:
    """Returns whether a training step is a function of the variables, as on JAX.

    A layer then cannot change a variable that a metric reads in the same step, Keras calls the
    layers before it computes the losses of outputs, and only gradients leave the backward pass.
    """
    return keras.backend.backend() == "jax"


def current_replicas() -> OneDevice:
    """Returns who computes the step that this code runs in.

    These are the replicas of `tf.distribute`, or the processes of `torch.distributed`. On JAX, and
    while Keras builds a model symbolically, one device computes everything.
    """
    if name() == "torch":
        count = ranks.count_ranks()
        return ranks.Processes(count) if count > 1 else OneDevice()
    if name() == "jax":
        return OneDevice()
    import tensorflow as tf

    count = tf.distribute.get_strategy().num_replicas_in_sync
    if count == 1 or tf.distribute.get_replica_context() is None:
        return OneDevice(loss_divisor=count)
    return mirrored.MirroredReplicas(count)


def batch_shards() -> int:
    """Returns over how many devices `keras.distribution` splits a batch, on JAX."""
    distribution = keras.distribution.distribution()
    if distribution is None or keras.backend.backend() != "jax":
        return 1
    mesh = distribution.device_mesh
    return mesh.shape[mesh.axis_names.index(distribution.batch_dim_name)]


def is_chief(model: keras.Model) -> bool:
    """Returns whether this process writes the logs of all processes that train a model together.

    True if there are no others.
    """
    if name() == "jax":
        import jax

        return jax.process_index() == 0
    if name() == "torch":
        import torch

        return ranks.count_ranks() == 1 or torch.distributed.get_rank() == 0
    strategy = workers.strategy_of(model)
    return not workers.is_one_of_workers(strategy) or workers.is_chief(strategy)


def predict(model: keras.Model, x: Any, batch_size: int | None = None) -> Any:
    """Returns what `model.predict` returns, on each of several processes.

    On JAX, `model.predict` cannot return outputs that are split over processes. There each process
    computes all of them. On TensorFlow, several workers share the work.
    """
    if keras.backend.backend() == "jax":
        import jax

        if jax.process_count() > 1:
            return processes.predict_on_jax_process(model, x, batch_size or 32)
    return model.predict(x, batch_size=batch_size, verbose=0)


def variable_scope(model: keras.Model):
    """Returns the context in which to create variables for a model."""
    strategy = workers.strategy_of(model) if name() == "tensorflow" else None
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def runs_in_python() -> bool:
    """Returns whether the backend executes each operation immediately, as PyTorch does.

    A loop over Python integers is then as fast as a loop of the backend. Unlike a condition on a
    tensor, it does not wait for the device.
    """
    return keras.backend.backend() == "torch"


def is_on_accelerator(x) -> bool:
    """Returns whether a tensor is on a GPU or TPU, or will be when a compiled function runs."""
    if keras.backend.backend() == "torch":
        return x.device.type not in ("cpu", "meta")
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() != "cpu"
    import tensorflow as tf

    return any(device.device_type != "CPU" for device in tf.config.list_logical_devices())


def decided(condition):
    """Returns a scalar condition as a bool if operations run one by one, else unchanged.

    In that case `ops.cond` on a tensor makes the host wait for the device; on a bool it does not.
    """
    if not runs_in_python() or condition.device.type == "meta":  # No values in a symbolic call.
        return condition
    return bool(condition)


def is_traced(tensors: Any) -> bool:
    """Returns whether a computation with these tensors is traced, so that they have no values.

    The transformations of `torch.func`, such as `vmap`, are not recognized.

    Args:
        tensors: A structure of tensors and `None`.
    """
    if keras.backend.backend() == "torch":
        import torch

        return torch.compiler.is_compiling() or torch.jit.is_tracing()
    if keras.backend.backend() == "jax":
        import jax

        return any(isinstance(x, jax.core.Tracer) for x in keras.tree.flatten(tensors))
    import tensorflow as tf

    return not tf.executing_eagerly()


def host_values(x: Any) -> np.ndarray | None:
    """Returns the values of an array, or `None` if the host cannot read them without waiting.

    It cannot within a compiled function, and should not if training runs operation by operation on
    an accelerator, as on PyTorch.
    """
    if is_traced(x):
        return None
    if not ops.is_tensor(x):
        return np.asarray(x)
    if keras.backend.backend() == "torch" and x.device.type != "cpu":
        return None
    if keras.backend.backend() == "jax" and not x.is_fully_addressable:
        return None
    return ops.convert_to_numpy(x)


def custom_gradient(compute, *inputs):
    """Returns the tensor that `compute` returns, differentiated with the function it returns.

    Unlike with `keras.ops.custom_gradient`, that function has the same arguments on all backends,
    and TensorFlow keeps no graph alive for it.

    Args:
        compute: Called with the inputs; returns a tensor and a function. The function maps the
            gradient with respect to this tensor to the gradient with respect to the input, or to
            a tuple with one for each of several inputs.
        *inputs: Tensors.
    """
    of_backend = gradients.of_tensorflow if name() == "tensorflow" else gradients.of_keras
    return of_backend(compute, inputs)


def differentiated(x):
    """Returns a tensor that PyTorch differentiates with respect to.

    JAX does so with the arguments of a function, and TensorFlow with trainable variables.
    """
    return x.detach().requires_grad_() if keras.backend.backend() == "torch" else x


def for_chunks(run, parameters: list, state: list, inputs: list, size: int) -> tuple[list, list]:
    """Calls `run` for one chunk of rows after another, and again in the backward pass.

    Only the inputs, the outputs and one chunk's activations are in memory at the same time. The
    backward pass sums the gradients of the chunks with respect to `parameters`.

    Args:
        run: Called with the parameters, the state and the rows of a chunk; returns a list of
            outputs with the same rows, and the next state. It depends on nothing that changes.
        parameters: Tensors to differentiate with respect to.
        state: Tensors that pass from chunk to chunk without a gradient.
        inputs: Tensors with the same number of rows.
        size: The number of rows in a chunk.

    Returns:
        The outputs of all rows and the last state.
    """
    loops = {
        "jax": chunks.for_jax_chunks,
        "tensorflow": chunks.for_tensorflow_chunks,
        "torch": chunks.for_torch_chunks,
    }
    return loops[name()](run, parameters, state, inputs, size)
