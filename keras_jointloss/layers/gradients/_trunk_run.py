"""Runs a trunk with copies of its parameters, and keeps the state that it changes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_jointloss._core import keras as _keras
from keras_jointloss._core.backend import has_own_gradient, native_state
from keras_jointloss._core.validation import invalid
from keras_jointloss.layers._layer_term import LayerTerm
from keras_jointloss.layers.gradients._combination import GradientCombination

#: They hold parameters that Keras cannot replace by copies.
_FOREIGN = (keras.layers.TorchModuleWrapper, keras.layers.TFSMLayer)
_INSTEAD = "`GradientBalancer`, between a trunk and its heads, accepts any trunk"


def run_for_terms(
    trunk: keras.layers.Layer,
    run: Callable[[], Any],
    parameters: Sequence[keras.Variable],
    copies: Mapping[str, Sequence[Any]],
) -> dict[str, Any]:
    """Returns the outputs of a trunk for each term, with copies of its parameters for each.

    All runs begin with the same state, such as moving statistics and random numbers. The state
    changes once.
    """
    state = [(x, ops.copy(x)) for x in trunk.variables if not x.trainable]
    outputs = {}
    for term, values in copies.items():
        with _Run(zip(parameters, values, strict=True), state) as scope:
            outputs[term] = run()
            if scope.losses:
                raise _adds_losses(_keras.layer_that_adds_losses(trunk))
    for variable in scope.assigned.values():
        variable.assign(scope.get_current_value(variable))
    return outputs


class _Run(_keras.Scope):
    """The scope of a run of a trunk with other values for its parameters and its state."""

    def __init__(self, parameters: Iterable[tuple], state: Iterable[tuple]):
        parameters = list(parameters)
        super().__init__([*parameters, *state])
        self._copied = {id(variable) for variable, _ in parameters}

    def get_current_value(self, variable):
        if id(variable) in self._copied and has_own_gradient(run_for_terms.__code__):
            raise _invalid(
                "that TensorFlow differentiates with respect to copies of its parameters. It does "
                "not if a function with a gradient of its own reads them, such as one that "
                "`keras.remat` recomputes: use `ChunkedTower` to recompute a trunk",
                f"a trunk in which such a function reads the parameter {variable.path!r}",
            )
        return super().get_current_value(variable)

    def add_update(self, update):
        variable, _ = update
        if id(variable) in self._copied:
            raise _invalid(
                f"that does not assign to its parameters. {_INSTEAD}",
                f"a trunk that assigns to its parameter {variable.path!r}",
            )
        super().add_update(update)


def validate_trunk(trunk: keras.layers.Layer) -> None:
    """Raises `ValueError` if a layer cannot be run with copies of its parameters."""
    arguments = _keras.required_arguments(trunk)
    if len(arguments) > 1:
        names = ", ".join(arguments)
        raise _invalid(
            "whose `call` needs one input, which may be a list or a dict. Wrap a layer with "
            f"several inputs in a model, `keras.Model([{names}], layer({names}))`",
            f"{trunk!r} with call({names})",
        )
    for layer in _keras.flatten_layers(trunk):
        if isinstance(layer, LayerTerm | GradientCombination):
            raise _adds_losses(layer)
        if isinstance(layer, _FOREIGN):
            raise _invalid(
                f"whose parameters are Keras variables. {_INSTEAD}", f"a trunk with {layer!r}"
            )


def validate_built_trunk(trunk: keras.layers.Layer) -> None:
    """Raises `ValueError` if a trunk has variables that cannot be kept or copied."""
    for layer in _keras.flatten_layers(trunk):
        names = native_state(layer)
        if names:
            raise _invalid(
                f"whose state consists of Keras variables, as `add_weight` creates. {_INSTEAD}",
                f"a trunk with {layer!r}, whose attributes {names} are variables of the backend",
            )
    scales = [
        variable.path
        for variable in trunk.variables
        if _keras.is_overwritten_with_gradient(variable)
    ]
    if scales:
        raise _invalid(
            f"without scales of 8-bit floats. {_INSTEAD}", f"a trunk with the variables {scales}"
        )


def _adds_losses(layer: keras.layers.Layer) -> ValueError:
    return _invalid(
        "in which no layer adds to the loss or combines gradients. Regularize weights in place of "
        "activities, and apply terms to the outputs of the `SharedTrunk`",
        f"a trunk with {layer!r}",
    )


def _invalid(expected: str, received: str) -> ValueError:
    return invalid("trunk", f"a trunk {expected}", received=received)
