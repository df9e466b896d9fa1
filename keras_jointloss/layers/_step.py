"""When a layer term computes the loss of a step, and what it keeps until then."""

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras_jointloss._core.backend import current_replicas, is_traced
from keras_jointloss._core.keras import LateNumber
from keras_jointloss._core.keras_calls import STEPS, enclosing_scope, running_loop


class CallLoss(NamedTuple):
    """The loss of a call of a layer term.

    Attributes:
        loss: Its mean over the items, a scalar.
        items: The number of items in the mean.
        valid: Which of them count, `(batch, ...)`, or `None` if all do.
        is_training: Whether the call trains.
        batch_size: The number of items of the batch; `None` if all of them are in the mean.
        means: Other means to log: by name, the sum of the values and their number.
    """

    loss: Any
    items: Any
    valid: Any
    is_training: bool
    batch_size: Any
    means: dict[str, tuple]


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

        Args:
            compute: Computes the loss.
            inputs: The tensors that the loss depends on, in any structure.
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

        Args:
            record: Calls the functions of the calls, and returns the weighted losses.
            add_loss: Adds losses to those that Keras keeps.
            exchanges_values: Whether `record` exchanges values between replicas.
        """
        calls, self._calls = self._calls, []
        if calls and not current_replicas().takes_turns:
            add_loss(record(calls))
        elif calls and exchanges_values:
            self._handed_over.append(LateLoss(lambda: sum(record(calls))))
        elif calls:
            self._handed_over += record(calls)
        return list(self._handed_over)

    def clear(self) -> None:
        """Drops the losses of the last step, as Keras does."""
        scope = enclosing_scope()
        # In a `stateless_call`, Keras treats each call of a layer as the first one of a step.
        if scope is None or self._get_scope() is not scope:
            self._calls = []
        self._handed_over = []


class LateLoss(LateNumber):
    """A scalar loss that is computed when it is converted to a tensor, once.

    Keras converts the losses of layers after it has collected all of them. A computation that
    exchanges values between replicas then disturbs none: TensorFlow lets another replica begin its
    forward pass meanwhile, which clears the losses that are still in the layers.

    Args:
        compute: Returns the loss, a scalar tensor of the dtype `floatx`.
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
