"""Checks, when the package is imported, that Keras has what the package assumes.

It costs a few milliseconds and no computation. `tests/test_keras.py` checks each assumption.
"""

from typing import Any

import keras

from keras_jointloss._core import keras as _keras
from keras_jointloss._core import keras_calls as _calls
from keras_jointloss._core.keras_models import unsupported

_NAMES = (
    *_keras.OVERRIDDEN,
    "_flatten_layers",
    "_get_call_context",
    "_maybe_reset_call_context",
    "_remat_mode",
)


class _Witness(keras.layers.Layer):
    """Records which of the overridden methods Keras calls."""

    def __init__(self, name):
        # Whatever the dtype policy, it returns its input itself.
        super().__init__(name=name, autocast=False)
        _keras.keep_from_recomputation(self)
        self.called = set()
        self.training: bool | None = None
        self.identity: Any = None
        self.built = True

    def compute_output_spec(self, inputs, training=None):
        return self.call(inputs, training)

    def call(self, inputs, training=None):
        self.training = _calls.training_of_outermost_call()
        self.identity = _calls.outermost_call()
        return inputs

    def _get_own_losses(self):
        self.called.add("_get_own_losses")
        return super()._get_own_losses()

    def _clear_losses(self):
        self.called.add("_clear_losses")
        super()._clear_losses()


def check() -> None:
    """Raises `ImportError` if Keras lacks a name, or no longer calls what the package overrides."""
    layer = keras.layers.Layer(name="probe")
    for name in _NAMES:
        if not hasattr(layer, name):
            raise unsupported(f"needs `Layer.{name}`", "does not have")
    if not hasattr(keras.Variable, "overwrite_with_gradient"):
        raise unsupported("needs `Variable.overwrite_with_gradient`", "does not have")
    if not hasattr(getattr(keras.metrics.Metric(name="probe"), "_tracker", None), "untrack"):
        raise unsupported("removes variables by `Metric._tracker`", "does not have")
    parent, child = _Witness("parent"), _Witness("child")
    parent.child = child
    # Symbolic: no backend computes anything. Within another call, Keras does not clear losses.
    with keras.StatelessScope() as scope:
        is_outside = _keras.outermost_layer() is None and scope.original_scope is None
    if is_outside:
        tensor = keras.KerasTensor((1, 1))
        parent(tensor, training=True)
        child.stateless_call([], [], None, training=True)
        for witness, name in ((parent, "__call__"), (child, "stateless_call")):
            if witness.training is not True or witness.identity is None:
                raise unsupported(f"reads local variables of `Layer.{name}`", "does not have")
        _check_source(tensor, parent)
    else:
        child.called.add("_clear_losses")
    _ = parent.losses
    for name in _keras.OVERRIDDEN:
        if name not in child.called:
            raise unsupported(f"overrides `Layer.{name}`", "does not call")
    loss: Any = object()
    getattr(child, "_losses", []).append(loss)
    if is_outside and not any(x is loss for x in parent.losses):
        raise unsupported("keeps the list `Layer._losses`", "does not read")


def _check_source(tensor, layer) -> None:
    try:
        found = _keras.source(tensor)
    except AttributeError as error:
        raise unsupported(f"uses `{error.name}` of a Functional model", "does not have") from error
    if found is None or found.operation is not layer:
        raise unsupported("follows the tensors of a Functional model", "does not record")


check()
