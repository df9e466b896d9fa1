"""The base of layer terms: their weight, deferred losses, logged values and masks."""

import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

import keras
from keras import ops

from keras_jointloss._core.backend import (
    is_traced,
    replica_count,
    takes_turns,
    trains_functionally,
)
from keras_jointloss._core.loops import STEPS, enclosing_scope, running_loop
from keras_jointloss._core.math import divide_or_0
from keras_jointloss._core.replicas import own_share, recorded_sum, sum_of_replicas
from keras_jointloss._core.saved_state import SavedState, load_or_undo
from keras_jointloss._core.state import as_state
from keras_jointloss._core.validation import invalid
from keras_jointloss.layers._late_loss import CallLoss, LateLoss, Step
from keras_jointloss.terms.given_weight import Weight
from keras_jointloss.terms.layer_weight import LayerWeight


class _Readout(keras.metrics.Metric):
    """Reports a number held by a layer as a metric of the model."""

    def __init__(self, name, read, weight):
        super().__init__(name=name)
        self._read = read
        self._weight = weight

    def update_state(self, *args, **kwargs):
        """Does nothing: the layer keeps the number up to date."""

    def result(self):
        self._weight.warn_if_it_stands_still()
        return self._read()

    def reset_state(self):
        self._weight.reset()


class LayerTerm(keras.layers.Layer):
    """Base of the layers that add a weighted loss to the loss of the model.

    A step of `fit` or `evaluate` computes the loss when it requests the losses of the model, and
    `predict` and an exported model do not. A direct call computes it at once, as with `add_loss`.
    A subclass calls `_create_weight` in its constructor and `_defer` in `call`.

    Args:
        name: Name of the layer and of the term.
        **kwargs: As in `keras.layers.Layer`.
    """

    weight: LayerWeight
    #: Whether the loss of a replica needs values of the others.
    _is_gathered = False

    def __init__(self, name: str | None = None, **kwargs):
        # Without autocasting inputs pass through and labels arrive unchanged.
        super().__init__(name=name, autocast=False, **kwargs)
        self.supports_masking = True
        self._running_step = Step()
        self._get_scope: Callable[[], Any] = lambda: None

    def _create_weight(
        self, weight: Weight, readings: Mapping, means: Mapping, counts_steps: bool = False
    ) -> None:
        """Creates the weight, and the metrics that report the values to log.

        Args:
            weight: As in `keras_jointloss.LossWeight`.
            readings: As in `LayerWeight`.
            means: As in `LayerWeight`.
            counts_steps: As in `LayerWeight`.
        """
        self.weight = LayerWeight(weight, self.name, readings, means, counts_steps)
        self._weight_state = as_state(self.weight.state)
        # On JAX a metric cannot read the state of a layer. There it is only reset with the others,
        # and the callback fills the logs.
        tensors: dict[str, Any] = self.weight.tensors
        if trains_functionally():
            tensors = {"readout": dict}
        self._readouts = [
            _Readout(f"{self.name}_{reading}", read, self.weight)
            for reading, read in tensors.items()
        ]

    def _defer(self, compute: Callable[[], CallLoss], inputs: Any, batch_size: Any = None) -> None:
        """Adds the loss of a call as soon as the losses of the model are requested.

        Args:
            compute: Computes the loss.
            inputs: The tensors that the loss depends on, in any structure.
            batch_size: The number of items of the batch; `None` if all of them are in the mean.
        """
        loop = running_loop()
        if loop in ("predict_step", "export"):
            return
        scope = enclosing_scope()
        self._get_scope = (lambda: None) if scope is None else weakref.ref(scope)

        def weighted():
            found = compute()
            loss = found.loss * ops.cast(self.weight.tensor(), found.loss.dtype)
            # Keras can only sum losses of the same dtype.
            return found, ops.cast(loss, keras.config.floatx())

        calls = self._running_step.calls
        if loop not in STEPS and replica_count() == 1 and not is_traced(inputs):
            # Nothing but the loss is to stay of a direct call, and a tape that records the call has
            # to record its loss. One of several replicas may call alone: it waits for no other.
            found = weighted()
            calls.append((lambda: found, batch_size))
        else:
            calls.append((weighted, batch_size))

    def _get_own_losses(self):
        # Keras requests the losses after the call, but not for prediction or export.
        step = self._running_step
        calls, step.calls = step.calls, []
        if calls and not takes_turns():
            self.add_loss(self._weighted_losses(calls))
        elif calls and self._is_gathered:
            step.losses.append(LateLoss(lambda: sum(self._weighted_losses(calls))))
        elif calls:
            step.losses += self._weighted_losses(calls)
        return [*super()._get_own_losses(), *step.losses]

    def _clear_losses(self):
        scope = enclosing_scope()
        if scope is None or self._get_scope() is not scope:
            self._running_step.calls = []
        self._running_step.losses = []
        super()._clear_losses()

    def _weighted_losses(self, calls):
        """Returns the weighted losses of the calls of a step, and counts the step."""
        results, weighted = zip(*(compute() for compute, _ in calls), strict=True)
        losses, items, valid, is_training, means = zip(*results, strict=True)
        for name, sums in (pair for found in means for pair in found.items()):
            self.weight.record_mean(name, *sums)
        counts = None
        if self.weight.uses_counts and all(x is not None for x in valid):
            counts = ops.any(ops.stack([ops.any(x) for x in valid]))
        items = reduce(ops.maximum, items)
        batch_size = calls[0][1]
        if batch_size is not None and self._is_gathered:
            batch_size = recorded_sum(ops.convert_to_tensor(batch_size))
        self.weight.record(sum(losses), items, counts, batch_size)
        if any(is_training):
            self.weight.advance()
        return list(weighted)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        self.weight.save(store)

    def load_own_variables(self, store):
        load_or_undo(self, store, self._load)

    def _load(self, store):
        # Keras uses numbers as keys.
        numbered = [key for key in list(store.keys()) if key.isdigit()]
        super().load_own_variables({key: store[key] for key in numbered})
        self.weight.load(self._saved_state(store))

    def _saved_state(self, store) -> SavedState:
        return SavedState(store, f"the {type(self).__name__} {self.name!r}")

    def get_config(self) -> dict:
        weight = keras.saving.serialize_keras_object(self.weight.initial)
        return {**super().get_config(), "weight": weight}


def item_mask(masks: Iterable[Any]):
    """Returns which items no mask excludes, `(batch,)`, or `None` if there is no mask."""
    masks = [ops.cast(mask, "bool") for mask in masks if mask is not None]
    return ops.all(ops.stack(masks, axis=1), axis=1) if masks else None


def mean_over_items(
    compute: Callable[[Any], Any],
    batch_size,
    mask,
    sample_weight,
    is_weighted_mean: bool,
    over_replicas: bool = False,
) -> tuple[Any, Any, Any]:
    """Returns the mean loss, the number of items, and which items take part.

    Args:
        compute: Returns the loss of each item, `(batch,)`, or several of each, `(batch, values)`,
            which have a mean each. Its argument is which items take part, `(batch,)`, or `None`
            for all.
        batch_size: A scalar tensor of the dtype of the loss.
        mask: Which items take part, `(batch,)`, or `None`.
        sample_weight: The weight of each item, or `None`. An item of weight 0 is excluded.
        is_weighted_mean: Whether the sum is divided by the sum of the weights.
        over_replicas: Whether the mean is over the items of all replicas. The number of items is
            then what a replica adds to the sum that Keras keeps of it.
    """

    def mean(total, divisor, items):
        if over_replicas:  # In one exchange.
            sums = sum_of_replicas(ops.append(total, ops.stack([divisor, items])))
            total, divisor = ops.reshape(sums[:-2], ops.shape(total)), sums[-2]
            items = own_share(sums[-1])
        return divide_or_0(total, divisor), items

    dtype = batch_size.dtype
    items = batch_size if mask is None else ops.sum(ops.cast(mask, dtype))
    if sample_weight is None:
        return *mean(ops.sum(compute(mask), axis=0), items, items), mask
    weights = ops.reshape(ops.cast(sample_weight, dtype), (-1,))
    weights = weights if mask is None else ops.where(mask, weights, 0)
    valid = ops.not_equal(weights, 0)
    divisor = ops.sum(weights) if is_weighted_mean else items
    values = compute(valid)
    if len(values.shape) == 2:
        weights = weights[:, None]
    return *mean(ops.sum(weights * values, axis=0), divisor, items), valid


def validate_reduction(loss: Any, given: Any) -> None:
    """Raises `ValueError` if the reduction of a loss is not a mean.

    Args:
        loss: A function or a `keras.losses.Loss`.
        given: The argument of the user.
    """
    if isinstance(loss, keras.losses.Loss) and loss.reduction in ("sum", "none", None):
        raise invalid(
            "loss", "a loss whose reduction is a mean", given, f" with reduction={loss.reduction!r}"
        )
