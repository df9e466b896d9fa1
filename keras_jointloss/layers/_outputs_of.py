"""Finds the part of a model that computes the outputs of some of its layers."""

from collections.abc import Sequence

import keras

from keras_jointloss._core.validation import invalid

_OUTPUTS = "the name of a layer of the model, or a list of such names"


def validate_outputs(outputs):
    """Returns the names of layers as they are given, or a list of them; `None` for none."""
    is_list = isinstance(outputs, Sequence) and not isinstance(outputs, str)
    names = list(outputs) if is_list else [outputs]
    if outputs is not None and not (names and all(isinstance(x, str) for x in names)):
        raise invalid("outputs", f"{_OUTPUTS}, or None", outputs)
    return names if is_list else outputs


def network_of(model, outputs):
    """Returns the model that computes the outputs, from the names of layers."""
    if outputs is None:
        return model
    known = {layer.name: layer for layer in getattr(model, "layers", [])}
    names = [outputs] if isinstance(outputs, str) else outputs
    is_graph = isinstance(model, keras.Model) and getattr(model, "inputs", None)
    if not is_graph or not set(names) <= set(known):
        received = f"outputs={outputs!r} for the model {model.name!r} with the layers {list(known)}"
        expected = f"{_OUTPUTS}, which is Functional or Sequential and built"
        raise invalid("outputs", expected, received=received)
    found = [known[name].output for name in names]
    # A Sequential model has no `input` before it is called.
    inputs = model.inputs[0] if isinstance(model, keras.Sequential) else model.input
    return keras.Model(inputs, found[0] if isinstance(outputs, str) else found)
