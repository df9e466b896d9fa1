"""The base of layer terms: their weight, their losses and their logged values."""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, Unpack

import keras
from keras import ops

from keras_jointloss._core.backend import current_replicas, current_trace, trains_functionally
from keras_jointloss._core.keras import saved_variables
from keras_jointloss._core.keras_calls import running_loop
from keras_jointloss._core.saved_state import SavedState, load_or_undo
from keras_jointloss._core.state import as_state
from keras_jointloss._core.types import Config, LayerOptions
from keras_jointloss.layers._step import CallLoss, Compute, Step
from keras_jointloss.terms.given_weight import Weight
from keras_jointloss.terms.layer_weight import LayerWeight


class _Readout(keras.metrics.Metric):
    """Reports a number held by a layer as a metric of the model."""

    def __init__(self, name, read, weight):
        super().__init__(name=name)
        self._read = read
        self._weight = weight

    def note(self):
        """Notes the number within a step."""

    def update_state(self, *args, **kwargs):
        """Does nothing: the layer keeps the number up to date."""

    def result(self):
        self._weight.warn_if_it_stands_still()
        return self._read()

    def reset_state(self):
        self._weight.reset()


class _NotedReadout(_Readout):
    """Reports the number on JAX, where no metric can read the state of a layer within a step.

    A step of `evaluate` notes the number while Keras collects the losses. A step of `fit` takes the
    gradient of what it computes then, and no value may leave a gradient: the number is not in its
    logs, and the callback adds it to those of the epoch.
    """

    _noted: tuple = (None, None)

    def note(self):
        if running_loop() == "test_step":
            self._noted = current_trace(), self._read()

    def result(self):
        self._weight.warn_if_it_stands_still()
        loop, (trace, value), self._noted = running_loop(), self._noted, (None, None)
        if loop in ("evaluate", "test_on_batch"):
            return {self.name: self._read()}
        # A custom step may take a gradient.
        is_noted = loop == "test_step" and value is not None and trace == current_trace()
        return {self.name: value} if is_noted else {}


class LayerTerm(keras.layers.Layer):
    """Base of the layers that add a weighted loss to the loss of the model.

    A step of `fit` or `evaluate` computes the loss when it requests the losses of the model, and
    `predict` and an exported model do not. A direct call computes it at once, as with `add_loss`.
    `keras_jointloss.layers._step.Step` has all cases. A subclass calls `_create_weight` in its
    constructor and `_defer` in `call`.

    Args:
        name: Name of the layer and of the term.
        **kwargs: As in `keras.layers.Layer`.
    """

    weight: LayerWeight
    #: Whether the loss of a replica needs values of the others.
    _is_gathered = False

    def __init__(self, name: str | None = None, **kwargs: Unpack[LayerOptions]):
        # Without autocasting inputs pass through and labels arrive unchanged.
        super().__init__(name=name, autocast=False, **kwargs)
        self.supports_masking = True
        self._step = Step()

    def _create_weight(
        self, weight: Weight, readings: Mapping, means: Mapping, counts_steps: bool = False
    ) -> None:
        """Creates the weight, as in `LayerWeight`, and the metrics that report what to log."""
        self.weight = LayerWeight(weight, self.name, readings, means, counts_steps)
        self._weight_state = as_state(self.weight.state)
        readout = _NotedReadout if trains_functionally() else _Readout
        self._readouts = [
            readout(f"{self.name}_{reading}", read, self.weight)
            for reading, read in self.weight.tensors.items()
        ]

    def _defer(self, compute: Callable[[], CallLoss], inputs: Any) -> None:
        """Adds the loss of a call to the step; it depends on the inputs, in any structure."""

        def weighted():
            found = compute()
            loss = found.loss * ops.cast(self.weight.tensor(), found.loss.dtype)
            # Keras can only sum losses of the same dtype.
            return found, ops.cast(loss, keras.config.floatx())

        self._step.defer(weighted, inputs)

    def _get_own_losses(self):
        # Keras requests the losses after the call, but not for prediction or export.
        losses = self._step.collect(self._record, self.add_loss, self._is_gathered)
        return [*super()._get_own_losses(), *losses]

    def _clear_losses(self):
        self._step.clear()
        super()._clear_losses()

    def _record(self, calls: Sequence[Compute]) -> list:
        """Records the losses of the calls of a step, counts it, and returns the weighted losses."""
        results, weighted = zip(*(compute() for compute in calls), strict=True)
        losses, items, valid, is_training, batch_sizes, means = zip(*results, strict=True)
        for name, sums in (pair for found in means for pair in found.items()):
            self.weight.record_mean(name, *sums)
        counts = None
        if self.weight.uses_counts and all(x is not None for x in valid):
            counts = ops.any(ops.stack([ops.any(x) for x in valid]))
        items = reduce(ops.maximum, items)
        batch_size = batch_sizes[0]
        if batch_size is not None and self._is_gathered:
            batch_size = current_replicas().state_sum(ops.convert_to_tensor(batch_size))
        self.weight.record(sum(losses), items, counts, batch_size)
        if any(is_training):
            self.weight.advance()
        for readout in self._readouts:
            readout.note()
        return list(weighted)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        self.weight.save(store)

    def load_own_variables(self, store: Any) -> None:
        load_or_undo(self, store, self._load)

    def _load(self, store):
        super().load_own_variables(saved_variables(store))
        self.weight.load(self._saved_state(store))

    def _saved_state(self, store) -> SavedState:
        return SavedState(store, f"the {type(self).__name__} {self.name!r}")

    def get_config(self) -> Config:
        weight = keras.saving.serialize_keras_object(self.weight.initial)
        return {**super().get_config(), "weight": weight}
