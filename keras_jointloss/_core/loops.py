"""Finds which part of Keras is running in the call stack, as Keras does not expose it."""

import inspect
from collections.abc import Iterator
from typing import Any

import keras

#: The methods of a model that run for each batch.
_STEPS_WITH_LOSS = frozenset({"train_step", "test_step"})
_STEPS = _STEPS_WITH_LOSS | {"predict_step"}
#: Those, the public ones that reset its metrics, and the one that exports it.
_METHODS = _STEPS | {"fit", "evaluate", "train_on_batch", "test_on_batch", "export"}
#: What builds a model without running anything: a function, and a method of layers.
_BUILD = "compute_output_spec"
#: Where Keras requests the losses of layers itself, or needs none.
STEPS = _STEPS | {_BUILD}
#: What decides whether a model trains.
DECISIVE = STEPS | {"export"}


def callers() -> Iterator[Any]:
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
    return next((name for frame in callers() if (name := loop_of(frame)) is not None), None)


def loop_of(frame: Any) -> str | None:
    """Returns the name of the Keras loop that runs in a frame, as `running_loop`, or `None`."""
    name = frame.f_code.co_name
    # Functions of a user's own loop may have these names, too.
    is_method = name in _METHODS and isinstance(frame.f_locals.get("self"), keras.Model)
    return name if is_method or name == _BUILD else None


def running_model() -> keras.Model | None:
    """Returns the model whose `train_step` or `test_step` is running, or `None`.

    If one model runs another, returns the outer one.
    """
    steps = [frame for frame in callers() if loop_of(frame) in _STEPS_WITH_LOSS]
    return steps[-1].f_locals["self"] if steps else None


def enclosing_callbacks() -> keras.callbacks.CallbackList | None:
    """Returns the list of callbacks whose hook is running, or `None`."""
    owners = (frame.f_locals.get("self") for frame in callers())
    return next((x for x in owners if isinstance(x, keras.callbacks.CallbackList)), None)


def running_callbacks() -> list[keras.callbacks.Callback]:
    """Returns the callbacks of the list whose hook is running."""
    owner = enclosing_callbacks()
    return [] if owner is None else list(owner.callbacks)


def evaluation_logs() -> dict[str, float]:
    """Returns the values that the running `evaluate` is to return; callbacks receive a copy.

    They are known at `on_test_end`. Outside of `evaluate` there are none.
    """
    frame = next((x for x in callers() if loop_of(x) == "evaluate"), None)
    logs = None if frame is None else frame.f_locals.get("logs")
    return logs if isinstance(logs, dict) else {}


def enclosing_scope() -> keras.StatelessScope | None:
    """Returns the scope of the running `stateless_call` of a model, or `None`.

    Within it, as in training on JAX, Keras calls the layers of a model one by one and treats each
    call as the first of a step.
    """
    for frame in callers():
        if frame.f_code.co_name == "stateless_call":
            values = frame.f_locals.values()
            return next((x for x in values if isinstance(x, keras.StatelessScope)), None)
    return None


def training_optimizer() -> keras.optimizers.Optimizer | None:
    """Returns the optimizer of the model that is being trained, or built for it, or `None`."""
    names = {"train_step", "train_on_batch", "fit"}
    models = (frame.f_locals["self"] for frame in callers() if loop_of(frame) in names)
    return next((model.optimizer for model in models), None)


def move_to_front(callback: keras.callbacks.Callback) -> None:
    """Moves a callback to the front of the list that sets its model, which no argument exposes."""
    owner = enclosing_callbacks()
    if owner is not None and callback in owner.callbacks:
        owner.callbacks.remove(callback)
        owner.callbacks.insert(0, callback)


def skips_mismatch() -> bool:
    """Returns whether a running `load_weights` skips the objects that do not fit the file."""
    return any(
        frame.f_code.co_name == "load_weights" and frame.f_locals.get("skip_mismatch") is True
        for frame in callers()
    )
