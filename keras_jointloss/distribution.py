"""What depends on how training is distributed: the one module that knows a backend."""

import keras


def replica_count() -> int:
    """Returns the number of replicas that compute one training step together.

    Only `tf.distribute` splits a step over replicas that each see a loss of their own; on the
    other backends a loss is always that of the global batch, and the count is 1.
    """
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync
