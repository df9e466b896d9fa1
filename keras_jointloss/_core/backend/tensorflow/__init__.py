"""TensorFlow, which compiles functions to graphs and has replicas in one process."""

import contextlib
import inspect
import weakref
from types import CodeType
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from keras_jointloss._core.backend.numbers import (
    FirstRow,
    Number,
    all_finite,
    is_immediate,
    vector,
)
from keras_jointloss._core.backend.replicas import ONE_DEVICE, OneDevice, Replicas, RowCounts
from keras_jointloss._core.backend.tensorflow import workers

__all__ = [
    "FirstRow", "Number", "all_finite", "batch_shards", "checked", "current_replicas",
    "current_trace", "custom_gradient", "decided", "differentiated", "has_own_gradient", "is_chief",
    "is_immediate", "is_on_accelerator", "is_readable", "is_traced", "native_state", "predict",
    "quick_ops", "replica_values", "runs_in_python", "trains_functionally", "variable_scope",
    "vector",
]  # fmt: skip

#: The attribute of a TensorFlow graph that holds its gradient functions. Graphs within it would
#: copy an entry of `Graph.add_to_collection`, also those of functions that outlive the graph.
_GRADIENTS = "keras_jointloss_gradients"


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


def replica_values(variable: keras.Variable) -> list:
    """Returns the values of a variable on the replicas of this process."""
    value = variable.value
    values = value.values if isinstance(value, tf.distribute.DistributedValues) else [value]
    return [x.numpy() for x in values]


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


# Gradients.


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


def checked(compute, inputs, judge, check):
    """Returns what `compute` returns, whose gradients are checked in the backward pass."""
    found: list[Any] = []

    def identity(*tensors):
        def gradient(*upstream):
            return tuple(check(found[0], [tf.convert_to_tensor(x) for x in upstream]))

        return tensors, gradient

    value, others = compute(list(custom_gradient(identity, *inputs)) if inputs else [])
    found.append(judge(others))
    return value, others, found[0]


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


# The replicas of `tf.distribute`.


class MirroredReplicas(Replicas):
    """The replicas of `tf.distribute`, whose losses, gradients and states Keras adds up.

    Keras divides the loss of each replica by their number. TensorFlow switches to another replica
    whenever they exchange values.
    """

    takes_turns = True
    custom_gradient = staticmethod(custom_gradient)

    def __init__(self, count: int):
        super().__init__(count, loss_divisor=count)

    def sum(self, x):
        context = _context()
        # A gradient may be taken where no replica runs.
        return x if context is None else context.all_reduce("SUM", x)

    def once(self, x):
        return x / self.count

    def gather(self, tensors: list, own) -> tuple[list, RowCounts]:
        # Workers cannot gather an input itself, which is on no device.
        tensors = [tf.identity(x) for x in tensors]
        *rows, counts = _context().all_gather([*tensors, tf.shape(own)[:1]], axis=0)
        index = _context().replica_id_in_sync_group
        start = tf.reduce_sum(counts[:index])
        found = RowCounts(tf.unstack(counts, self.count), index, start)
        return [tf.stop_gradient(x) for x in rows], found

    def tensor_of(self, replica: int, x, after):
        with tf.control_dependencies([after]):
            is_sent = tf.equal(_context().replica_id_in_sync_group, replica)
            x = tf.where(is_sent, x, tf.zeros_like(x))
        return _context().all_reduce("SUM", x)


def current_replicas() -> OneDevice:
    """Returns who computes the step: the replicas of `tf.distribute` if this code runs in one."""
    count = tf.distribute.get_strategy().num_replicas_in_sync
    if count == 1:
        return ONE_DEVICE
    return OneDevice(loss_divisor=count) if _context() is None else MirroredReplicas(count)


def _context():
    return tf.distribute.get_replica_context()
