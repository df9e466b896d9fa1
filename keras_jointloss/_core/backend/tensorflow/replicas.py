"""The replicas of TensorFlow's `tf.distribute`."""

import tensorflow as tf

from keras_jointloss._core.backend.replicas import OneDevice, Replicas, RowCounts
from keras_jointloss._core.backend.tensorflow.gradients import custom_gradient


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
    if count == 1 or _context() is None:
        return OneDevice(loss_divisor=count)
    return MirroredReplicas(count)


def _context():
    return tf.distribute.get_replica_context()
