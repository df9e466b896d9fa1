"""Checks that the terms of a model read their own copies of the layers that combine gradients."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import keras

from keras_jointloss._core import keras as _keras
from keras_jointloss._core.keras_models import output_names
from keras_jointloss.joint.find_terms import find_losses, find_losses_across
from keras_jointloss.joint.joint_loss import ONLY_TERM
from keras_jointloss.layers._layer_term import LayerTerm
from keras_jointloss.layers.gradients._combination import GradientCombination
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.loss_across import LossAcross
from keras_jointloss.terms.loss_sum import LossSum
from keras_jointloss.terms.weight import TermWeight

#: The names of the copies of a layer that a term or output, by its name, or a layer reads.
_Reads = dict[Any, set[str]]


class Misnamed(NamedTuple):
    """Copies of a layer whose names belong to nothing in the model."""

    layer: GradientCombination
    names: list[str]  # The names of those that a term or output of another name reads
    unread: list[str]  # The names of those that nothing reads
    unnamed: list[str]  # The terms and outputs that read copies of another name, or may do so


class Wiring:
    """What the names of copies stand for in a compiled model, whose terms are given by name.

    A layer that combines gradients returns a copy for each of its `terms`. A copy has the name of a
    term, of an output, whose losses share one gradient, or of a layer that adds a loss.
    """

    def __init__(self, model: keras.Model, terms: Mapping[str, TermWeight]):
        self._terms = terms
        self._get_config = model.get_compile_config
        self._of_outputs = {name: list(found) for name, found in find_losses(model).items()}
        #: The symbolic tensors of each output of a Functional model by its name.
        self.outputs = _output_tensors(model)
        #: The losses that make up a gradient, by the name of a copy: of terms and of outputs.
        self.losses_of: dict[str, list[str]] = {
            **{name: [] for name in self.outputs},
            **{name: [name] for name in _names_with_loss(model)},
            **{name: [name] for name in terms},
            **self._of_outputs,
        }
        across = {term: loss.outputs for term, loss in find_losses_across(model).items()}
        for term, outputs in across.items():
            for name in outputs:
                # The gradient of an output without a loss of its own.
                self.losses_of[name] = self.losses_of.get(name) or [term]
        if len(self.outputs) == 1 and not isinstance(model.loss, Mapping):
            (name,) = self.outputs
            self.losses_of[name] = self.losses_of.pop(ONLY_TERM, [name])
            self.losses_of[ONLY_TERM] = self.losses_of[name]
        # Losses that are matched by position: nobody has named them, nor often the outputs.
        self._nameless: set[str] = set()
        if not isinstance(model.loss, Mapping):
            self._nameless = {ONLY_TERM, *self.outputs} - (self._of_outputs.keys() - {ONLY_TERM})
        layers = list(_keras.flatten_layers(model))
        self._layer_names = {layer.name for layer in layers}
        self._combinations = [x for x in layers if isinstance(x, GradientCombination)]
        # What is known of the copies, if the model computes what its symbolic outputs say.
        is_graph = _keras.is_known(type(model).call)
        self._reads = _copies_read(self.outputs, self._combinations) if is_graph else {}
        for layer, reads in self._reads.items():
            for term in across.keys() & set(layer.terms):
                reads[term] = set().union(*(reads.get(name, ()) for name in across[term]))
        #: Whether a layer may add a loss that is no term.
        self.may_have_other_losses = any(_may_add_loss(layer) for layer in layers)

    def validate(self) -> None:
        """Raises `ValueError` if a layer that combines gradients is certain to be wired wrongly."""
        for layer in self._combinations:
            self._validate_shared_gradient(layer)
        for layer, reads in self._reads.items():
            self._validate_copies(layer, reads)

    def _validate_shared_gradient(self, layer: GradientCombination) -> None:
        for output, found in self._of_outputs.items():
            losses = [loss for loss in found if self.has_weight(loss)]
            if len(losses) > 1 and set(losses) & set(layer.terms):
                raise ValueError(
                    f"Invalid value for argument `terms` of the layer {layer.name!r}. Expected the "
                    f"name of the output, {self._name_of(output)!r}, for its losses {losses}, "
                    "which have one gradient together. For a gradient of each, return an output "
                    "for each, `keras.layers.Identity(name=term)(head(z[term]))`. "
                    f"Received: terms={list(layer.terms)}"
                )

    def _name_of(self, output: str) -> str:
        return output if output in self.outputs else next(iter(self.outputs), output)

    def _validate_copies(self, layer: GradientCombination, reads: _Reads) -> None:
        """Raises `ValueError` if a term does not read its copy."""
        for term in layer.terms:
            is_wrong = term in reads and term not in reads[term]
            if is_wrong and any(map(self.has_weight, self.losses_of.get(term, ()))):
                others = [x for x in layer.terms if x in reads[term]]
                raise ValueError(
                    f"Expected the head of the term {term!r} to read its own copy, `z[{term!r}]`, "
                    f"of z = {layer.name}(...), since the layer sees no gradient of the term "
                    "otherwise. Received: a model in which it reads "
                    f"{f'the copies of {others}' if others else 'none of the copies'}"
                )

    def has_weight(self, loss: str) -> bool:
        """Returns whether the weight of a loss is not the constant 0."""
        if loss in self._terms:
            term = self._terms[loss]
            return not term.is_off and (term.schedule is not None or bool(term.value))
        weights = self._get_config().get("loss_weights")
        if isinstance(weights, list | tuple):
            weights = dict(zip(self.outputs, weights, strict=False))
        return (weights.get(loss) if isinstance(weights, Mapping) else weights) != 0

    def misnamed(self, has_other_losses: bool = False) -> Iterator[Misnamed]:
        """Yields, for each layer, the copies that should have another name or not exist.

        A copy for a group of terms, or for a further layer that combines gradients, may have any
        name, and so may those beside it: a group may have one term. Where the graph is unknown,
        there may be groups if more terms than copies have no counterpart. If layers add losses that
        are no terms, their copies may have any name.
        """
        for layer in self._combinations:
            known = {*self.losses_of, *self._layer_names}  # Of terms, outputs and layers.
            unknown = [name for name in layer.terms if name not in known]
            if layer in self._reads:
                unread = [name for name in unknown if not self._readers(layer, name)]
                meant = self._meant(layer, unknown)
            else:
                unread, meant = [], dict.fromkeys(unknown, self._without_copy(len(unknown)))
            names = [] if has_other_losses else [name for name in unknown if meant[name]]
            if names or unread:
                unnamed = list(dict.fromkeys(term for name in names for term in meant[name]))
                yield Misnamed(layer, names, unread, unnamed)

    def _readers(self, layer: GradientCombination, copy: str) -> list[Any]:
        return [reader for reader, copies in self._reads[layer].items() if copy in copies]

    def _meant(self, layer: GradientCombination, unknown: list[str]) -> dict[str, list[str]]:
        """Returns the term or output that each copy should be named by; none if it is right."""
        named = {loss for name in layer.terms for loss in self.losses_of.get(name, ())}
        meant: dict[str, list[str]] = {}
        for copy in unknown:
            readers = self._readers(layer, copy)
            is_passed_on = any(isinstance(x, GradientCombination) for x in readers)
            terms = [] if is_passed_on else [x for x in readers if self.losses_of.get(x)]
            if len(terms) > 1:
                return {name: [] for name in unknown}
            has_other = named.intersection(*(self.losses_of[x] for x in terms))
            meant[copy] = [] if has_other else [x for x in terms if x not in self._nameless]
        return meant

    def _without_copy(self, most: int) -> list[str]:
        """Returns the terms that no layer has a copy for, if they are not more than that."""
        named = {name for layer in self._combinations for name in layer.terms}
        named |= {loss for name in named for loss in self.losses_of.get(name, ())}
        given = [losses for name, losses in self.losses_of.items() if name not in self._nameless]
        unnamed = list(dict.fromkeys(x for losses in given for x in losses if x not in named))
        return unnamed if len(unnamed) <= most else []


def _may_add_loss(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer or model may add a loss that is no term."""
    return (
        not _keras.is_known(type(layer)) or getattr(layer, "activity_regularizer", None) is not None
    )


def _names_with_loss(model: keras.Model) -> list[str]:
    """Returns the names of the outputs for which a model is compiled with a loss."""
    loss = model.loss
    if isinstance(loss, Mapping):
        return [name for name, x in loss.items() if not isinstance(x, LossAcross | None)]
    names = list(_output_tensors(model))
    if isinstance(loss, list | tuple):
        return [name for name, x in zip(names, loss, strict=False) if x is not None]
    return [] if loss is None else names


def _output_tensors(model: keras.Model) -> dict[str, list]:
    """Returns the symbolic tensors of each output of a Functional model by its name."""
    names = output_names(model)
    if not names:
        return {}
    if isinstance(model.output, dict):
        return {name: keras.tree.flatten(x) for name, x in model.output.items()}
    names = list(names)
    if isinstance(model.loss, list | tuple):
        given = [_name_in_list(loss) for loss in model.loss]
        names = [own or name for own, name in zip_longest(given, names)]
    found: dict[str, list] = {}
    for name, tensor in zip(names, model.outputs, strict=False):
        found.setdefault(name, []).append(tensor)
    return found


def _name_in_list(loss: Any) -> str | None:
    """Returns the name of the output that a loss in a list is for; `None` if it has none."""
    if isinstance(loss, TermLoss):
        return loss.term
    return loss.name if isinstance(loss, LossSum) else None


def _copies_read(
    outputs: Mapping[str, list], layers: Iterable[GradientCombination]
) -> dict[GradientCombination, _Reads]:
    """Returns which copies of a layer each output, layer term and other such layer depends on.

    The result has those layers only that are called in the graph of this model, not within a layer
    of it.
    """
    tensors: dict[Any, list] = {name: list(found) for name, found in outputs.items()}
    called, hidden = set(), set()
    for found in ancestors([x for tensors_of in outputs.values() for x in tensors_of]):
        operation = found.operation
        called.add(operation)
        inner = []
        if isinstance(operation, keras.layers.Layer):
            inner = list(_keras.flatten_layers(operation, include_self=False))
        hidden.update(inner)
        for layer in (operation, *inner):
            if isinstance(layer, LayerTerm):
                tensors.setdefault(layer.name, []).extend(found.inputs)
            elif isinstance(layer, GradientCombination):
                tensors.setdefault(layer, []).extend(found.inputs)
    reads: dict[GradientCombination, _Reads] = {
        layer: {name: set() for name in tensors} for layer in layers if layer in called - hidden
    }
    for name, found_tensors in tensors.items():
        for found in ancestors(found_tensors):
            if found.operation in reads:
                reads[found.operation][name].add(_copy(found))
    return reads


def _copy(found: _keras.Source) -> str:
    """Returns the name of the copy that a tensor from a layer combining gradients belongs to."""
    names = keras.tree.flatten({term: term for term in found.operation.terms})
    return names[found.position * len(names) // found.size]


def ancestors(tensors: Iterable[Any]) -> Iterator[_keras.Source]:
    """Yields, once each, where the tensors come from, and those that they are computed from."""
    pending, seen = list(tensors), set()
    while pending:
        found = _keras.source(pending.pop())
        if found is None:
            continue
        key = (id(found.operation), found.call, found.position)
        if key not in seen:
            seen.add(key)
            pending.extend(found.inputs)
            yield found
