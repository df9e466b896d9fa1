"""The private Keras names that the package uses, checked at import. No other module uses one.

- `Layer._get_own_losses`: `Model.losses` collects the losses of layers with it. A term overrides it
  to compute its loss after the forward pass.
- `Layer._clear_losses`: Keras calls it when a new outermost call begins. A term overrides it to
  drop the leftovers of the last step.
- `Layer._losses`: the list that `Layer.add_loss` fills. The replicas of TensorFlow share it, so it
  is kept while another of them runs.
- `Layer._flatten_layers`: it reaches nested layers; `Model.layers` stops at a nested model.
- `Layer._get_call_context`: it knows the outermost layer.
- `Layer._maybe_reset_call_context`: it ends the context that `_get_call_context` creates if there
  is none.
- The local variables of `Layer.__call__` and `Layer.stateless_call`: only they hold the argument
  `training` of an outer call, as each layer that is called with another one changes the context,
  and the object that Keras makes for an outermost call.
- `Operation._remat_mode`: whether a layer is recomputed in the backward pass.
- `KerasTensor._keras_history` and `Operation._inbound_nodes`: they know which call of a layer has
  computed a tensor of a Functional model, and from which tensors. `Layer.output` knows neither if
  a layer is called several times.
- `Model._maybe_symbolic_build` and the function `reduce_per_replica` beside it, on TensorFlow:
  `keras_jointloss.distribution.enable_multi_worker_fit` replaces them, and looks for them then.
- `Metric._tracker`: a metric has no other way to give up a variable.
- `CompileLoss.build` and `CompileMetrics.build`, with `_user_loss` and `_user_metrics`: they match
  losses and metrics with what the model returns, in the first step. `before_build` checks those of
  `joint_loss` first. Only a message depends on it, so nothing is raised where they have changed; a
  test fails.
"""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import keras

# Subclasses may override these; the others are called in this module only.
OVERRIDDEN = ("_get_own_losses", "_clear_losses")
_NAMES = (*OVERRIDDEN, "_flatten_layers", "_get_call_context", "_maybe_reset_call_context")
# Public but undocumented: how Keras handles gradients of 8-bit scales.
_ATTRIBUTES = {
    "Layer": (keras.layers.Layer, _NAMES),
    "Variable": (keras.Variable, ("overwrite_with_gradient",)),
}


def _code(method: Any) -> int:
    return id(inspect.unwrap(method).__code__)


#: The code of a call of a layer, and of one that is a function of its variables, as on JAX: their
#: identities, since code that PyTorch compiles has no hash.
CALLS = frozenset(map(_code, (keras.layers.Layer.__call__, keras.layers.Layer.stateless_call)))


class _Witness(keras.layers.Layer):
    """Records which of the overridden methods Keras calls."""

    def __init__(self, name):
        # Whatever the dtype policy, it returns its input itself.
        super().__init__(name=name, autocast=False)
        keep_from_recomputation(self)
        self.called = set()
        self.training: bool | None = None
        self.identity: Any = None
        self.built = True

    def compute_output_spec(self, inputs, training=None):
        return self.call(inputs, training)

    def call(self, inputs, training=None):
        frame: Any = inspect.currentframe()
        while id(frame.f_code) not in CALLS:
            frame = frame.f_back
        self.training, self.identity = training_of(frame), identity_of(frame)
        return inputs

    def _get_own_losses(self):
        self.called.add("_get_own_losses")
        return super()._get_own_losses()

    def _clear_losses(self):
        self.called.add("_clear_losses")
        super()._clear_losses()


def check() -> None:
    """Raises `ImportError` if Keras lacks a name, or no longer calls what the package overrides."""
    for owner, (value, names) in _ATTRIBUTES.items():
        for name in names:
            if not hasattr(value, name):
                raise _unsupported(f"needs `{owner}.{name}`", "does not have")
    parent, child = _Witness("parent"), _Witness("child")
    parent.child = child
    # Symbolic: no backend computes anything. Within another call, Keras does not clear losses.
    with keras.StatelessScope() as scope:
        is_outside = outermost_layer() is None and scope.original_scope is None
    if is_outside:
        tensor = keras.KerasTensor((1, 1))
        parent(tensor, training=True)
        child.stateless_call([], [], None, training=True)
        for witness, name in ((parent, "__call__"), (child, "stateless_call")):
            if witness.training is not True or witness.identity is None:
                raise _unsupported(f"reads local variables of `Layer.{name}`", "does not have")
        _check_source(tensor, parent)
    else:
        child.called.add("_clear_losses")
    if not hasattr(_PROBE, "_remat_mode"):
        raise _unsupported("sets `Layer._remat_mode`", "does not have")
    if not hasattr(getattr(keras.metrics.Metric(), "_tracker", None), "untrack"):
        raise _unsupported("removes variables by `Metric._tracker`", "does not have")
    _ = parent.losses
    for name in OVERRIDDEN:
        if name not in child.called:
            raise _unsupported(f"overrides `Layer.{name}`", "does not call")
    loss: Any = object()
    getattr(child, "_losses", []).append(loss)
    if is_outside and not any(x is loss for x in parent.losses):
        raise _unsupported("keeps the list `Layer._losses`", "does not read")


def _check_source(tensor, layer) -> None:
    try:
        found = source(tensor)
    except AttributeError as error:
        raise _unsupported(f"uses `{error.name}` of a Functional model", "does not have") from error
    if found is None or found.operation is not layer:
        raise _unsupported("follows the tensors of a Functional model", "does not record")


def _unsupported(needs: str, lacks: str) -> ImportError:
    version = sys.modules["keras_jointloss"].__version__
    return ImportError(
        f"keras_jointloss {version} {needs}, which Keras {keras.__version__} {lacks}: install "
        "Keras 3.12 or another version that this release supports, or a newer keras_jointloss."
    )


def flatten_layers(layer: keras.layers.Layer, include_self: bool = True) -> Iterator:
    """Returns the layers within a layer, at any depth.

    Args:
        layer: A layer or model.
        include_self: Whether the layer itself comes first.
    """
    return iter(layer._flatten_layers(include_self=include_self))


@contextlib.contextmanager
def kept_losses(layer: keras.layers.Layer) -> Iterator[None]:
    """Puts the losses that layers have added back at the end, also after an error.

    Args:
        layer: A layer or model; the layers within it are those whose losses are kept.
    """
    kept = [(x, list(x._losses)) for x in flatten_layers(layer)]
    try:
        yield
    finally:
        for x, losses in kept:
            x._losses.clear()
            x._losses.extend(losses)


def outermost_layer() -> keras.layers.Layer | None:
    """Returns the layer or model whose call encloses all others; `None` outside of any call."""
    context = _PROBE._get_call_context()
    if context.entry_layer is not _PROBE:
        return context.entry_layer
    # There was no context, so Keras created one.
    _PROBE._maybe_reset_call_context()
    return None


def takes_training(layer: keras.layers.Layer) -> bool:
    """Returns whether the `call` of a layer has an argument `training`."""
    return "training" in inspect.signature(layer.call).parameters


def training_of(frame: Any) -> bool | None:
    """Returns the argument `training` of a running call of a layer.

    As in Keras, `None` means inference. If the `call` of the layer takes no `training`, and it was
    not given, returns `None`.

    Args:
        frame: A frame whose code is one of `CALLS`.
    """
    given, others = _arguments_of(frame)
    arguments = {**others, **given}
    return bool(arguments["training"]) if "training" in arguments else None


def given_training(frame: Any) -> Any:
    """Returns the argument `training` that the caller of a layer gave, or `None`.

    Args:
        frame: A frame whose code is one of `CALLS`.
    """
    given, _ = _arguments_of(frame)
    return given.get("training")


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


def identity_of(frame: Any) -> Any:
    """Returns an object that lives exactly as long as a running call of a layer.

    It is one object for an outermost call and all calls of layers within it.

    Args:
        frame: A frame whose code is one of `CALLS`.
    """
    values = frame.f_locals
    # A functional call treats each layer within it as the outermost, but has a scope.
    return values.get("call_context") or values.get("scope")


def required_arguments(layer: keras.layers.Layer) -> list[str]:
    """Returns the arguments that a layer needs in every call, besides those that Keras adds."""
    parameters = inspect.signature(layer.call).parameters.values()
    is_variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [x for x in parameters if x.default is x.empty and x.kind not in is_variadic]
    return [x.name for x in needed if x.name not in ("training", "mask")]


def own_losses(layer: keras.layers.Layer) -> list:
    """Returns the losses that a layer itself has added in the running step."""
    return layer._get_own_losses()


def layer_that_adds_losses(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns the first layer within a layer that has added a loss in the running step."""
    return next((x for x in flatten_layers(layer) if own_losses(x)), layer)


def keep_from_recomputation(layer: keras.layers.Layer) -> None:
    """Excludes a layer from `keras.RematScope`, but not the layers within it."""
    layer._remat_mode = None


def untrack(metric: keras.metrics.Metric, variables: Iterable[keras.Variable]) -> None:
    """Removes variables from a metric."""
    for variable in variables:
        metric._tracker.untrack(variable)


class Source(NamedTuple):
    """The call of a layer or operation that has computed a tensor of a Functional model.

    Attributes:
        operation: The layer or operation.
        call: The number of the call.
        inputs: The tensors that the call received.
        position: The number of the tensor among those that it returned.
        size: How many it returned.
    """

    operation: Any
    call: int
    inputs: list
    position: int
    size: int


def source(tensor: Any) -> Source | None:
    """Returns the call that has computed a symbolic tensor; `None` if no call has."""
    operation, call, index = tensor._keras_history
    if operation is None:
        return None
    node = operation._inbound_nodes[call]
    return Source(operation, call, list(node.input_tensors), index, len(node.outputs))


def replace_in_trainer(fit: Callable, build: Callable, reduce: Callable) -> None:
    """Replaces three functions with which Keras trains on TensorFlow, in all models.

    Each replacement is called with the original, and its arguments.

    Args:
        fit: Replaces the method `fit`.
        build: Replaces the method that builds a model before its first batch.
        reduce: Replaces the function that reduces the logs of the replicas.

    Raises:
        ImportError: If Keras lacks one of them.
    """
    build_name, reduce_name = "_maybe_symbolic_build", "reduce_per_replica"
    trainer = next((x for x in keras.Model.__mro__ if build_name in vars(x)), None)
    if trainer is None:
        raise _unsupported(f"replaces `Model.{build_name}`", "does not have")
    module = sys.modules[trainer.__module__]
    if not hasattr(module, reduce_name):
        raise _unsupported(f"replaces `{reduce_name}`", "does not have")
    for owner, name, new in (
        (trainer, "fit", fit),
        (trainer, build_name, build),
        (module, reduce_name, reduce),
    ):
        setattr(owner, name, _replaced(getattr(owner, name), new))


def before_build(check: Callable[[Any, Any, Any], None]) -> None:
    """Calls a function before Keras matches losses or metrics with the outputs of a model.

    Keras does so once after each `compile`, in the first step.

    Args:
        check: Its arguments are `loss` or `metrics` as given to `compile`, what the model returns,
            and the names of its outputs, or `None`.
    """
    trainer = next(x for x in keras.Model.__mro__ if "compute_metrics" in vars(x))
    module = sys.modules[trainer.__module__]
    for name, given in (("CompileLoss", "_user_loss"), ("CompileMetrics", "_user_metrics")):
        owner: Any = getattr(module, name, None)
        if hasattr(owner, "build"):
            owner.build = _checked(owner.build, check, given)


def _checked(build, check, given):
    @functools.wraps(build)
    def checked_build(self, y_true, y_pred):
        check(getattr(self, given, None), y_pred, getattr(self, "output_names", None))
        return build(self, y_true, y_pred)

    return checked_build


def _replaced(original, new):
    @functools.wraps(original)
    def call(*args, **kwargs):
        return new(original, *args, **kwargs)

    return call


_PROBE = keras.layers.Layer(name="probe")
check()
