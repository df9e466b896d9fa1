"""The gradients of several losses of a model on JAX, which has no other state."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import keras
from jax import numpy as jnp

from keras_jointloss._core.keras_calls import stateless_training_outputs


def gradient_step(model: keras.Model, variables: list, collect: Callable, reduce: Callable):
    """Returns a function of a state, a batch and a scale, as `_core.backend` says."""
    places = {id(variable): place for place, variable in enumerate(model.trainable_variables)}
    measured = [places[id(variable)] for variable in variables]

    def step(values: tuple, state: Any, batch: tuple, scale: Any):
        trainable, *others = values

        def losses_of(parameters: list):
            given, changed = list(trainable), []
            for place, value in zip(measured, parameters, strict=True):
                given[place] = value

            def run():
                y_pred, *after = stateless_training_outputs(model, (given, *others), *batch)
                changed.append(after)
                return y_pred

            losses = collect(run)
            found = [jnp.zeros(()) if x is None else x for x in losses]
            return found, (losses, changed[0])

        parameters = [trainable[place] for place in measured]
        found, pull, (losses, changed) = jax.vjp(losses_of, parameters, has_aux=True)
        # One pull for all losses: JAX would compile one for each.
        rows = jnp.eye(len(found), dtype=bool)
        upstream = [
            jnp.where(row, scale.astype(x.dtype), 0) for row, x in zip(rows, found, strict=True)
        ]
        (gradients,) = jax.lax.map(pull, upstream)
        return changed, reduce(state, losses, gradients, scale)

    compiled = step if model.run_eagerly else jax.jit(step)

    def run(state: Any, batch: tuple, scale: Any) -> Any:
        others = model.non_trainable_variables, model.metrics_variables
        groups = model.trainable_variables, *others, model.optimizer.variables
        values = tuple([variable.value for variable in group] for group in groups)
        changed, result = compiled(values, state, batch, jnp.asarray(scale))
        for group, found in zip(others, changed, strict=True):
            for variable, value in zip(group, found, strict=True):
                variable.assign(value)
        return result

    return run


def native_values(layers: Iterable) -> Callable[[], None]:
    """Returns a function that does nothing."""
    return lambda: None
