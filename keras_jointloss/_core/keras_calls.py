"""What Keras does at the moment, which it does not expose: read from the Python call stack.

Relies on the names of its methods and of the local variables in them. As in `_core/keras.py`, each
function has a check of its name in `tests/test_keras.py`.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras

_in_stateless_scope: Any = inspect.getmodule(keras.StatelessScope).in_stateless_scope  # type: ignore[union-attr]
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
_DECISIVE = STEPS | {"export"}


def _code(method: Any) -> int:
    return id(inspect.unwrap(method).__code__)


#: The code of a call of a layer, and of one that is a function of its variables, as on JAX: their
#: identities, since code that PyTorch compiles has no hash.
_CALLS = frozenset(map(_code, (keras.layers.Layer.__call__, keras.layers.Layer.stateless_call)))


def _callers() -> Iterator[Any]:
    """Returns the frames of the call stack, the innermost first."""
    frame: Any = inspect.currentframe()
    while frame is not None:
        yield frame
        frame = frame.f_back


def predicted(layer: keras.layers.Layer, inputs: Any, **options: Any) -> Any:
    """Returns what a layer or model predicts, within a step of another model.

    For the layers within it, this is a `predict_step`: none of this package trains or adds a loss.
    """
    layer._clear_losses()  # Keras clears those of the model whose step runs.
    return layer(inputs, **options)


def training_outputs(self: keras.Model, x: Any, y: Any, sample_weight: Any) -> Any:
    """Returns what a model predicts, as in a step that trains it, and computes the loss.

    For the layers and losses of this package, this is a `train_step` of `self`.
    """
    options = {"training": True} if self._call_has_training_arg else {}
    y_pred = self(x, **options)
    self._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True)
    return y_pred


def stateless_training_outputs(
    self: keras.Model, state: tuple, x: Any, y: Any, sample_weight: Any
) -> tuple:
    """Returns what `training_outputs` does on JAX, and the values of the variables that it changes.

    The state has the values of the trainable and other variables of the model, and of those of its
    metrics and optimizer. Those that change are the others of the model, and of the metrics.
    """
    trainable, others, metrics, optimizer = state
    _, (_, y_pred, others, metrics) = self.compute_loss_and_updates(
        trainable,
        others,
        metrics,
        x,
        y,
        sample_weight,
        training=True,
        optimizer_variables=optimizer,
    )
    return y_pred, others, metrics


#: The code of the functions above that stand for a step of training.
_TRAINING = frozenset(map(_code, (training_outputs, stateless_training_outputs)))


def _loop_of(frame: Any) -> str | None:
    """Returns the name of the Keras loop that runs in a frame, as `running_loop`, or `None`."""
    if frame.f_code is predicted.__code__:
        return "predict_step"
    if id(frame.f_code) in _TRAINING:
        return "train_step"
    name = frame.f_code.co_name
    # Functions of a user's own loop may have these names, too.
    is_method = name in _METHODS and isinstance(frame.f_locals.get("self"), keras.Model)
    return name if is_method or name == _BUILD else None


def running_loop() -> str | None:
    """Returns the name of the innermost Keras loop that called this function.

    Returns:
        `"fit"`, `"evaluate"`, `"train_on_batch"`, `"test_on_batch"` or `"export"`; inside the step
        of a batch, which JAX and TensorFlow trace, the name of the step, like `"train_step"`;
        `"compute_output_spec"` where Keras builds a model; or `None`.
    """
    return next((name for frame in _callers() if (name := _loop_of(frame)) is not None), None)


class Fit(NamedTuple):
    """A running `fit`."""

    epoch: int | None  # The epoch that runs or has just ended; `None` before the first one
    first: int  # The epoch to begin with, unless a callback resumes at a later one
    validates: bool  # Whether it validates the model


def running_fit() -> Fit | None:
    """Returns the innermost `fit` that called this function, or `None`.

    A `keras.utils.PyDataset` is not told which epoch begins or ends.
    """
    for frame in _callers():
        if _loop_of(frame) == "fit":
            known = frame.f_locals
            validates = known.get("validation_data") is not None
            return Fit(known.get("epoch"), known["initial_epoch"], validates)
    return None


def running_model() -> keras.Model | None:
    """Returns the model whose `train_step` or `test_step` is running, or `None`.

    If one model runs another, returns the outer one.
    """
    steps = [frame for frame in _callers() if _loop_of(frame) in _STEPS_WITH_LOSS]
    return steps[-1].f_locals["self"] if steps else None


def training_optimizer() -> keras.optimizers.Optimizer | None:
    """Returns the optimizer of the model that is being trained, or built for it, or `None`."""
    names = {"train_step", "train_on_batch", "fit"}
    models = (frame.f_locals["self"] for frame in _callers() if _loop_of(frame) in names)
    return next((model.optimizer for model in models), None)


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
    for frame in _callers():
        if id(frame.f_code) in _CALLS:
            outermost = frame
        elif (loop := _loop_of(frame)) in _DECISIVE:
            given = None if outermost is None else _arguments_of(outermost)[0].get("training")
            return loop == "train_step" and (given is None or bool(given))
    return bool(training) if outermost is None else _training_of(outermost)


def training_of_outermost_call() -> bool | None:
    """Returns the argument `training` of the outermost running call of a layer, or its default.

    Each layer that is called with another one changes it in the context that Keras keeps. As in
    Keras, `None` means inference. Returns `None` if `call` takes no `training`.
    """
    return _training_of(_outermost_frame())


def outermost_call() -> Any:
    """Returns an object that lives exactly as long as the running outermost call of a layer.

    All layers that this call calls get the same object. `None` outside of any call.
    """
    frame = _outermost_frame()
    if frame is None:
        return None
    # A functional call treats each layer within it as the outermost, but has a scope.
    return frame.f_locals.get("call_context") or frame.f_locals.get("scope")


def _outermost_frame() -> Any:
    calls = [frame for frame in _callers() if id(frame.f_code) in _CALLS]
    return calls[-1] if calls else None


def _training_of(frame: Any) -> bool | None:
    given, others = _arguments_of(frame)
    arguments = {**others, **given}
    return bool(arguments["training"]) if "training" in arguments else None


def _arguments_of(frame: Any) -> tuple[dict, dict]:
    """Returns the arguments that a running call of a layer was given, and all with defaults."""
    values = frame.f_locals
    specification = values.get("call_spec")
    if specification is not None:
        return specification.user_arguments_dict, specification.arguments_dict
    bound = inspect.signature(values["self"].call).bind(*values["args"], **values["kwargs"])
    given = dict(bound.arguments)
    bound.apply_defaults()
    return given, dict(bound.arguments)


def is_stateless() -> bool:
    """Returns whether a scope receives what is assigned to variables.

    A function beside `keras.StatelessScope` says so. A new scope, which knows the one around it,
    would take ten times as long.
    """
    return _in_stateless_scope()


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


def _enclosing_callbacks() -> keras.callbacks.CallbackList | None:
    """Returns the list of callbacks whose hook is running, or `None`."""
    owners = (frame.f_locals.get("self") for frame in _callers())
    return next((x for x in owners if isinstance(x, keras.callbacks.CallbackList)), None)


def running_callbacks() -> list[keras.callbacks.Callback]:
    """Returns the callbacks of the list whose hook is running."""
    owner = _enclosing_callbacks()
    return [] if owner is None else list(owner.callbacks)


def move_to_front(callback: keras.callbacks.Callback, behind: tuple[type, ...] = ()) -> None:
    """Moves a callback to the front of the list that sets its model, which no argument exposes.

    Callbacks of the classes `behind` stay before it, or move there.
    """
    owner = _enclosing_callbacks()
    if owner is not None and callback in owner.callbacks:
        others = [x for x in owner.callbacks if x is not callback]
        first = [x for x in others if isinstance(x, behind)]
        # A new list: the hook that is running goes on through the old one.
        owner.callbacks = [*first, callback, *(x for x in others if x not in first)]


def when_callbacks_are_deleted(close: Callable[[], None]) -> None:
    """Calls a function when the list of callbacks whose hook is running is deleted.

    If `fit` fails or is interrupted, Keras calls no hook, but deletes its list.
    """
    owner = _enclosing_callbacks()
    if owner is not None:
        weakref.finalize(owner, close)


def evaluation_logs() -> dict[str, float]:
    """Returns the values that the running `evaluate` is to return; callbacks receive a copy.

    They are known at `on_test_end`. Outside of `evaluate` there are none.
    """
    frame = next((x for x in _callers() if _loop_of(x) == "evaluate"), None)
    logs = None if frame is None else frame.f_locals.get("logs")
    return logs if isinstance(logs, dict) else {}


def skips_mismatch() -> bool:
    """Returns whether a running `load_weights` skips the objects that do not fit the file."""
    return any(
        frame.f_code.co_name == "load_weights" and frame.f_locals.get("skip_mismatch") is True
        for frame in _callers()
    )
