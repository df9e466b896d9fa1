"""Variables that a layer changes during a step and that are not weights of the model."""

from collections.abc import Callable, Iterable

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.keras import as_layer_state, leave_untrained


def constant(value) -> Callable:
    """Returns a constant initializer; that of Keras rounds to float32, even for float64."""

    def initialize(shape, dtype=None):
        # NumPy does not know every dtype; JAX compiles a function for each conversion of its own.
        values = np.full(shape, value, dtype if dtype in np.sctypeDict else None)
        return ops.convert_to_tensor(values, dtype=dtype)

    return initialize


def layer_state(name, shape, initial, dtype=None, aggregation="sum", is_watched=False):
    """Returns a variable for values that a layer records in `call`, under any strategy.

    Each replica has its own copy, so an assignment needs no other replica: `tf.distribute` would
    switch to another replica in the middle of the layer. All elements begin with the initial
    value, by default of `keras.config.floatx()`. If it is watched, a gradient tape of TensorFlow
    records what is computed with it.
    """
    variable = keras.Variable(
        initializer=constant(initial),
        shape=shape,
        dtype=dtype or keras.config.floatx(),
        trainable=is_watched,
        autocast=False,
        aggregation=aggregation,
        synchronization="on_read",
        name=name,
    )
    leave_untrained(variable)
    return variable


def as_state(variables: Iterable) -> list:
    """Wraps variables so that they become part of a layer's state when set as its attribute."""
    return [as_layer_state(variable) for variable in variables]
