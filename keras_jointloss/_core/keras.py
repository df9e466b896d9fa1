"""What the package assumes of layers, losses and variables of Keras that Keras does not document.

Each assumption is a function, which says why it is needed, and has a check of its name in
`tests/test_keras.py`. What runs at the moment is in `_core/keras_calls.py`, what concerns models,
optimizers and callbacks in `_core/keras_models.py`, state in training and in files in
`_core/keras_state.py`, and what else the loss has in `_core/keras_losses.py`.
`_core/keras_check.py` looks for most of it when the package is imported. No other module relies on
what Keras does not document, except for the methods in `OVERRIDDEN`.
"""

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_jointloss._core.backend import name as name_of_backend

#: Methods of layers that a term overrides: `Model.losses` collects losses with the first, and Keras
#: calls the second when a new outermost call begins.
OVERRIDDEN = ("_get_own_losses", "_clear_losses")

# Layers and their losses.


def flatten_layers(layer: keras.layers.Layer, include_self: bool = True) -> Iterator:
    """Returns the layers within a layer, at any depth; `Model.layers` stops at a nested model."""
    return iter(layer._flatten_layers(include_self=include_self))


def outermost_layer() -> keras.layers.Layer | None:
    """Returns the layer or model whose call encloses all others; `None` outside of any call.

    Only the context that Keras keeps of a call knows it.
    """
    context = _PROBE._get_call_context()
    if context.entry_layer is not _PROBE:
        return context.entry_layer
    # There was no context, so Keras created one.
    _PROBE._maybe_reset_call_context()
    return None


def own_losses(layer: keras.layers.Layer) -> list:
    """Returns the losses that a layer itself has added in the running step."""
    return layer._get_own_losses()


def layer_that_adds_losses(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns the first layer within a layer that has added a loss in the running step."""
    return next((x for x in flatten_layers(layer) if own_losses(x)), layer)


@contextlib.contextmanager
def kept_losses(layer: keras.layers.Layer) -> Iterator[None]:
    """Puts the losses that a layer and those within it have added back at the end.

    The replicas of TensorFlow share the lists that `add_loss` fills.
    """
    kept = [(x, list(x._losses)) for x in flatten_layers(layer)]
    try:
        yield
    finally:
        for x, losses in kept:
            x._losses.clear()
            x._losses.extend(losses)


def keep_from_recomputation(layer: keras.layers.Layer) -> None:
    """Excludes a layer from `keras.RematScope`, but not the layers within it."""
    layer._remat_mode = None


def takes_training(layer: keras.layers.Layer) -> bool:
    """Returns whether the `call` of a layer has an argument `training`, which Keras then fills."""
    return "training" in inspect.signature(layer.call).parameters


def required_arguments(layer: keras.layers.Layer) -> list[str]:
    """Returns the arguments that a layer needs in every call, besides those that Keras adds."""
    parameters = inspect.signature(layer.call).parameters.values()
    is_variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [x for x in parameters if x.default is x.empty and x.kind not in is_variadic]
    return [x.name for x in needed if x.name not in ("training", "mask")]


def is_known(defined: Any) -> bool:
    """Returns whether Keras or this package defines a class or function, so that it is known."""
    return defined.__module__.partition(".")[0] in ("keras", "keras_jointloss")


# The graph of a Functional model.


class Source(NamedTuple):
    """The call of a layer or operation that has computed a tensor of a Functional model."""

    operation: Any  # The layer or operation
    call: int  # The number of the call
    inputs: list  # The tensors that the call received
    position: int  # The number of the tensor among those that it returned
    size: int  # How many it returned


def source(tensor: Any) -> Source | None:
    """Returns the call that has computed a symbolic tensor; `None` if no call has.

    `Layer.output` and `Layer.input` raise an error if a layer is called several times.
    """
    operation, call, index = tensor._keras_history
    if operation is None:
        return None
    node = operation._inbound_nodes[call]
    return Source(operation, call, list(node.input_tensors), index, len(node.outputs))


def stacked_tensors(tensor: Any) -> list | None:
    """Returns what `keras.ops.stack` has put together, which only the operation itself knows.

    `None` if a symbolic tensor comes from something else.
    """
    found = source(tensor)
    if found is None or isinstance(found.operation, keras.layers.Layer):
        return None
    return found.inputs if type(found.operation).__name__ == "Stack" else None


# Numbers and masks.


class LateNumber(keras.Variable if name_of_backend() == "torch" else object):  # type: ignore[misc]
    """A scalar that is computed when Keras converts it to a tensor, as a loss or as its weight.

    On PyTorch it counts as a variable: Keras converts anything else through NumPy, which waits for
    the device.
    """

    shape = ()

    def __init__(self):
        """Creates no variable, unlike the constructor of `keras.Variable`."""

    @property
    def value(self) -> Any:
        """The scalar, a tensor of `keras.config.floatx()`."""
        raise NotImplementedError

    @property
    def dtype(self) -> str:
        return keras.config.floatx()

    def __tf_tensor__(self, dtype=None, name=None):
        return ops.convert_to_tensor(self.value, dtype=None if dtype is None else dtype.name)

    def __jax_array__(self):
        return self.value


class _Precomputed(keras.losses.Loss):
    """Reduces precomputed values, as Keras does after the `call` of any loss."""

    def __init__(self, values, reduction, dtype):
        super().__init__(name="reduction", reduction=reduction, dtype=dtype)
        self.values = values

    def call(self, y_true, y_pred):
        return self.values


def reduced_as_loss(values, y_pred, sample_weight=None, reduction="none", dtype=None):
    """Returns the values of items as Keras reduces those of a loss, with the mask of a prediction.

    Where Keras stores the mask depends on the backend, and only losses receive it.
    """
    return _Precomputed(values, reduction, dtype)(y_pred, y_pred, sample_weight)


def is_unmasked(y_pred) -> bool:
    """Returns whether a prediction is known to have no mask, without a call of a loss.

    Only on PyTorch, where each operation takes time, is it always an attribute of the tensor.
    """
    return name_of_backend() == "torch" and getattr(y_pred, "_keras_mask", None) is None


def masked(values, y_pred, sample_weight=None, dtype=None):
    """Returns the values, `(batch, ...)`, times mask and weights; `None` if there are neither.

    Keras returns the same tensor then, which nothing else shows. The values have the dtype.
    """
    has_dtype = keras.backend.standardize_dtype(values.dtype) == (dtype or keras.config.floatx())
    if sample_weight is None and has_dtype and is_unmasked(y_pred):
        return None
    found = reduced_as_loss(values, y_pred, sample_weight, dtype=dtype)
    return None if found is values else found


# Variables.


class _LayerState(keras.random.SeedGenerator):
    """Holds a variable; no random number is ever drawn from it."""

    def __init__(self, variable: keras.Variable):
        self.name = variable.name
        self.backend = keras.backend
        self.state = variable

    def get_config(self) -> dict:
        raise NotImplementedError("The layer that owns the variable recreates it.")


def as_layer_state(variable: keras.Variable) -> keras.random.SeedGenerator:
    """Returns an attribute that adds a variable to a layer's `variables`, not to its `weights`.

    On JAX a layer can only change its `variables`. Its `weights` are what `get_weights` returns,
    model averaging uses and `EarlyStopping` restores: neither a step nor a switch belongs there.
    Keras treats only the state of a seed generator in this way. Keras does not save it: the layer
    does.
    """
    return _LayerState(variable)


def is_seed(variable: keras.Variable) -> bool:
    """Returns whether a variable is the state of a seed generator, which only its name shows."""
    return variable.name == "seed_generator_state"


def leave_untrained(variable: keras.Variable) -> None:
    """Excludes a variable from training, while gradient tapes of TensorFlow go on watching it."""
    variable.trainable = False


def uncast(variable: keras.Variable) -> Any:
    """Returns the value of a variable in its own dtype.

    Within a layer of mixed precision, Keras returns it in the dtype of the computation.
    """
    is_cast, variable._autocast = variable._autocast, False
    try:
        return variable.value
    finally:
        variable._autocast = is_cast


def overwrite_with_gradient(variable: keras.Variable) -> None:
    """Makes optimizers assign to a variable its gradient, or the maximum of those accumulated.

    Keras does so with scales of 8-bit floats. On JAX nothing but gradients leaves a backward pass.
    """
    variable.overwrite_with_gradient = True


def is_overwritten_with_gradient(variable: keras.Variable) -> bool:
    """Returns whether optimizers overwrite a variable, such as a scale of 8-bit floats."""
    return variable.overwrite_with_gradient


def untrack(metric: keras.metrics.Metric, variables: Iterable[keras.Variable]) -> None:
    """Removes variables from a metric, which has no other way to give one up."""
    for variable in variables:
        metric._tracker.untrack(variable)


class Scope(keras.StatelessScope):
    """A scope that passes on the values of the enclosing one, and records what is assigned.

    Keras lists some variables that a layer assigns nowhere, such as the states of a stateful RNN.
    The scope is created from pairs of a variable and its value within it.
    """

    def __init__(self, values: Iterable[tuple]):
        super().__init__(values, collect_losses=True)
        #: The variables that were assigned, by identity.
        self.assigned: dict[int, keras.Variable] = {}

    def get_current_value(self, variable):
        value = super().get_current_value(variable)
        if value is None and self.original_scope is not None:
            return self.original_scope.get_current_value(variable)
        return value

    def add_update(self, update):
        self.assigned[id(update[0])] = update[0]
        super().add_update(update)


_PROBE = keras.layers.Layer(name="probe")
