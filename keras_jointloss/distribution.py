"""What depends on how training is distributed: the one module that knows a backend."""

import contextlib

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


def sum_over_replicas(x):
    """Returns the sum of a tensor over the replicas, to each of them.

    TensorFlow goes on with another replica meanwhile: not for the forward pass of a model.
    """
    if replica_count() == 1:
        return x
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    # There is none while Keras builds the model symbolically.
    return x if context is None else context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def variable_scope(model: keras.Model):
    """Returns the context in which variables for a model are to be made."""
    strategy = getattr(model, "distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()
