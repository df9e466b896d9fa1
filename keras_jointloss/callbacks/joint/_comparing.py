"""The callbacks of Keras that compare a value of one epoch with that of another."""

from collections.abc import Container, Iterable
from typing import Any

import keras

from keras_jointloss._core.keras_models import forget_best

_COMPARING = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ReduceLROnPlateau,
)


def compares(callback: Any) -> bool:
    """Returns whether a callback compares the values of epochs."""
    if isinstance(callback, keras.callbacks.ModelCheckpoint):
        return bool(callback.save_best_only)
    return isinstance(callback, _COMPARING)


def forget_unknown(callbacks: Iterable[Any], names: Container[str]) -> None:
    """Lets callbacks compare with the first value that is known.

    Args:
        callbacks: The callbacks of the training.
        names: The logged values that were NaN in the last epoch.
    """
    for callback in callbacks:
        is_known = not isinstance(callback, _COMPARING) or callback.monitor not in names
        if not is_known:
            forget_best(callback)
