"""Represents, in `loss_weights`, the weight of the term whose loss Keras has just computed."""

import threading
from typing import Any

import keras

from keras_jointloss._core.keras import LateNumber


class _Applied(threading.local):
    """The weight of the term whose loss the current thread computed last."""

    weight: Any = None
    tensor: Any = None


_applied = _Applied()


def offer(weight: Any, tensor: Any) -> None:
    """Sets the weight that the next read of an `AppliedWeight` returns.

    Args:
        weight: The `LossWeight` of the term whose loss has just been computed. Its `mark_applied`
            is called when Keras multiplies by it.
        tensor: Its value in this step, a scalar tensor of `keras.config.floatx()`.
    """
    _applied.weight, _applied.tensor = weight, tensor


def take() -> Any:
    """Returns the weight that was offered last, marked as applied; `None` if there is none.

    Its value is a scalar tensor of `keras.config.floatx()`. Each weight can be taken once.
    """
    weight, tensor = _applied.weight, _applied.tensor
    _applied.weight = _applied.tensor = None
    if weight is not None:
        weight.mark_applied()
    return tensor


@keras.saving.register_keras_serializable(package="keras_jointloss")
class AppliedWeight(LateNumber):
    """Represents, in `loss_weights`, the weight of the term whose loss Keras has just computed.

    Keras multiplies each loss by its weight right after computing it. This object has no state, so
    that no copy of it can diverge from the term.
    """

    @property
    def value(self):
        """The weight of the term, a scalar tensor of `keras.config.floatx()`."""
        tensor = take()
        if tensor is None:
            raise RuntimeError(
                "Expected the losses and `loss_weights` that `keras_jointloss.joint_loss` returned "
                "together. Received: `loss_weights` with other losses"
            )
        return tensor

    def __repr__(self) -> str:
        return "AppliedWeight()"

    def get_config(self) -> dict:
        return {}

    @classmethod
    def from_config(cls, config: dict) -> "AppliedWeight":
        return cls(**config)
