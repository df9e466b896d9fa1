"""What several workers of TensorFlow exchange around the training step, and how they end."""

import atexit
import signal

import keras
import tensorflow as tf

#: How many seconds TensorFlow has to end a process after a failed training.
_GRACE = 10


def end_soon() -> None:
    """Makes this process end at most ten seconds after Python has.

    When another worker has died, TensorFlow may otherwise wait until the timeout of a message.
    """
    atexit.unregister(_limit)
    atexit.register(_limit)


def _limit():
    if hasattr(signal, "alarm"):  # Not on Windows.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_GRACE)


def strategy_of(model: keras.Model):
    """Returns the strategy of `tf.distribute` in whose scope a model was created, or `None`."""
    return model.distribute_strategy


def is_one_of_workers(strategy) -> bool:
    """Returns whether a strategy of `tf.distribute` trains with other processes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    return bool(strategy.cluster_resolver.cluster_spec().as_dict())


def errors() -> type[Exception]:
    """Returns the class of the errors of TensorFlow's operations."""
    return tf.errors.OpError


def local_batch(batch, strategy):
    """Returns the part of a batch that the first replica of this process receives."""

    def first(x):
        is_split = isinstance(x, tf.distribute.DistributedValues)
        return strategy.experimental_local_results(x)[0] if is_split else x

    return keras.tree.map_structure(first, batch)


def mean_of_workers(values, strategy):
    """Returns the means over all replicas of all workers, for a structure of values."""
    return keras.tree.map_structure(lambda x: strategy.reduce("MEAN", x, axis=None), values)


def numbers_of_workers(numbers: list[int], strategy) -> list[list[int]]:
    """Returns the numbers that each replica passes, in the order of the replicas."""

    @tf.function(autograph=False)
    def gather():
        context = tf.distribute.get_replica_context()
        return context.all_gather(tf.constant([numbers], "int64"), axis=0)

    rows = strategy.experimental_local_results(strategy.run(gather))[0]
    return rows.numpy().tolist()
