"""Whether the model that encloses a layer trains: the answer for all layers of the package."""

from typing import Any

from keras_jointloss._core import keras as _keras
from keras_jointloss._core import loops as _loops


def is_training(training: bool | None) -> bool | None:
    """Returns whether the model that encloses the running call of a layer trains.

    In a step of `fit`, `evaluate`, `predict` and their like, the step decides, whatever a layer is
    called with: `training=False` freezes batch normalization in a model that trains. Only a step
    that itself calls a model with `training=False`, such as for pseudo labels, does not train it in
    this call. In any other call, the argument `training` of the outermost layer or model decides.

    Args:
        training: The argument of the layer itself, which decides if `call` is called directly.

    Returns:
        `None` if that is unknown: outside of a step, if the `call` of the outermost model takes no
        argument `training`.
    """
    outermost = None
    for frame in _loops.callers():
        if id(frame.f_code) in _keras.CALLS:
            outermost = frame
        elif (loop := _loops.loop_of(frame)) in _loops.DECISIVE:
            return loop == "train_step" and not _is_switched_off(outermost)
    return bool(training) if outermost is None else _keras.training_of(outermost)


def _is_switched_off(outermost: Any) -> bool:
    given = None if outermost is None else _keras.given_training(outermost)
    return given is not None and not given
