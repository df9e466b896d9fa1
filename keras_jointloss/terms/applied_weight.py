"""Represents, in `loss_weights`, the weight of a term whose loss Keras has just computed."""

import threading
import weakref
from typing import TYPE_CHECKING, Any

import keras

from keras_jointloss._core.keras import LateNumber
from keras_jointloss._core.types import Config, Tensor
from keras_jointloss._core.validation import invalid

if TYPE_CHECKING:
    from keras_jointloss.terms.output_weight import LossWeight


class _Computed(threading.local):
    """The weights of the terms whose losses a thread has computed, by term, until it reads them."""

    def __init__(self):
        self.weights: weakref.WeakValueDictionary[str | None, Any] = weakref.WeakValueDictionary()


_computed = _Computed()


def hand_over(weight: "LossWeight") -> None:
    """Lets the `AppliedWeight` of a term, whose loss has just been computed, read its weight."""
    _computed.weights.pop(weight.term, None)
    _computed.weights[weight.term] = weight


@keras.saving.register_keras_serializable(package="keras_jointloss")
class AppliedWeight(LateNumber):
    """Represents, in `loss_weights`, the weight of a term whose loss Keras has just computed.

    This object has no state, so that no copy of it can diverge from the term.

    Args:
        term: The name of the term. `None`, as in files of earlier versions, for the one whose loss
            Keras has computed last.
    """

    def __init__(self, term: str | None = None):
        super().__init__()
        if term is not None and not isinstance(term, str):
            raise invalid("term", "the name of a term, or None", term)
        self.term = term

    @property
    def value(self) -> Tensor:
        """The weight of the term, a scalar tensor of `keras.config.floatx()`."""
        weights = _computed.weights
        term = next(reversed(list(weights.keys())), None) if self.term is None else self.term
        weight = weights.pop(term, None)
        tensor = None if weight is None else weight.applied()
        if tensor is None:
            of_term = "" if self.term is None else f" of the term {self.term!r}"
            raise RuntimeError(
                "Expected the losses and `loss_weights` that `keras_jointloss.joint_loss` returned "
                f"together. Received: the weight{of_term} in `loss_weights` with other losses"
            )
        return tensor

    def __repr__(self) -> str:
        return f"AppliedWeight({self.term!r})"

    def get_config(self) -> Config:
        return {"term": self.term}

    @classmethod
    def from_config(cls, config: Config) -> "AppliedWeight":
        return cls(**config)
