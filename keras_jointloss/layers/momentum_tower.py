"""The layer that is the moving average of a tower."""

import weakref
from typing import Any, Unpack

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core import keras as _keras
from keras_jointloss._core.batch import validate_batch_axis
from keras_jointloss._core.keras_calls import is_training, outermost_call, running_model
from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.saved_state import SavedState, load_or_undo
from keras_jointloss._core.types import Config, LayerOptions, Nested
from keras_jointloss._core.validation import invalid, validate_number


@keras.saving.register_keras_serializable(package="keras_jointloss")
class MomentumTower(keras.layers.Layer):
    """A copy of a tower whose parameters are a moving average of those of the tower.

    In each training step, before the copy encodes its inputs,

        theta_average = momentum * theta_average + (1 - momentum) * theta

    `theta` are the trainable parameters of the tower, which the model calls as well. The copy gets
    no gradient. In the first training step it has the parameters of the tower, also if they were
    loaded after the model was built. What else the tower holds, such as the statistics of batch
    normalization, is the copy's own from then on: it encodes in training mode, too, unless it is
    called with `training=False`.

    Embeddings of a slow tower stay comparable for many steps, so that a
    `keras_jointloss.layers.ContrastiveTerm` with a memory contrasts many of them (MoCo), or they
    are targets without negatives (BYOL), where the loss has no use for a gradient of its target::

        z = tower(first_view)
        target = MomentumTower(tower, momentum=0.99)(second_view)
        views = ContrastiveTerm(InfoNCE(0.07, symmetric=False), memory_size=4096)((z, target))

    The average moves in each batch of `fit`, once, however often the layer is called, and not in
    `evaluate` and `predict`. It is saved with the model. In a clone of the model
    (`keras.models.clone_model`), tower and average are no longer connected, so that its training is
    refused: build the model again in place of cloning it.

    Args:
        tower: A layer or model with one input, which may be a structure. The model that trains must
            call it, too.
        momentum: A number >= 0 and <= 1, or a `LearningRateSchedule` of the training steps of this
            layer. BYOL's is `CosineDecay(0.996, steps, alpha=1 / 0.996)`.
        name: Name of the layer.
        **kwargs: `dtype`, as in `keras.layers.Layer`.

    Input shape:
        The input shape of the tower.

    Output shape:
        The output shape of the tower.

    Raises:
        ValueError: If an argument is invalid; in training, if the model does not call the tower.

    References:
        - He et al., 2020, Momentum Contrast for Unsupervised Visual Representation Learning (0.999)
        - Grill et al., 2020, Bootstrap Your Own Latent

    Example:

    >>> import keras
    >>> import keras_jointloss as kj
    >>> first, second = keras.Input((8,)), keras.Input((8,))
    >>> tower = keras.Sequential([keras.layers.Dense(16), keras.layers.Dense(4)])
    >>> z, target = tower(first), MomentumTower(tower, momentum=0.99)(second)
    >>> views = kj.layers.ContrastiveTerm("InfoNCE", memory_size=64)((z, target))
    >>> model = keras.Model([first, second], views)
    >>> model.compile("adam")
    """

    def __init__(
        self,
        tower: keras.layers.Layer,
        momentum: float | LearningRateSchedule = 0.99,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
    ):
        # Without autocasting the copy gets its inputs and parameters unchanged.
        super().__init__(name=name, autocast=False, **kwargs)
        if not isinstance(tower, keras.layers.Layer):
            raise invalid("tower", "a layer or a model", tower)
        self.momentum = _validate_momentum(momentum)
        # PyTorch finds variables by their paths, which must not be those of the tower.
        with keras.name_scope(f"{self.name}_average"):
            self.average = _copy(tower)
        # Not an attribute: the parameters of the tower are no weights of this layer, and saved with
        # the model that calls it.
        self._get_tower = lambda: tower
        #: The running call and the model, which are not kept alive.
        self._latest_call: Any = _gone
        self._valid_model: Any = _gone
        self.supports_masking = tower.supports_masking

    @property
    def trainable(self) -> bool:
        """Whether the copy encodes in training mode; its parameters are never trained."""
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, value)
        self._leave_untrained()

    def build(self, input_shape: Nested = None) -> None:
        validate_batch_axis(input_shape, self.name)
        if not self._get_tower().built:
            self._get_tower().build(input_shape)
        if not self.average.built:
            with keras.name_scope("average"):
                self.average.build(input_shape)
        self.average.set_weights(self._get_tower().get_weights())
        self._leave_untrained()
        self.step = self.add_weight(
            name="step", shape=(), initializer="zeros", dtype="int32", trainable=False
        )

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        if is_training(training):
            self._follow()
        options = {"training": training} if _keras.takes_training(self.average) else {}
        outputs = self.average(inputs, **options)
        return keras.tree.map_structure(ops.stop_gradient, outputs)

    def compute_output_spec(self, inputs: Nested, training: bool | None = None) -> Nested:
        spec = self.average.compute_output_spec(inputs)
        return keras.tree.map_structure(lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), spec)

    def load_own_variables(self, store: Any) -> None:
        load_or_undo(self, store, self._load)

    def _load(self, store):
        state = SavedState(store, f"the MomentumTower {self.name!r}")
        if "0" in state:  # Keras uses numbers as keys.
            state.count("0", name="step")
        super().load_own_variables(store)

    def get_config(self) -> Config:
        # The tower itself: Keras then saves one that is also in the model once.
        return {**super().get_config(), "tower": self._get_tower(), "momentum": self.momentum}

    @classmethod
    def from_config(cls, config: Config) -> "MomentumTower":
        # A clone receives the tower itself.
        return cls(**{**config, "tower": deserialized(config.get("tower"), "tower")})

    def _follow(self) -> None:
        """Moves the average, once in each outermost call."""
        call = outermost_call()
        if call is not None and self._latest_call() is call:
            return
        self._latest_call = _gone if call is None else weakref.ref(call)
        self._validate_model()
        step = ops.convert_to_tensor(self.step)
        momentum = self.momentum(step) if callable(self.momentum) else self.momentum
        is_first = ops.equal(step, 0)
        for average, variable in zip(self.average.weights, self._get_tower().weights, strict=True):
            slow, fast = _keras.uncast(average), ops.stop_gradient(_keras.uncast(variable))
            if variable.trainable:
                dtype = keras.backend.result_type(slow.dtype, "float32")
                share = 1 - ops.cast(momentum, dtype)
                difference = ops.cast(fast, dtype) - ops.cast(slow, dtype)
                moved = ops.cast(ops.cast(slow, dtype) + share * difference, slow.dtype)
            else:
                moved = slow
            average.assign(ops.where(is_first, fast, moved))
        self.step.assign(step + 1)

    def _validate_model(self) -> None:
        model, tower = running_model(), self._get_tower()
        if model is None or self._valid_model() is model:
            return
        if any(x is tower for x in _keras.flatten_layers(model)):
            self._valid_model = weakref.ref(model)
            return
        raise ValueError(
            f"Expected a model that calls the tower of its MomentumTower {self.name!r}. Received: "
            f"{model.name!r}, which does not call {tower.name!r}. A clone of a model has a "
            "copy of the tower: build the model again"
        )

    def _leave_untrained(self) -> None:
        for variable in self.average.weights if hasattr(self, "average") else ():
            _keras.leave_untrained(variable)


def _gone() -> None:
    """Returns `None`, as a weak reference to nothing."""


def _copy(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Returns a layer with variables of its own, also while Keras loads a file.

    It then takes objects with the same number for one object.
    """

    def without_numbers(config):
        if isinstance(config, dict):
            named = {key: value for key, value in config.items() if key != "shared_object_id"}
            return {key: without_numbers(value) for key, value in named.items()}
        return [without_numbers(x) for x in config] if isinstance(config, list) else config

    config = keras.saving.serialize_keras_object(layer)
    return keras.saving.deserialize_keras_object(without_numbers(config))


def _validate_momentum(value: Any) -> Any:
    value = deserialized(value, "momentum")
    if isinstance(value, LearningRateSchedule):
        return value
    expected = "a number >= 0 and <= 1, or a LearningRateSchedule"
    number = validate_number(value, "momentum", 0, expected=expected)
    if number > 1:
        raise invalid("momentum", expected, value)
    return number
