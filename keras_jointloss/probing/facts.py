"""What a model itself says about its terms, whatever is measured."""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras

from keras_jointloss._core import keras as _keras
from keras_jointloss.aggregators import Sum
from keras_jointloss.joint.find_terms import find_combinations, find_losses
from keras_jointloss.joint.other_losses import layers_of_variables
from keras_jointloss.joint.wiring import Wiring, ancestors
from keras_jointloss.losses.base import ViewsLoss
from keras_jointloss.terms.weight import TermWeight


class Balancer(NamedTuple):
    """A layer that combines gradients, other than by their sum."""

    name: str
    terms: tuple[str, ...]  # The names of the terms of the model, each of which reads its copy
    aggregator: str


class Facts(NamedTuple):
    """What a model says about its terms. What needs a graph is empty without one."""

    weights: Mapping[str, float]  # The weights now, by term
    used: tuple[str, ...]  # The terms whose weight is not 0, or does not stay 0
    may_be_constant: frozenset[str]  # Terms whose loss may be constant on purpose
    #: The layers with parameters that an output depends on, gradient or not, by term.
    upstream: Mapping[str, frozenset[str]]
    #: The layer that computes an output, by term; not of embeddings, which others may read.
    heads: Mapping[str, str]
    #: The terms of each output, by its name.
    of_outputs: Mapping[str, tuple[str, ...]]
    balancers: tuple[Balancer, ...]
    unread: tuple[str, ...]  # The names of inputs that no output depends on
    #: The pairs of outputs that are one tensor; `None` without a graph.
    same_outputs: list[tuple[str, str]] | None
    layers: tuple[str, ...]  # All layers with trainable parameters
    has_other_losses: bool  # Whether a layer may add a loss that is no term
    batch_size: int


def facts_of(model: keras.Model, terms: Mapping[str, TermWeight], batch_size: int) -> Facts:
    """Returns the facts of a compiled model with these terms."""
    wiring = Wiring(model, terms)
    losses = find_losses(model)
    layers = layers_of_variables(model)
    trainable = {id(x) for x in model.trainable_variables}
    tensors = wiring.outputs if _keras.is_known(type(model).call) else {}
    if len(tensors) == 1 and len(losses) == 1:  # A single loss has no name of an output.
        tensors = dict.fromkeys(losses, next(iter(tensors.values())))
    upstream, heads, of_outputs = {}, {}, {}
    for output, found in losses.items():
        of_outputs[output] = tuple(found)
        for term, loss in found.items() if output in tensors else ():
            upstream[term] = frozenset(
                layers[id(x)]
                for source in ancestors(tensors[output])
                for x in _variables_of(source.operation)
                if id(x) in trainable
            )
            head = _head(tensors[output])
            if head is not None and not isinstance(loss.loss, ViewsLoss):
                heads[term] = layers[id(_variables_of(head)[0])]
    return Facts(
        weights={name: float(weight) for name, weight in terms.items()},
        used=tuple(
            name
            for name, weight in terms.items()
            if not weight.is_off and (float(weight) > 0 or weight.is_dynamic)
        ),
        may_be_constant=frozenset(name for name, x in terms.items() if x.may_be_constant),
        upstream=upstream,
        heads=heads,
        of_outputs=of_outputs,
        balancers=_balancers(model, wiring, terms),
        unread=_unread(model, tensors),
        # In a call, layers that change nothing return what they receive.
        same_outputs=same_tensors(_single(tensors)) if tensors else None,
        layers=tuple(
            dict.fromkeys(
                layers[id(x)]
                for x in model.trainable_variables
                if id(x) in layers and not _keras.is_overwritten_with_gradient(x)
            )
        ),
        has_other_losses=wiring.may_have_other_losses,
        batch_size=batch_size,
    )


def _variables_of(operation: object) -> list[keras.Variable]:
    if not isinstance(operation, keras.layers.Layer):
        return []
    return [x for x in operation.trainable_variables if not _keras.is_overwritten_with_gradient(x)]


def _head(tensors: list) -> keras.layers.Layer | None:
    """Returns the layer with parameters that computes an output, up to activations and the like."""
    while len(tensors) == 1:
        source = _keras.source(tensors[0])
        if source is None or isinstance(source.operation, keras.Model) or source.size > 1:
            return None
        if _variables_of(source.operation):
            return source.operation
        tensors = source.inputs if isinstance(source.operation, keras.layers.Layer) else []
    return None


def _balancers(
    model: keras.Model, wiring: Wiring, terms: Mapping[str, TermWeight]
) -> tuple[Balancer, ...]:
    found = []
    for layer in find_combinations(model):
        own = [x for name in layer.terms for x in wiring.losses_of.get(name, [])]
        known = tuple(x for x in dict.fromkeys(own) if x in terms)
        if not isinstance(layer.aggregator, Sum) and len(known) > 1:
            found.append(Balancer(layer.name, known, type(layer.aggregator).__name__))
    return tuple(found)


def _single(tensors: Mapping[str, list]) -> dict[str, Any]:
    return {name: found[0] for name, found in tensors.items() if len(found) == 1}


def same_tensors(named: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns the pairs of names that stand for one tensor."""
    return [(a, b) for a, b in itertools.combinations(named, 2) if named[a] is named[b]]


def _unread(model: keras.Model, tensors: Mapping[str, list]) -> tuple[str, ...]:
    """Returns the names of the inputs of a Functional model that nothing reads."""
    if not tensors:
        return ()
    outputs = [x for found in tensors.values() for x in found]
    read = {id(x.operation) for x in ancestors(outputs)}
    inputs = [_keras.source(x) for x in keras.tree.flatten(model.inputs)]
    return tuple(x.operation.name for x in inputs if x is not None and id(x.operation) not in read)
