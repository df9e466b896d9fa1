"""Variables that a layer changes during a step and that are not weights of the model."""

from collections.abc import Callable, Iterable

import keras
import numpy as np
from keras import ops


def constant(value) -> Callable:
    """Returns an initializer; that of Keras rounds to float32, even on the way to float64."""

    def initialize(shape, dtype=None):
        # NumPy would hold a count in 64 bits, but does not know every floating-point type.
        values = np.full(shape, value, None if isinstance(value, float) else dtype)
        return ops.convert_to_tensor(values, dtype=dtype)

    return initialize


def layer_state(name, shape, initial, dtype=None, aggregation="sum"):
    """Returns a variable for what a layer records in `call`, under any strategy.

    Each replica has its own, so that an assignment needs no other replica: `tf.distribute` would
    switch to another one in the middle of the layer.
    """
    return keras.Variable(
        initializer=constant(initial),
        shape=shape,
        dtype=dtype or keras.config.floatx(),
        trainable=False,
        autocast=False,
        aggregation=aggregation,
        synchronization="on_read",
        name=name,
    )


class _LayerState(keras.random.SeedGenerator):
    """Makes a variable part of a layer's `variables`, but not of its `weights`.

    On JAX a layer can only change what is among its `variables`. Its `weights` are what
    `get_weights` returns, what averages of models are taken of and what `EarlyStopping` restores:
    neither a step nor a switch belongs there. The state of a seed generator is the one thing that
    Keras treats so, so this is one, of which no random number is ever drawn. Keras does not save
    it: the layer does.

    Args:
        variable: The variable.
    """

    def __init__(self, variable):
        self.name = variable.name
        self.backend = keras.backend
        self.state = variable

    def get_config(self) -> dict:
        raise NotImplementedError("The layer that owns the variable creates it anew.")


def as_state(variables: Iterable) -> list:
    """Returns what makes variables part of a layer's state when it becomes an attribute of it.

    Args:
        variables: Variables that are no attributes of the layer themselves.
    """
    return [_LayerState(variable) for variable in variables]
