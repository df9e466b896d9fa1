"""The gradients of several losses of a model on TensorFlow, and its other state."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import tensorflow as tf
from tensorflow.python.eager import context

from keras_jointloss._core.keras_calls import training_outputs


def gradient_step(model: keras.Model, variables: list, collect: Callable, reduce: Callable):
    """Returns a function of a state, a batch and a scale, as `_core.backend` says."""

    def step(state: Any, batch: tuple, scale: Any) -> Any:
        parameters = [variable.value for variable in variables]
        with tf.GradientTape(persistent=True) as tape:
            losses = collect(lambda: training_outputs(model, *batch))
            scaled = [None if x is None else x * tf.cast(scale, x.dtype) for x in losses]
        gradients = [_gradient(tape, loss, parameters) for loss in scaled]
        return reduce(state, losses, [*zip(*gradients, strict=True)], scale)

    if model.run_eagerly:
        return step
    return tf.function(
        step, autograph=False, reduce_retracing=True, jit_compile=bool(model.jit_compile)
    )


def _gradient(tape, loss, parameters: list) -> list:
    if loss is None:
        return [None] * len(parameters)
    found = tape.gradient(loss, parameters)
    return [None if x is None else tf.convert_to_tensor(x) for x in found]


def native_values(layers: Iterable) -> Callable[[], None]:
    """Returns a function that puts variables of TensorFlow and the random numbers back."""
    generator = tf.random.get_global_generator()
    variables = [x for layer in layers for x in vars(layer).values() if isinstance(x, tf.Variable)]
    kept = [(x, x.numpy()) for x in [generator.state, *variables]]
    # From which operations without a seed draw one each.
    seeds: Any = getattr(context.context(), "_rng", None)
    state = None if seeds is None else seeds.getstate()

    def restore():
        for variable, value in kept:
            variable.assign(value)
        if state is not None:
            seeds.setstate(state)

    return restore
