"""Checks that the terms of a model read their own copies of the layers that combine gradients."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import keras

from keras_jointloss import _keras
from keras_jointloss.find_terms import find_losses
from keras_jointloss.joint import ONLY_TERM
from keras_jointloss.layers._gradient_combination import GradientCombination
from keras_jointloss.layers._layer_term import LayerTerm
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.loss_sum import LossSum


class Wiring:
    """What the names of copies stand for in a compiled model.

    A layer that combines gradients returns a copy for each of its `terms`. A copy has the name of a
    term, of an output, whose losses share one gradient, or of a layer that adds a loss.

    Args:
        model: A compiled model.
        terms: The names of its terms.
    """

    def __init__(self, model: keras.Model, terms: Iterable[str]):
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
        if len(self.outputs) == 1 and not isinstance(model.loss, Mapping):
            (name,) = self.outputs
            self.losses_of[name] = self.losses_of.pop(ONLY_TERM, [name])
            self.losses_of[ONLY_TERM] = self.losses_of[name]
        #: Whether the model computes what its symbolic outputs say.
        self._is_graph = type(model).call.__module__.startswith("keras.")
        layers = list(_keras.flatten_layers(model))
        self._layer_names = {layer.name for layer in layers}
        self._combinations = [x for x in layers if isinstance(x, GradientCombination)]
        #: Whether a layer of another origin than Keras and this package may add a loss.
        self.may_have_other_losses = any(not _is_known(layer) for layer in layers)

    def validate(self) -> None:
        """Raises `ValueError` if a layer that combines gradients is certain to be wired wrongly."""
        for layer in self._combinations:
            self._validate_shared_gradient(layer)
        reads = _copies_read(self.outputs, self._combinations) if self._is_graph else {}
        for layer in self._combinations:
            if layer in reads:
                self._validate_copies(layer, reads[layer])

    def _validate_shared_gradient(self, layer: GradientCombination) -> None:
        for output, losses in self._of_outputs.items():
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

    def _validate_copies(self, layer: GradientCombination, reads: Mapping[str, set[str]]) -> None:
        """Raises `ValueError` if a term does not read its copy, or nothing reads a copy.

        Args:
            layer: The layer.
            reads: The names of the copies that each output and layer term depends on.
        """
        for term in layer.terms:
            if self.losses_of.get(term) and term in reads and term not in reads[term]:
                others = [x for x in layer.terms if x in reads[term]]
                raise ValueError(
                    f"Expected the head of the term {term!r} to read its own copy, `z[{term!r}]`, "
                    f"of z = {layer.name}(...), since the layer sees no gradient of the term "
                    "otherwise. Received: a model in which it reads "
                    f"{f'the copies of {others}' if others else 'none of the copies'}"
                )
        unread = set(layer.terms).difference(*reads.values())
        unknown = [term for term in self.unknown_names(layer.terms) if term in unread]
        if unknown:
            raise ValueError(
                f"Invalid value for argument `terms` of the layer {layer.name!r}. Expected names "
                f"of terms or outputs of the model, among {list(self.losses_of)}. "
                f"Received: terms={list(layer.terms)}, of which no head reads {unknown}"
            )

    def unknown_names(self, names: Iterable[str]) -> list[str]:
        """Returns the names that neither a term nor an output nor a layer of the model has."""
        return [x for x in names if x not in self.losses_of and x not in self._layer_names]

    def misnamed(self) -> Iterator[tuple[GradientCombination, list[str], list[str]]]:
        """Yields the layers with unknown names: layer, names, and terms that no layer names.

        A copy may serve several terms and then have any name. So unknown names are yielded only if
        there are not more terms without a copy of their own.
        """
        named = {x for layer in self._combinations for x in layer.terms}
        named |= {loss for name in named for loss in self.losses_of.get(name, ())}
        losses = {loss: None for losses in self.losses_of.values() for loss in losses}
        unnamed = [loss for loss in losses if loss not in named]
        for layer in self._combinations:
            unknown = self.unknown_names(layer.terms)
            if unknown and len(unnamed) <= len(unknown):
                yield layer, unknown, unnamed


def _is_known(layer: keras.layers.Layer) -> bool:
    """Returns whether a layer or model is one of Keras or of this package."""
    return type(layer).__module__.partition(".")[0] in ("keras", "keras_jointloss")


def _names_with_loss(model: keras.Model) -> list[str]:
    """Returns the names of the outputs for which a model is compiled with a loss."""
    loss = model.loss
    if isinstance(loss, Mapping):
        return [name for name, x in loss.items() if x is not None]
    names = list(_output_tensors(model))
    if isinstance(loss, list | tuple):
        return [name for name, x in zip(names, loss, strict=False) if x is not None]
    return [] if loss is None else names


def _output_tensors(model: keras.Model) -> dict[str, list]:
    """Returns the symbolic tensors of each output of a Functional model by its name."""
    outputs = getattr(model, "outputs", None)
    if not outputs or not hasattr(model, "output_names"):  # A `Sequential` has no names.
        return {}
    if isinstance(model.output, dict):
        return {name: keras.tree.flatten(x) for name, x in model.output.items()}
    names = list(model.output_names)
    if isinstance(model.loss, list | tuple):
        given = [_name_in_list(loss) for loss in model.loss]
        names = [own or name for own, name in zip_longest(given, names)]
    found: dict[str, list] = {}
    for name, tensor in zip(names, outputs, strict=False):
        found.setdefault(name, []).append(tensor)
    return found


def _name_in_list(loss: Any) -> str | None:
    """Returns the name of the output that a loss in a list is for; `None` if it has none."""
    if isinstance(loss, TermLoss):
        return loss.term
    return loss.name if isinstance(loss, LossSum) else None


def _copies_read(
    outputs: Mapping[str, list], layers: Iterable[GradientCombination]
) -> dict[GradientCombination, dict[str, set[str]]]:
    """Returns which copies of a layer each output and layer term depends on.

    Args:
        outputs: The symbolic tensors of each output of a Functional model.
        layers: The layers. The result has those that are called in the graph of this model only,
            not within a layer of it.
    """
    tensors = {name: list(found) for name, found in outputs.items()}
    called, hidden = set(), set()
    for found in _ancestors([x for tensors_of in outputs.values() for x in tensors_of]):
        operation = found.operation
        called.add(operation)
        inner = []
        if isinstance(operation, keras.layers.Layer):
            inner = list(_keras.flatten_layers(operation, include_self=False))
        hidden.update(inner)
        for layer in (operation, *inner):
            if isinstance(layer, LayerTerm):
                tensors.setdefault(layer.name, []).extend(found.inputs)
    reads: dict[GradientCombination, dict[str, set[str]]] = {
        layer: {name: set() for name in tensors} for layer in layers if layer in called - hidden
    }
    for name, found_tensors in tensors.items():
        for found in _ancestors(found_tensors):
            if found.operation in reads:
                reads[found.operation][name].add(_copy(found))
    return reads


def _copy(found: _keras.Source) -> str:
    """Returns the name of the copy that a tensor from a layer combining gradients belongs to."""
    names = keras.tree.flatten({term: term for term in found.operation.terms})
    return names[found.position * len(names) // found.size]


def _ancestors(tensors: Iterable[Any]) -> Iterator[_keras.Source]:
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
