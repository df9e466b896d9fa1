"""What layers and regularizers add to the loss without being a term, by layer."""

import itertools
from collections import Counter
from collections.abc import Container
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.backend import variable_scope
from keras_jointloss._core.keras import untrack
from keras_jointloss._core.keras_calls import running_loop
from keras_jointloss._core.keras_losses import (
    direct_layers,
    may_add_losses,
    observe_losses,
    observer_of,
    own_variables,
)
from keras_jointloss._core.math import float_dtype, to_numpy
from keras_jointloss.layers._layer_term import LayerTerm
from keras_jointloss.tensorboard.runs import OTHER
from keras_jointloss.terms.record import Totals


class _Part:
    """A layer of the model, or of a model in it, with all the layers in it that are no model's."""

    def __init__(self, path: tuple[str, ...]):
        self.path = path  # The names of the models around it and its own
        self.layers: list[keras.layers.Layer] = []


class OtherLosses:
    """Records by layer what layers and regularizers add to the loss without being a term.

    The layers are those that `model.summary(expand_nested=True)` shows: what a layer adds that is
    part of another layer, not of a model, counts as that one's. A layer has its name, with those of
    the models around it if another layer has the same.

    The sums are a variable of the metric that averages the loss. They begin anew when that does.
    In a model without layers that may add losses, there is nothing to record.
    """

    def __init__(self, model: keras.Model):
        self._observed = model
        self._parts = [x for x in _find_parts(model) if any(map(_may_add, x.layers))]
        self.names = _names(self._parts)
        self._mean: Any = _mean_of_loss(model)
        self._slots: dict[int, int] = {}
        self._resets = 0
        # For each part the sum over the items of what it adds; first their number.
        self._sums: Any = None

    @classmethod
    def of(cls, model: keras.Model) -> "OtherLosses":
        """Returns the record of a model, the same one as long as its layers are."""
        new, known = cls(model), observer_of(model)
        owner = getattr(known, "__self__", None)
        is_same = isinstance(owner, cls) and owner._key == new._key
        return owner if is_same else new  # type: ignore[return-value]

    @property
    def _key(self) -> tuple:
        return id(self._mean), [(name, id(x.layers[0])) for name, x in self._named]

    @property
    def _named(self) -> list[tuple[str, _Part]]:
        return [*zip(self.names, self._parts, strict=True)]

    def connect(self) -> bool:
        """Makes the steps of the model record its losses; returns whether this changes them."""
        if self._sums is not None or not self._parts or self._mean is None:
            return False
        old = getattr(observer_of(self._observed), "__self__", None)
        if isinstance(old, OtherLosses) and old._mean is self._mean:
            untrack(self._mean, [old._sums])
        with variable_scope(self._observed):
            self._sums = self._mean.add_variable(
                shape=(1 + len(self._parts),),
                initializer="zeros",
                dtype=float_dtype(self._mean.dtype),
                name="other_losses",
            )
        observe_losses(self._observed, self._record)
        return True

    # Within the step.

    def _record(self, x: Any, losses: list, sources: list) -> None:
        """Adds what layers have added to the loss of a batch with the inputs `x`."""
        first = next((x for x in keras.tree.flatten(x) if x is not None), None)
        if first is None or running_loop() == "compute_output_spec":
            return
        by_slot: dict[int, list] = {}
        for loss, source in zip(losses, sources, strict=True):
            # What a term adds itself is no other loss.
            slot = None if source is None or isinstance(source, LayerTerm) else self._slot(source)
            if slot is not None:
                by_slot.setdefault(slot, []).append(loss)
        if not by_slot:
            return
        dtype = self._sums.dtype
        nothing = ops.zeros((), dtype)
        values = [
            sum(ops.sum(ops.cast(loss, dtype)) for loss in by_slot[slot])
            if slot in by_slot
            else nothing
            for slot in range(len(self._parts))
        ]
        row = ops.stack([nothing + 1, *values]) * ops.cast(ops.shape(first)[0], dtype)
        # The mean has not counted this batch yet.
        is_new = ops.equal(ops.convert_to_tensor(self._mean.count), 0)
        before = ops.where(is_new, ops.zeros_like(row), ops.convert_to_tensor(self._sums))
        self._sums.assign(before + ops.stop_gradient(row))

    def _slot(self, source: Any) -> int | None:
        if id(source) not in self._slots:  # A layer may have been built since.
            self._slots = {}
            known = {id(x.layers[0]): slot for slot, x in enumerate(self._parts)}
            for part in _find_parts(self._observed):
                slot = known.get(id(part.layers[0]))
                for layer in part.layers if slot is not None else ():
                    self._slots[id(layer)] = slot  # type: ignore[assignment]
                    for variable in own_variables(layer):
                        self._slots[id(variable)] = slot  # type: ignore[assignment]
        return self._slots.get(id(source))

    # From the host.

    def totals(self, terms: Container[str] = ()) -> dict[str, Totals]:
        """Returns the sums since the last reset, by `"other/<layer>"`, without names of terms."""
        if self._sums is None:
            return {}
        size, *sums = to_numpy(self._sums)
        return {
            name: Totals(self._resets, [np.array([size, x, x, size, size])])
            for name, x in zip((f"{OTHER}/{x}" for x in self.names), sums, strict=True)
            if name not in terms
        }

    def reset(self) -> None:
        """Resets the sums."""
        self._resets += 1
        if self._sums is not None:
            self._sums.assign(np.zeros(self._sums.shape, self._sums.dtype))


def layers_of_variables(model: keras.Model) -> dict[int, str]:
    """Returns the name of the layer of each variable that may train, by the variable's identity.

    The names are those of `OtherLosses`.
    """
    parts = _find_parts(model)
    return {
        id(variable): name
        for name, part in zip(_names(parts), parts, strict=True)
        for layer in part.layers
        for variable in own_variables(layer)
    }


def _may_add(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, LayerTerm):  # Its own loss is that of the term.
        return any(x.regularizer is not None for x in own_variables(layer))
    return may_add_losses(layer)


def _mean_of_loss(model: keras.Model) -> keras.metrics.Mean | None:
    """Returns the metric with which Keras averages the loss, or `None`."""
    found = [x for x in model.metrics if x.name == "loss" and isinstance(x, keras.metrics.Mean)]
    return found[-1] if found else None


def _find_parts(model: keras.Model) -> list[_Part]:
    """Returns the parts of a model: first the model itself, then the layers of all models in it."""
    parts = [_Part((model.name,))]
    seen = set()

    def visit(layer: keras.layers.Layer, part: _Part, path: tuple[str, ...]) -> None:
        seen.add(id(layer))
        part.layers.append(layer)
        for child in direct_layers(layer):
            if id(child) in seen:
                continue
            own = (*path, child.name)
            if isinstance(layer, keras.Model):
                parts.append(_Part(own))
                visit(child, parts[-1], own)
            else:
                visit(child, part, own)

    visit(model, parts[0], ())
    return parts


def _names(parts: list[_Part]) -> list[str]:
    """Returns different names for the parts, as short as possible."""
    short = Counter(x.path[-1] for x in parts)
    names = [x.path[-1] if short[x.path[-1]] == 1 else "/".join(x.path) for x in parts]
    for i, name in enumerate(names):
        others = (f"{name}_{number}" for number in itertools.count(1))
        names[i] = next(x for x in itertools.chain([name], others) if x not in names[:i])
    return names
