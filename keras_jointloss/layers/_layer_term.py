"""The base of layer terms, and when they compute the losses of a step."""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, Unpack

import keras
from keras import ops

from keras_jointloss._core.backend import current_replicas, is_traced
from keras_jointloss._core.keras import LateNumber
from keras_jointloss._core.keras_calls import STEPS, enclosing_scope, running_loop
from keras_jointloss._core.keras_losses import forget_own_losses
from keras_jointloss._core.keras_state import saved_variables
from keras_jointloss._core.saved_state import SavedState, load_or_undo
from keras_jointloss._core.state import as_state
from keras_jointloss._core.types import Config, LayerOptions
from keras_jointloss.layers._readouts import create_readouts
from keras_jointloss.terms.guard import guarded, kept_if
from keras_jointloss.terms.layer_weight import LayerWeight
from keras_jointloss.terms.value import Weight


class CallLoss(NamedTuple):
    """The loss of a call of a layer term."""

    loss: Any  # Its mean over the items, a scalar
    items: Any  # The number of items in the mean
    valid: Any  # Which of them count, `(batch, ...)`, or `None` if all do
    is_training: bool  # Whether the call trains
    batch_size: Any  # The number of items of the batch; `None` if all of them are in the mean
    means: dict[str, tuple]  # Other means to log: by name, the sum of the values and their number
    kept: Any = None  # What the layer keeps for later steps, see `LayerTerm._keep`
    raw: Any = None  # The loss before a guard drops what is not finite; `None` if nothing watches
    is_good: Any = None  # Whether loss and weight are finite; likewise

    def kept_if(self, is_good: Any) -> "CallLoss":
        """Returns what remains of the loss if a call is good, or else nothing but the batch."""
        if is_good is True:
            return self
        return self._replace(
            loss=kept_if(is_good, self.loss),
            items=kept_if(is_good, self.items),
            valid=ops.logical_and(is_good, True if self.valid is None else self.valid),
            batch_size=self.items if self.batch_size is None else self.batch_size,
            means={x: tuple(kept_if(is_good, y) for y in pair) for x, pair in self.means.items()},
        )


#: A function that returns the loss of a call of a layer, unweighted and weighted.
Compute = Callable[[], tuple[CallLoss, Any]]


class Step(threading.local):
    """The losses of a layer term in a step: deferred, computed, or handed over.

    A call of the layer calls `defer`. The loss is then *deferred*, or *computed* at once. `collect`
    runs when the losses of the model are requested: it computes deferred losses, records them all,
    and returns them, so that they are *handed over*. `clear` runs when the next step begins, and
    drops all losses. The replicas of `tf.distribute` share a layer, but each is a thread with its
    own step. When the loss is computed:

    | context | TensorFlow | JAX | PyTorch |
    |---|---|---|---|
    | `train_step`, `test_step` | `collect` | `collect` | `collect` |
    | `predict_step`, `export` | never | never | never |
    | symbolic build | `collect` | `collect` | `collect` |
    | loop with `model(...)` and `model.losses` | `defer` | `defer` | `defer` |
    | the same, in a traced function | `collect` | `collect` | - |
    | `stateless_call` | `defer` | `defer` | `defer` |
    | `stateless_call` in a traced function | `collect` | `collect` | - |
    | one of several replicas | `collect` | - | `collect` |
    | the same, if the loss exchanges values | when used | - | `collect` |

    Keras collects the losses in its steps itself. On JAX, it does so at the end of `stateless_call`
    with `return_losses=True`. A symbolic build collects them if the model has other losses, too. A
    traced function is one of `tf.function`, `jax.jit` or `jax.grad`. On JAX there is always one
    replica. "When used" is when Keras adds the loss to the others, as in `LateLoss`.
    """

    def __init__(self):
        # One function for each call whose loss is deferred or computed.
        self._calls: list[Compute] = []
        # The losses that one of several replicas has handed over. Keras keeps all others.
        self._handed_over: list[Any] = []
        self._get_scope: Callable[[], Any] = lambda: None

    @property
    def is_pending(self) -> bool:
        """Whether a loss is deferred or computed, but not handed over."""
        return bool(self._calls)

    def defer(self, compute: Compute, inputs: Any) -> None:
        """Adds the loss of a call, which is computed now or by `collect`.

        It depends on the inputs, tensors in any structure.
        """
        loop = running_loop()
        if loop in ("predict_step", "export"):
            return
        scope = enclosing_scope()
        self._get_scope = (lambda: None) if scope is None else weakref.ref(scope)
        if loop not in STEPS and current_replicas().count == 1 and not is_traced(inputs):
            # Nothing but the loss is to stay of a direct call, and a tape that records the call has
            # to record its loss. One of several replicas may call alone: it waits for no other.
            found = compute()
            self._calls.append(lambda: found)
        else:
            self._calls.append(compute)

    def collect(
        self,
        record: Callable[[Sequence[Compute]], list],
        add_loss: Callable[[list], None],
        exchanges_values: bool,
    ) -> list:
        """Hands over the losses of all calls; returns those that `add_loss` does not keep.

        The function `record` calls those of the calls, and returns the weighted losses. It may
        exchange values between replicas.
        """
        calls, self._calls = self._calls, []
        if calls and not current_replicas().takes_turns:
            add_loss(record(calls))
        elif calls and exchanges_values:
            self._handed_over.append(LateLoss(lambda: sum(record(calls))))
        elif calls:
            self._handed_over += record(calls)
        return list(self._handed_over)

    def clear(self) -> bool:
        """Drops the losses of the last step, as Keras does; returns whether a new step begins."""
        scope = enclosing_scope()
        # In a `stateless_call`, Keras treats each call of a layer as the first one of a step.
        is_new = scope is None or self._get_scope() is not scope
        if is_new:
            self._calls = []
        self._handed_over = []
        return is_new


class LateLoss(LateNumber):
    """A scalar loss of the dtype `floatx` that is computed when it is converted to a tensor, once.

    Keras converts the losses of layers after it has collected all of them. A computation that
    exchanges values between replicas then disturbs none: TensorFlow lets another replica begin its
    forward pass meanwhile, which clears the losses that are still in the layers.
    """

    def __init__(self, compute: Callable[[], Any]):
        super().__init__()
        self._compute = compute
        self._computed: Any = None

    @property
    def value(self) -> Any:
        if self._computed is None:
            self._computed = self._compute()
        return self._computed

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "The loss of a layer term is exchanged between replicas when it is used. Use "
            "`sum(model.losses)` in place of an operation on the list."
        )

    def __add__(self, other):
        return self.value + other

    __radd__ = __add__

    def __mul__(self, other):
        return self.value * other

    __rmul__ = __mul__


class LayerTerm(keras.layers.Layer):
    """Base of the layers that add a weighted loss to the loss of the model.

    A step of `fit` or `evaluate` computes the loss when it requests the losses of the model, and
    `predict` and an exported model do not. A direct call computes it at once, as with `add_loss`.
    `Step` has all cases. A subclass calls `_create_weight` in its constructor and `_defer` in
    `call`. The name is that of the layer and of the term.
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
        self, weight: Weight, readings: Mapping, means: Mapping, schedules: Mapping
    ) -> None:
        """Creates the weight, as in `LayerWeight`, and the metrics that report what to log."""
        self.weight = LayerWeight(weight, self.name, readings, means, schedules)
        self._weight_state = as_state(self.weight.state)
        self._readouts = create_readouts(self.name, self.weight)

    def _defer(self, compute: Callable[[Any], CallLoss], tensors: Any, inputs: Any) -> None:
        """Adds the loss of a call to the step.

        It is a function, without side effects, of a pair: tensors, in any structure, and the
        `_trained_tensors` of the layer. It has gradients with respect to these alone. What it
        depends on, in any structure, are the inputs.
        """

        def weighted():
            found = self._guarded(compute, (tensors, self._trained_tensors()))
            loss = found.loss * ops.cast(self.weight.tensor(), found.loss.dtype)
            # Keras can only sum losses of the same dtype.
            return found, ops.cast(loss, keras.config.floatx())

        self._step.defer(weighted, inputs)

    def _trained_tensors(self) -> dict[str, Any]:
        """Returns the tensors by name that the loss itself trains."""
        return {}

    def _guarded(self, compute, tensors) -> CallLoss:
        """Returns the loss of a call, and keeps what later steps need of it."""
        if not self.weight.is_guarded:
            found = compute(tensors)
        else:

            def parts(tensors):
                found = compute(tensors)
                return found.loss, found.loss, found

            loss, found, is_good = guarded(self.weight, parts, tensors)
            found = found._replace(loss=loss, raw=ops.stop_gradient(loss), is_good=is_good)
            if self.weight.drops:
                found = found.kept_if(is_good)
        if found.kept is not None:
            self._keep(found)
        return found._replace(kept=None)

    def _keep(self, found: CallLoss) -> None:
        """Assigns what a call keeps for later steps, `found.kept`."""

    def _get_own_losses(self):
        # Keras requests the losses after the call, but not for prediction or export.
        losses = self._step.collect(self._record, self.add_loss, self._is_gathered)
        return [*super()._get_own_losses(), *losses]

    def _clear_losses(self):
        if self._step.clear():
            forget_own_losses(self)
        super()._clear_losses()

    def _record(self, calls: Sequence[Compute]) -> list:
        """Records the losses of the calls of a step, counts it, and returns the weighted losses."""
        results, weighted = zip(*(compute() for compute in calls), strict=True)
        columns = zip(*results, strict=True)
        losses, items, valid, is_training, batch_sizes, means, _, raw, are_good = columns
        for name, sums in (pair for found in means for pair in found.items()):
            self.weight.record_mean(name, *sums)
        counts = None
        if all(x is not None for x in valid):
            counts = ops.any(ops.stack([ops.any(x) for x in valid]))
        items = reduce(ops.maximum, items)
        batch_size = batch_sizes[0]
        if batch_size is not None and self._is_gathered:
            batch_size = current_replicas().state_sum(ops.convert_to_tensor(batch_size))
        if all(x is not None for x in are_good):
            self.weight.watch(sum(raw), reduce(ops.logical_and, are_good))
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
        weight = keras.saving.serialize_keras_object(self.weight.given.source)
        return {**super().get_config(), "weight": weight}
