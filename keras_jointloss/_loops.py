"""Which of Keras' loops is running: Keras does not pass it on, so the call stack is read."""

import sys

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
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_name
        if name in _STEPS or (name in _LOOPS and "self" in frame.f_locals):
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return None
