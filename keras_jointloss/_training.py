"""Whether the model that encloses a layer trains: the answer for all layers of the package."""

from keras_jointloss import _keras, _loops


def is_training(training: bool | None) -> bool | None:
    """Returns whether the model that encloses the running call of a layer trains.

    In a step of `fit`, `evaluate`, `predict` and their like, the step decides, whatever a layer is
    called with: `training=False` freezes batch normalization in a model that trains. In any other
    call, the argument `training` of the outermost layer or model decides.

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
            return loop == "train_step"
    return bool(training) if outermost is None else _keras.training_of(outermost)
