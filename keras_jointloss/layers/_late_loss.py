"""What a layer term keeps during a step, and a loss that is computed when Keras uses it."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import keras


class CallLoss(NamedTuple):
    """The loss of a call of a layer term.

    Attributes:
        loss: Its mean over the items, a scalar.
        items: The number of items in the mean.
        valid: Which of them count, `(batch, ...)`, or `None` if all do.
        is_training: Whether the call trains.
        means: Other means to log: by name, the sum of the values and their number.
    """

    loss: Any
    items: Any
    valid: Any
    is_training: bool
    means: dict[str, tuple]


class Step(threading.local):
    """The calls and the losses of a layer in a step.

    The replicas of `tf.distribute` share the layer, but each runs in a thread of its own.
    """

    def __init__(self):
        #: For each call, a function that returns its loss and its weighted loss, to be called when
        #: the losses are requested; and the batch size, `None` if all items are in the mean.
        self.calls: list[tuple[Callable[[], tuple[CallLoss, Any]], Any]] = []
        #: The losses of one of several replicas, to return until the next step.
        self.losses: list[Any] = []


class LateLoss:
    """A scalar loss that is computed when it is converted to a tensor, once.

    Keras converts the losses of layers after it has collected all of them. A computation that
    exchanges values between replicas then disturbs none: TensorFlow lets another replica begin its
    forward pass meanwhile, which clears the losses that are still in the layers.

    Args:
        compute: Returns the loss, a scalar tensor of the dtype `floatx`.
    """

    shape = ()

    def __init__(self, compute: Callable[[], Any]):
        self._compute = compute
        self._value: Any = None
        self.dtype = keras.config.floatx()

    def _tensor(self):
        if self._value is None:
            self._value = self._compute()
        return self._value

    def __tf_tensor__(self, dtype=None, name=None):
        value = self._tensor()
        return value if dtype is None else keras.ops.cast(value, dtype.name)

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            "The loss of a layer term is exchanged between replicas when it is used. Use "
            "`sum(model.losses)` in place of an operation on the list."
        )

    def __add__(self, other):
        return self._tensor() + other

    __radd__ = __add__

    def __mul__(self, other):
        return self._tensor() * other

    __rmul__ = __mul__
