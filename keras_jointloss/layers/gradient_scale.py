"""The layer that scales or reverses the gradient."""

import math
import weakref
from typing import Any, Unpack

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core import keras as _keras
from keras_jointloss._core.backend import custom_gradient
from keras_jointloss._core.keras_calls import is_training, outermost_call, running_loop
from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.saved_state import SavedState, load_or_undo
from keras_jointloss._core.state import as_state
from keras_jointloss._core.types import Annealable, Config, LayerOptions, Nested, Tensor
from keras_jointloss._core.validation import invalid, validate_number
from keras_jointloss.layers._readouts import create_readouts
from keras_jointloss.terms.scale import Scale
from keras_jointloss.terms.value import validate_schedule


@keras.saving.register_keras_serializable(package="keras_jointloss")
class GradientScale(keras.layers.Layer):
    """Returns its inputs unchanged and multiplies their gradient by a number.

        y = x,    dloss/dx = scale(step) * dloss/dy

    Between a trunk and a head, the scale decides how much the terms of the head move the trunk; the
    head itself trains as without the layer. (A weight of a term scales both.)

    - Between 0 and 1, the terms hardly move the trunk. 0 stops the gradient.
    - Below 0, the gradient is reversed: the trunk learns what makes the loss of the head *larger*.
      With a head that tells two domains apart, such as drawings and photos, the features become
      those that both have in common (domain-adversarial training, DANN).
    - Above 1, the terms move the trunk more.

    A schedule moves while a `keras_jointloss.callbacks.JointLossCallback` takes part in `fit`, by
    the same steps as the weights of the terms, is logged as `<name>_scale`, and continues in a
    saved model. That of DANN, `-(2 / (1 + exp(-10 step / steps)) - 1)`, is
    `keras_jointloss.schedules.Sigmoid(1.0, -1.0, midpoint=0, width=steps / 10)`.

    The gradient is scaled in float32 at least and returned in its own dtype. In `predict` and in an
    exported model, the layer does nothing. Calls in the same step have the same scale.

    Args:
        scale: A finite number, or a `keras.optimizers.schedules.LearningRateSchedule`.
        name: Name of the layer.
        **kwargs: `trainable` and `dtype`, as in `keras.layers.Layer`.

    Input shape:
        A floating-point tensor of any shape, or any structure with at least one. Integers and
        booleans have no gradient and pass through.

    Output shape:
        The same.

    Raises:
        ValueError: If `scale` is invalid, or no input is a floating-point tensor.

    References:
        - Ganin and Lempitsky, 2015, Unsupervised Domain Adaptation by Backpropagation
        - Ganin et al., 2016, Domain-Adversarial Training of Neural Networks

    Example:

    >>> import keras
    >>> from keras_jointloss.schedules import Sigmoid
    >>> inputs = keras.Input((8,))
    >>> z = keras.layers.Dense(16, activation="relu")(inputs)
    >>> schedule = Sigmoid(1.0, -1.0, midpoint=0, width=100)
    >>> outputs = {
    ...     "label": keras.layers.Dense(3)(z),
    ...     "domain": keras.layers.Dense(1)(GradientScale(schedule, name="adversary")(z)),
    ... }
    >>> model = keras.Model(inputs, outputs)
    >>> [round(float(schedule(step)), 3) for step in (0, 100, 1000)]
    [0.0, -0.462, -1.0]
    """

    def __init__(self, scale: Annealable, name: str | None = None, **kwargs: Unpack[LayerOptions]):
        # Without autocasting the layer returns its inputs unchanged.
        super().__init__(name=name, autocast=False, **kwargs)
        self.supports_masking = True
        # A recomputed step would count twice.
        _keras.keep_from_recomputation(self)
        expected = "a finite number or a `keras.optimizers.schedules.LearningRateSchedule`"
        is_schedule = isinstance(scale, LearningRateSchedule)
        if not is_schedule:
            scale = validate_number(scale, "scale", expected=expected)
        else:
            validate_schedule(scale, "scale", -math.inf)
        #: What the user gave.
        self.scale = scale
        #: The scale at the step of training, if it follows a schedule.
        self.annealed: Scale | None = Scale(scale, self.name) if is_schedule else None
        if self.annealed is not None:
            self._scale_state = as_state(self.annealed.state)
            self._readouts = create_readouts(self.name, self.annealed)
        # The scale that the first call of a layer in a step has read.
        self._of_call: Any = weakref.WeakKeyDictionary()

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        _validate(inputs)
        if running_loop() in ("predict_step", "export"):
            return inputs
        scale = self._scale_of_step(training)
        return keras.tree.map_structure(lambda x: _scaled(x, scale), inputs)

    def _scale_of_step(self, training) -> Tensor | float:
        """Returns the scale, the same one in an outermost call, and counts the step if it trains.

        The calls of a step would otherwise have the scales of several steps.
        """
        if self.annealed is None:
            return self.scale
        call = outermost_call()
        if call is not None and call in self._of_call:
            return self._of_call[call]
        scale = self.annealed.current()
        if call is not None:
            self._of_call[call] = scale
        if is_training(training):
            self.annealed.advance()
        for readout in self._readouts:
            readout.note()
        return scale

    def compute_output_spec(self, inputs: Nested, training: bool | None = None) -> Nested:
        _validate(inputs)
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), inputs)

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> Nested:
        return mask

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self.annealed is not None:
            store["step"] = ops.convert_to_numpy(self.annealed.step)

    def load_own_variables(self, store: Any) -> None:
        load_or_undo(self, store, self._load)

    def _load(self, store):
        state = SavedState(store, f"the GradientScale {self.name!r}")
        if self.annealed is not None and "step" in state:
            self.annealed.load(state.count("step"))

    def get_config(self) -> Config:
        scale: Any = self.scale
        if self.annealed is not None:
            scale = keras.saving.serialize_keras_object(scale)
        return {**super().get_config(), "scale": scale}

    @classmethod
    def from_config(cls, config: Config) -> "GradientScale":
        return cls(**{**config, "scale": deserialized(config.get("scale"), "scale")})


def _is_float(x) -> bool:
    return keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))


def _validate(inputs) -> None:
    """Raises `ValueError` if nothing has a gradient."""
    tensors = keras.tree.flatten(inputs)
    if not any(_is_float(x) for x in tensors):
        dtypes = [keras.backend.standardize_dtype(x.dtype) for x in tensors]
        raise invalid(
            "inputs",
            "a floating-point tensor, or a structure with at least one, since integers and "
            "booleans have no gradient",
            received=f"inputs of the dtypes {dtypes}",
        )


def _scaled(x, scale):
    """Returns a tensor as it is, whose gradient is scaled."""
    if not _is_float(x):
        return x

    def compute(x, *scales):
        # As an argument, a scale that is traced is never a tensor of an enclosing function.
        number = scales[0] if scales else scale

        def gradient(upstream):
            dtype = float_dtype(upstream.dtype)
            # TensorFlow would cast a number of Python through float32.
            factor = ops.cast(number, dtype) if scales else number
            scaled = ops.cast(ops.cast(upstream, dtype) * factor, upstream.dtype)
            return (scaled, ops.zeros_like(number)) if scales else scaled

        return x, gradient

    return custom_gradient(compute, x, *([] if isinstance(scale, float) else [scale]))
