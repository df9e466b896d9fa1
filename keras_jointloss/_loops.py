"""Finds which part of Keras is running in the call stack, as Keras does not expose it."""

import inspect
from collections.abc import Iterator
from typing import Any

import keras

#: The public methods of a model that reset its metrics, and the one that exports it.
_LOOPS = frozenset({"fit", "evaluate", "train_on_batch", "test_on_batch", "export"})
#: The methods they run for each batch, and the one that builds a model without running anything.
STEPS = frozenset({"train_step", "test_step", "predict_step", "compute_output_spec"})


def _callers() -> Iterator[Any]:
    """Returns the frames of the call stack, the innermost first."""
    frame: Any = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def running_loop() -> str | None:
    """Returns the name of the innermost Keras loop that called this function.

    Returns:
        `"fit"`, `"evaluate"`, `"train_on_batch"`, `"test_on_batch"` or `"export"`; inside the step
        of a batch, which JAX and TensorFlow trace, the name of the step, like `"train_step"`; or
        `None`.
    """
    for frame in _callers():
        name = frame.f_code.co_name
        # Loops of other libraries may have these names, too.
        is_loop = name in _LOOPS and isinstance(frame.f_locals.get("self"), keras.Model)
        if is_loop or name in STEPS:
            return name
    return None


def enclosing_callbacks() -> keras.callbacks.CallbackList | None:
    """Returns the list of callbacks whose hook is running, or `None`."""
    owners = (frame.f_locals.get("self") for frame in _callers())
    return next((x for x in owners if isinstance(x, keras.callbacks.CallbackList)), None)


def enclosing_scope() -> keras.StatelessScope | None:
    """Returns the scope of the running `stateless_call` of a model, or `None`.

    Within it, as in training on JAX, Keras calls the layers of a model one by one and treats each
    call as the first of a step.
    """
    for frame in _callers():
        if frame.f_code.co_name == "stateless_call":
            values = frame.f_locals.values()
            return next((x for x in values if isinstance(x, keras.StatelessScope)), None)
    return None


def move_to_front(callback: keras.callbacks.Callback) -> None:
    """Moves a callback to the front of the list that sets its model, which no argument exposes."""
    owner = enclosing_callbacks()
    if owner is not None and callback in owner.callbacks:
        owner.callbacks.remove(callback)
        owner.callbacks.insert(0, callback)
