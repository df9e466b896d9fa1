"""Variables that a layer changes during a step and that are not weights of the model."""

from collections.abc import Callable, Iterable

import keras
import numpy as np
from keras import ops


def constant(value) -> Callable:
    """Returns a constant initializer; that of Keras rounds to float32, even for float64."""

    def initialize(shape, dtype=None):
        # NumPy would store a count in 64 bits, but does not know every floating-point dtype.
        values = np.full(shape, value, None if isinstance(value, float) else dtype)
        return ops.convert_to_tensor(values, dtype=dtype)

    return initialize


def layer_state(name, shape, initial, dtype=None, aggregation="sum", is_watched=False):
    """Returns a variable for values that a layer records in `call`, under any strategy.

    Each replica has its own copy, so an assignment needs no other replica: `tf.distribute` would
    switch to another replica in the middle of the layer.

    Args:
        name: As in `keras.Variable`.
        shape: As in `keras.Variable`.
        initial: The value of all elements.
        dtype: As in `keras.Variable`, by default `keras.config.floatx()`.
        aggregation: As in `keras.Variable`.
        is_watched: Whether a gradient tape of TensorFlow records what is computed with it.
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
    variable.trainable = False
    return variable


class _LayerState(keras.random.SeedGenerator):
    """Makes a variable part of a layer's `variables`, but not of its `weights`.

    On JAX a layer can only change its `variables`. Its `weights` are what `get_weights` returns,
    model averaging uses and `EarlyStopping` restores: neither a step nor a switch belongs there.
    Keras treats only the state of a seed generator in this way, so this class is one, but no random
    number is ever drawn from it. Keras does not save it: the layer does.

    Args:
        variable: The variable.
    """

    def __init__(self, variable):
        self.name = variable.name
        self.backend = keras.backend
        self.state = variable

    def get_config(self) -> dict:
        raise NotImplementedError("The layer that owns the variable recreates it.")


def as_state(variables: Iterable) -> list:
    """Wraps variables so that they become part of a layer's state when set as its attribute.

    Args:
        variables: Variables that are not attributes of the layer themselves.
    """
    return [_LayerState(variable) for variable in variables]
