"""Finds the terms of a compiled model, and its layers that combine gradients."""

from collections.abc import Mapping
from typing import Any

import keras

from keras_jointloss._core import keras as _keras
from keras_jointloss.joint.joint_loss import ONLY_TERM
from keras_jointloss.layers._layer_term import LayerTerm
from keras_jointloss.layers.gradient_scale import GradientScale
from keras_jointloss.layers.gradients._combination import GradientCombination
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.loss_across import LossAcross
from keras_jointloss.terms.loss_sum import LossSum
from keras_jointloss.terms.scale import Scale
from keras_jointloss.terms.weight import TermWeight


def find_losses(model: keras.Model) -> dict[str, dict[str, TermLoss]]:
    """Returns, for each output of a compiled model with terms, the losses of the terms by name."""
    found: dict[str, dict[str, TermLoss]] = {}
    for output, loss in _by_output(model.loss).items():
        if isinstance(loss, LossAcross):
            continue
        if isinstance(loss, TermLoss):
            found[output] = {output: loss}
        elif isinstance(loss, LossSum):
            found[output] = {str(part.term): part for part in loss.parts.values()}
    return found


def find_losses_across(model: keras.Model) -> dict[str, LossAcross]:
    """Returns the losses over several outputs of a compiled model by the name of the term."""
    losses = _by_output(model.loss).values()
    return {str(x.term): x for x in losses if isinstance(x, LossAcross)}


def _by_output(loss: Any) -> Mapping[str, Any]:
    """Returns the loss of a compiled model by the name of the output."""
    if isinstance(loss, Mapping):
        return loss
    if isinstance(loss, list | tuple):
        return {str(getattr(x, "term", None) or getattr(x, "name", None)): x for x in loss}
    return {ONLY_TERM: loss}


def find_terms(model: keras.Model) -> dict[str, TermWeight]:
    """Returns the weight of each term of a compiled model by the term's name.

    Output terms come first, in the order of the losses, then those over several outputs. Layer
    terms follow, in the order of the layers, including those of nested models. Raises `ValueError`
    if two terms have the same name, or a layer term that of an output with several losses.
    """
    outputs = find_losses(model)
    terms: dict[str, TermWeight] = {
        name: loss.weight for losses in outputs.values() for name, loss in losses.items()
    }
    terms |= {name: loss.weight for name, loss in find_losses_across(model).items()}
    # This reaches layers at any depth: `model.layers` ends at a nested model.
    for layer in _keras.flatten_layers(model, include_self=False):
        if isinstance(layer, LayerTerm):
            # Keras logs the sum of several losses of an output under the name of the output.
            is_output = layer.name in outputs and isinstance(model.loss, Mapping | list)
            if is_output or terms.get(layer.name, layer.weight) is not layer.weight:
                raise ValueError(
                    f"Expected terms with different names. Received: two terms named {layer.name!r}"
                )
            terms[layer.name] = layer.weight
    return terms


def find_combinations(model: keras.Model) -> list[GradientCombination]:
    """Returns the layers of a model that combine gradients."""
    layers = _keras.flatten_layers(model, include_self=False)
    return [x for x in layers if isinstance(x, GradientCombination)]


def find_gradient_layers(model: keras.Model) -> list[GradientCombination]:
    """Returns the layers of a model that combine gradients and report gradient statistics."""
    return [x for x in find_combinations(model) if x.telemetry]


def find_scales(model: keras.Model) -> dict[str, Scale]:
    """Returns the scales of gradients that follow a schedule, by their names in the logs.

    Raises `ValueError` if two layers have the same name.
    """
    scales: dict[str, Scale] = {}
    for layer in _keras.flatten_layers(model, include_self=False):
        if isinstance(layer, GradientScale) and layer.annealed is not None:
            name = f"{layer.name}_scale"
            if scales.get(name, layer.annealed) is not layer.annealed:
                raise ValueError(
                    "Expected scales of gradients with different names. Received: two layers named "
                    f"{layer.name!r}"
                )
            scales[name] = layer.annealed
    return scales
