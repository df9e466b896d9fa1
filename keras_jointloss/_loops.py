"""Which of Keras' loops is running: Keras does not pass it on, so the call stack is read."""

import inspect
from typing import Any

import keras

#: The public methods of a model that reset its metrics.
_LOOPS = frozenset({"fit", "evaluate", "train_on_batch", "test_on_batch"})
#: What they run for each batch.
_STEPS = frozenset({"train_step", "test_step", "predict_step"})


def running_loop() -> str | None:
    """Returns the name of the innermost loop of Keras that called this function.

    Returns:
        `"fit"`, `"evaluate"`, `"train_on_batch"` or `"test_on_batch"`; inside of the step of a
        batch, which JAX and TensorFlow trace, the name of that, as `"train_step"`; or `None`.
    """
    frame: Any = inspect.currentframe()
    while frame is not None:
        name = frame.f_code.co_name
        if name in _STEPS or (name in _LOOPS and "self" in frame.f_locals):
            return name
        frame = frame.f_back
    return None


def enclosing_callbacks() -> keras.callbacks.CallbackList | None:
    """Returns the list of callbacks whose hook is running, if one is."""
    frame: Any = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, keras.callbacks.CallbackList):
            return owner
        frame = frame.f_back
    return None
