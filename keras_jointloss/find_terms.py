"""The terms of a compiled model, its weighting, and its layers that combine gradients."""

from collections.abc import Mapping

import keras

from keras_jointloss import _keras
from keras_jointloss._backend import variable_scope
from keras_jointloss.joint import ONLY_TERM
from keras_jointloss.layers._gradient_combination import GradientCombination
from keras_jointloss.layers._layer_term import LayerTerm
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.loss_sum import LossSum
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting import Weighting


def find_losses(model: keras.Model) -> dict[str, dict[str, TermLoss]]:
    """Returns, for each output of a compiled model with terms, the losses of the terms by name.

    Args:
        model: A compiled model.
    """
    losses = model.loss if isinstance(model.loss, Mapping) else {ONLY_TERM: model.loss}
    found: dict[str, dict[str, TermLoss]] = {}
    for output, loss in losses.items():
        if isinstance(loss, TermLoss):
            found[output] = {output: loss}
        elif isinstance(loss, LossSum):
            found[output] = {str(part.term): part for part in loss.parts.values()}
    return found


def find_terms(model: keras.Model) -> dict[str, TermWeight]:
    """Returns the weight of each term of a compiled model by the term's name.

    Output terms come first, in the order of the losses. Layer terms follow, in the order of the
    layers, including those of nested models.

    Args:
        model: A compiled model.

    Raises:
        ValueError: If two terms have the same name, or a layer term that of an output with several
            losses.
    """
    outputs = find_losses(model)
    terms: dict[str, TermWeight] = {
        name: loss.weight for losses in outputs.values() for name, loss in losses.items()
    }
    # This reaches layers at any depth: `model.layers` ends at a nested model.
    for layer in _keras.flatten_layers(model, include_self=False):
        if isinstance(layer, LayerTerm):
            # Keras logs the sum of several losses of an output under the name of the output.
            is_output = layer.name in outputs and isinstance(model.loss, Mapping)
            if is_output or terms.get(layer.name, layer.weight) is not layer.weight:
                raise ValueError(
                    f"Expected terms with different names. Received: two terms named {layer.name!r}"
                )
            terms[layer.name] = layer.weight
    return terms


def find_gradient_layers(model: keras.Model) -> list[GradientCombination]:
    """Returns the layers of a model that combine gradients and report gradient statistics."""
    layers = _keras.flatten_layers(model, include_self=False)
    return [x for x in layers if isinstance(x, GradientCombination) and x.telemetry]


def find_weighting(terms: Mapping[str, TermWeight]) -> Weighting | None:
    """Returns the weighting that a model was compiled with, if any.

    Args:
        terms: As `find_terms` returns them.
    """
    rules = [term.weighting for term in terms.values() if isinstance(term, LossWeight)]
    return next((rule for rule in rules if rule is not None), None)


def bind_weighting(model: keras.Model, terms: Mapping[str, TermWeight]) -> Weighting | None:
    """Binds the weighting of a compiled model, if it has one, to the terms of the model.

    Args:
        model: A compiled model.
        terms: As `find_terms` returns them.

    Returns:
        The weighting.

    Raises:
        ValueError: If the weighting is already bound to other terms, or needs gradients that no
            layer reports.
    """
    rule = find_weighting(terms)
    if rule is None:
        # The model may have had a weighting when it was last compiled.
        for term in terms.values():
            term.release()
        return None
    names = getattr(model, "output_names", None) or []
    if len(set(names)) < len(names):
        raise ValueError(
            "Expected a model whose outputs have different names, since its terms have a "
            f"weighting. Received: a model with outputs {names}"
        )
    with variable_scope(model):
        is_new = rule.bind(terms)
    rule.bind_gradients(find_gradient_layers(model))
    if is_new:
        # Functions that were compiled without the rule would not run it.
        model.train_function = model.test_function = None
    return rule
