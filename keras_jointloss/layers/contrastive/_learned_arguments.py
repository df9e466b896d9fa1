"""The loss arguments that a layer trains: the temperature, and the bias of SigLIP."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_jointloss._core.saved_state import SavedState

#: The rounding of the dtype, at most that of bfloat16, may put a weight this far out of its bounds.
_ROUNDING = 0.05


class _Bounds(keras.constraints.Constraint):
    """Keeps a weight within closed bounds."""

    def __init__(self, minimum, maximum):
        self.minimum = minimum
        self.maximum = maximum

    def __call__(self, w):
        return ops.clip(w, self.minimum, self.maximum)


class LearnedArguments:
    """The weights of a layer that determine arguments of its loss.

    Args:
        loss: A `keras_jointloss.losses.ViewsLoss`, or any other loss, which has nothing to train.
        learn_temperature: As in `keras_jointloss.layers.ContrastiveTerm`.

    Raises:
        ValueError: If the loss has nothing to train, or an initial value is out of bounds.
    """

    def __init__(self, loss: Any, learn_temperature: bool):
        self._loss = loss
        self._weights: dict[str, Any] = {}
        self._to_learn: dict[str, Any] = {}
        if not learn_temperature:
            return
        if hasattr(loss, "learned_parameters"):
            self._to_learn = loss.learned_parameters()
        if not self._to_learn:
            raise ValueError(
                "Invalid value for argument `learn_temperature`. Expected False, since "
                f"{type(loss).__name__} has no temperature to train. "
                f"Received: learn_temperature={learn_temperature}"
            )
        for name, (initial, minimum, maximum) in self._to_learn.items():
            if not minimum <= initial <= maximum:
                raise ValueError(
                    f"Invalid value for argument `loss`. Expected a temperature whose {name} "
                    f"is in [{minimum:g}, {maximum:g}]. Received: {name}={initial:g}"
                )

    def add_weights(self, layer: keras.layers.Layer) -> None:
        """Adds the weights to a layer that is being built."""
        for name, parameter in self._to_learn.items():
            self._weights[name] = layer.add_weight(
                name=name,
                shape=(),
                initializer=keras.initializers.Constant(parameter.initial),
                constraint=_Bounds(parameter.minimum, parameter.maximum),
                dtype=keras.config.floatx(),
                autocast=False,
            )

    def validate(self, state: SavedState) -> None:
        """Raises `ValueError` if the saved weights are no finite numbers within their bounds."""
        for number, (name, parameter) in enumerate(self._to_learn.items()):
            if str(number) in state:  # Keras uses numbers as keys.
                bounds = parameter.minimum - _ROUNDING, parameter.maximum + _ROUNDING
                state.array(str(number), (), *bounds, name=name)

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of the loss: scalar tensors by name."""
        tensors = {name: ops.convert_to_tensor(value) for name, value in self._weights.items()}
        return self._loss.arguments_of(tensors) if tensors else {}

    def readings(self) -> dict[str, Callable[[], Any]]:
        """Returns the arguments to log: by name, functions that return the argument."""
        if not self._to_learn:
            return {}
        others = [name for name in self._to_learn if name != "log_scale"]
        return {name: partial(self._argument, name) for name in ("temperature", *others)}

    def _argument(self, name: str):
        return self.arguments()[name]
