"""The layer that computes the targets of a frozen model."""

import math
from collections.abc import Sequence
from typing import Any, Unpack

import keras
from keras import ops

from keras_jointloss._core import keras as _keras
from keras_jointloss._core.backend import trains_functionally
from keras_jointloss._core.keras_calls import is_training, predicted, running_loop
from keras_jointloss._core.keras_models import NoMethod
from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.types import Config, LayerOptions, Nested
from keras_jointloss._core.validation import invalid, validate_bool
from keras_jointloss.layers._outputs_of import network_of, validate_outputs


@keras.saving.register_keras_serializable(package="keras_jointloss")
class Teacher(keras.layers.Layer):
    """Returns what a frozen model returns, as a target for the model that trains.

    For distillation, a `keras_jointloss.layers.LossTerm` compares it with an output or a feature of
    the model::

        logits = student(inputs)
        target = Teacher(teacher)(inputs)
        logits = LossTerm(distance, weight=0.5, name="distill")(logits, target)
        model = keras.Model(inputs, logits)

    The teacher always runs in inference mode, with its own dtype policy, and gets no gradient. It
    is frozen: its `trainable` becomes False, also for layers that the student shares with it. It
    adds nothing to the weights, the optimizer, the losses and the saved files of the student.

    `fit`, `evaluate` and a direct call of the student compute the teacher. `predict` and an
    exported model do not: the layer then returns NaN (0 for integers), which no loss sees, and
    which shows if it is used for anything else.

    A student that is loaded from a file has no teacher. It predicts as before, and a direct call
    returns NaN for the teacher's outputs; training and evaluation raise an error until
    `set_model` gives it the teacher again::

        model = keras.models.load_model("student.keras")
        model.get_layer("teacher").set_model(teacher)

    With `save_teacher=True` the teacher is a part of the student: it is saved with it, and among
    its non-trainable weights. A clone of the student has the same teacher.

    Args:
        model: The teacher, a layer or model with one input, which may be a structure.
        outputs: Which outputs to return: the name of a layer of a Functional or Sequential model,
            or a list of names for a list of outputs, such as `["features", "logits"]`. `None` for
            the output of the model.
        save_teacher: Whether the file of the student holds the teacher, too.
        name: Name of the layer.
        **kwargs: `dtype`, as in `keras.layers.Layer`.

    Input shape:
        The input shape of the teacher.

    Output shape:
        The output shape of the teacher, or of the layers `outputs`.

    Raises:
        ValueError: If an argument is invalid; in training and evaluation, if there is no teacher.

    References:
        - Hinton et al., 2015, Distilling the Knowledge in a Neural Network
        - Romero et al., 2015, FitNets: Hints for Thin Deep Nets (features)

    Example:

    >>> import keras
    >>> import keras_jointloss as kj
    >>> large = keras.Sequential([keras.Input((8,)), keras.layers.Dense(32), keras.layers.Dense(3)])
    >>> inputs = keras.Input((8,))
    >>> logits = keras.layers.Dense(3, name="logits")(inputs)
    >>> term = kj.layers.LossTerm("mse", weight=0.5, name="distill")
    >>> student = keras.Model(inputs, term(logits, Teacher(large)(inputs)))
    >>> student.count_params()
    27
    """

    save_own_variables = load_own_variables = NoMethod()

    def __init__(
        self,
        model: keras.layers.Layer,
        outputs: str | Sequence[str] | None = None,
        save_teacher: bool = False,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
    ):
        # Without autocasting the teacher gets the inputs unchanged.
        super().__init__(name=name, autocast=False, **kwargs)
        self.supports_masking = True
        self.outputs = validate_outputs(outputs)
        self.save_teacher = validate_bool(save_teacher, "save_teacher")
        # Not attributes, which Keras would track and save.
        self._get_model: Any = lambda: None
        self._get_network: Any = lambda: None
        #: What the layer returns, by the shapes of its inputs, and the latest of it.
        self._specs: dict[str, Any] = {}
        self._spec: Any = None
        if not isinstance(model, _Name):
            self.set_model(model)

    def set_model(self, model: keras.layers.Layer) -> None:
        """Sets the teacher, which is then frozen.

        After training, compile the student again: it is compiled for the earlier teacher.

        Args:
            model: The teacher. Its outputs have the shapes of those of the earlier one.

        Raises:
            ValueError: If it is no layer or model, has no layers of the names `outputs`, or if the
                layer has been built with `save_teacher=True`, so that the teacher is a part of it.
        """
        if not isinstance(model, keras.layers.Layer):
            raise invalid("model", "a layer or a model", model)
        if self.save_teacher and self.built:
            raise ValueError(
                f"{self.name!r} has its teacher for good. Expected a Teacher with "
                "`save_teacher=False`. Received: save_teacher=True"
            )
        network = network_of(model, self.outputs)
        model.trainable = False
        self._get_model, self._get_network = lambda: model, lambda: network
        self._specs = {}
        if self.save_teacher:
            self.saved_model = model

    @property
    def trainable(self) -> bool:
        """False: a teacher is frozen."""
        return False

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Layer.trainable.fset(self, False)

    @property
    def variables(self) -> list:
        """The variables of the layer; on JAX, which passes them to each step, of the teacher."""
        own, model = super().variables, self._get_model()
        loop = running_loop() if trains_functionally() else "export"
        if model is None and loop in ("fit", "evaluate", "train_on_batch", "test_on_batch"):
            raise self._missing()  # A step that raises would leave the student without variables.
        if model is None or loop == "export":
            return own
        known = {id(x) for x in own}
        return [*own, *(x for x in model.variables if id(x) not in known)]

    def build(self, input_shape: Nested = None) -> None:
        model = self._get_model()
        if model is not None and not model.built:
            model.build(input_shape)
            model.trainable = False

    def call(self, inputs: Nested, training: bool | None = None) -> Nested:
        loop = running_loop()
        if loop in ("predict_step", "export"):
            return self._unknown(inputs)
        if self._get_model() is None:
            if loop == "test_step" or is_training(training):
                raise self._missing()
            return self._unknown(inputs)
        network = self._get_network()
        options = {"training": False} if _keras.takes_training(network) else {}
        outputs = predicted(network, inputs, **options)
        self._validate(outputs)
        return keras.tree.map_structure(ops.stop_gradient, outputs)

    def compute_output_spec(self, inputs: Nested, training: bool | None = None) -> Nested:
        return keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), self._spec_of(inputs)
        )

    def compute_mask(self, inputs: Nested, previous_mask: Nested = None) -> None:
        """Returns no mask: that of the prediction applies to the term."""

    def _spec_of(self, inputs):
        """Returns the shapes and dtypes of the outputs; the teacher may be missing."""
        network = self._get_network()
        key = str([(_shape_of(x), _dtype_of(x)) for x in keras.tree.flatten(inputs)])
        if network is not None and key not in self._specs:
            like = keras.tree.map_structure(
                lambda x: keras.KerasTensor(_shape_of(x), dtype=_dtype_of(x)), inputs
            )
            self._specs[key] = spec = network.compute_output_spec(like)
            self._validate(spec)
            if self._spec is None:
                self._spec = spec
        spec = self._specs.get(key, self._spec)
        if spec is None:
            raise self._missing()
        return spec

    def _unknown(self, inputs):
        """Returns outputs of the shapes of the teacher's without a computation."""
        first = keras.tree.flatten(inputs)[0]
        sizes = ops.shape(first)

        def unknown(spec):
            # An axis of any size is that of the inputs, or 1 where they have none.
            shape = [
                (sizes[axis] if axis < len(sizes) else 1) if size is None else size
                for axis, size in enumerate(spec.shape)
            ]
            value = math.nan if keras.backend.is_float_dtype(spec.dtype) else 0
            return ops.broadcast_to(ops.cast(value, spec.dtype), shape)

        return keras.tree.map_structure(unknown, self._spec_of(inputs))

    def _validate(self, outputs) -> None:
        """Raises `ValueError` if outputs do not have the shapes of those of an earlier teacher."""
        if self._spec is None:
            return
        found, expected = (
            [tuple(x.shape) for x in keras.tree.flatten(y)] for y in (outputs, self._spec)
        )
        if len(found) != len(expected) or not all(map(_fits, found, expected)):
            raise ValueError(
                f"{self.name!r} expects a teacher whose outputs have the shapes {expected}. "
                f"Received: outputs of the shapes {found}"
            )

    def _missing(self) -> ValueError:
        return ValueError(
            f"{self.name!r} has no teacher, which is not in the file of a model. Expected "
            f"`model.get_layer({self.name!r}).set_model(teacher)` before training and evaluation, "
            "or `Teacher(..., save_teacher=True)` when the model is built. Received: no teacher"
        )

    def get_config(self) -> Config:
        model = self._get_model()
        if not self.save_teacher:
            model = _Name(model)
        return {
            **super().get_config(),
            "model": model,
            "outputs": self.outputs,
            "save_teacher": self.save_teacher,
            "spec": keras.saving.serialize_keras_object(self._spec),
        }

    @classmethod
    def from_config(cls, config: Config) -> "Teacher":
        config = dict(config)
        spec = keras.saving.deserialize_keras_object(config.pop("spec", None))
        model = deserialized(config.get("model"), "model")
        if isinstance(model, _Name) and model.model is not None:  # A clone.
            model = model.model
        elif isinstance(model, str):
            model = _Name(None)
        layer = cls(**{**config, "model": model})
        layer._spec = spec
        return layer


class _Name(str):
    """The name of a teacher, which a file has in place of the teacher that a clone gets."""

    model: keras.layers.Layer | None

    def __new__(cls, model):
        name = super().__new__(cls, "" if model is None else model.name)
        name.model = model
        return name

    def __deepcopy__(self, memo):
        """Returns the object: Keras copies a config before it saves it."""
        return self


def _shape_of(x):
    """Returns the shape of a tensor, for any batch."""
    return (None, *x.shape[1:])


def _dtype_of(x):
    return keras.backend.standardize_dtype(x.dtype)


def _fits(found, expected) -> bool:
    """Returns whether a shape is one that was expected, for any batch; axes may have any size."""
    sizes = zip(found[1:], expected[1:], strict=False)
    return len(found) == len(expected) and all(None in pair or len({*pair}) == 1 for pair in sizes)
