"""TensorFlow, which compiles functions to graphs and has replicas in one process."""

import contextlib
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_jointloss._core.backend.tensorflow import workers
from keras_jointloss._core.backend.tensorflow.chunks import for_chunks
from keras_jointloss._core.backend.tensorflow.gradients import (
    custom_gradient,
    differentiated,
    has_own_gradient,
)
from keras_jointloss._core.backend.tensorflow.replicas import current_replicas

__all__ = [
    "batch_shards", "current_replicas", "current_trace", "custom_gradient",
    "decided", "differentiated", "for_chunks", "has_own_gradient", "is_chief", "is_on_accelerator",
    "is_readable", "is_traced", "native_state", "predict", "quick_ops", "runs_in_python",
    "trains_functionally", "variable_scope",
]  # fmt: skip


def trains_functionally() -> bool:
    """Returns False: a training step changes variables in place."""
    return False


def runs_in_python() -> bool:
    """Returns False: loops are compiled."""
    return False


def batch_shards() -> int:
    """Returns 1: `keras.distribution` does not split a batch over devices."""
    return 1


def is_chief(model: keras.Model) -> bool:
    """Returns whether this is the chief of several workers, or the only process."""
    strategy = workers.strategy_of(model)
    if not workers.is_one_of_workers(strategy):
        return True
    resolver = strategy.cluster_resolver
    chief = "chief" if "chief" in resolver.cluster_spec().as_dict() else "worker"
    return resolver.task_type == chief and resolver.task_id == 0


def predict(model: keras.Model, x: Any, batch_size: int | None = None) -> Any:
    """Returns what `model.predict` returns; several workers share the work."""
    return model.predict(x, batch_size=batch_size, verbose=0)


def variable_scope(model: keras.Model):
    """Returns the scope of the strategy of a model, if it has one."""
    strategy = workers.strategy_of(model)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def is_on_accelerator(x) -> bool:
    """Returns whether TensorFlow has a GPU or TPU."""
    return any(device.device_type != "CPU" for device in tf.config.list_logical_devices())


def decided(condition):
    """Returns the condition."""
    return condition


def is_traced(tensors: Any) -> bool:
    """Returns whether a graph is being built."""
    return not tf.executing_eagerly()


def is_readable(x: Any) -> bool:
    """Returns whether no graph is being built."""
    return tf.executing_eagerly()


def current_trace() -> Any:
    """Returns the graph that is being built; `None` if operations run immediately."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def native_state(layer: keras.layers.Layer) -> list[str]:
    """Returns the names of the attributes that are variables of TensorFlow."""
    return [key for key, value in vars(layer).items() if isinstance(value, tf.Variable)]


def quick_ops() -> Any:
    """Returns `keras.ops`: Keras' checks run only in the trace."""
    return ops
