"""The layer that turns two embeddings inside a model into a term of its loss."""

from typing import Any

import keras
from keras import ops

from keras_jointloss import losses
from keras_jointloss.loss_weight import LayerWeight, Weight, deserialize_weight


class _Readout(keras.metrics.Metric):
    """Shows a number that a layer holds among the metrics of the model."""

    def __init__(self, name, read, reset):
        super().__init__(name=name)
        self._read = read
        self._reset = reset

    def update_state(self, *args, **kwargs):
        """Does nothing: the layer keeps the number up to date."""

    def result(self):
        return self._read()

    def reset_state(self):
        self._reset()


class _Bounds(keras.constraints.Constraint):
    """Keeps a weight within closed bounds."""

    def __init__(self, minimum, maximum):
        self.minimum = minimum
        self.maximum = maximum

    def __call__(self, w):
        return ops.clip(w, self.minimum, self.maximum)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ContrastiveTerm(keras.layers.Layer):
    """Adds a weighted loss between two embeddings to the loss of the model.

    The layer returns the embeddings untouched; use what it returns further on in the model,
    or a Functional model will not contain it. The loss it adds is

        weight(step) * mean_i loss_i(a, b, labels)

    computed in float32 at least, whatever the dtype policy. Integer labels stay integers. The
    logs show the mean of the raw loss as `<name>_loss`, the weight as `<name>_weight` and a learned
    temperature as `<name>_temperature`. On JAX these come from the
    `keras_jointloss.callbacks.JointLossCallback`, at the end of an epoch.

    A layer is one term: call it once in a training step, and give every other pair of embeddings
    a layer of its own.

    Args:
        loss: A loss of `keras_jointloss.losses` or its class name. Any other `keras.losses.Loss`
            (or class name in `keras.losses`) compares the first embedding, as the prediction, with
            the second. Its reduction must be a mean.
        weight: A number, 0 or more, or a `keras.optimizers.schedules.LearningRateSchedule`,
            which moves the weight while a `keras_jointloss.callbacks.JointLossCallback` takes part
            in `fit`.
        learn_temperature: Whether to train the temperature of the loss, starting from the one it
            has. InfoNCE trains the logarithm of the inverse temperature, kept in [0, ln 100].
        name: Name of the layer and of the term.
        **kwargs: `trainable` and `dtype`, as in `keras.layers.Layer`.

    Input shape:
        `(a, b)` or, for a loss with labels, `(a, b, labels)`: `(batch, dim)` twice and
        `(batch,)` or `(batch, 1)`.

    Output shape:
        `(a, b)`, as they came.

    Raises:
        ValueError: If an argument is invalid, the embeddings differ in batch or dim, or labels are
            missing, not wanted or of another shape.

    Example:

    >>> import keras
    >>> image, text = keras.Input((8,)), keras.Input((5,))
    >>> a, b = keras.layers.Dense(4)(image), keras.layers.Dense(4)(text)
    >>> a, b = ContrastiveTerm("InfoNCE", weight=0.5, name="image_text")((a, b))
    >>> model = keras.Model([image, text], [a, b])
    >>> float(model.get_layer("image_text").weight)
    0.5
    """

    def __init__(
        self,
        loss: Any,
        weight: Weight = 1.0,
        learn_temperature: bool = False,
        name: str | None = None,
        **kwargs,
    ):
        # Without autocasting the embeddings pass through, and labels arrive, as they are.
        super().__init__(name=name, autocast=False, **kwargs)
        self.supports_masking = True
        self.loss = losses.get(loss)
        if self.loss.reduction in ("sum", "none", None):
            raise ValueError(
                "Invalid value for argument `loss`. Expected a loss whose reduction is a mean. "
                f"Received: loss={loss!r} with reduction={self.loss.reduction!r}"
            )
        self.learn_temperature = learn_temperature
        if learn_temperature and not self._parameters_to_learn():
            raise ValueError(
                "Invalid value for argument `learn_temperature`. Expected False, since "
                f"{type(self.loss).__name__} has no temperature to train. "
                f"Received: learn_temperature={learn_temperature}"
            )
        for parameter, (initial, minimum, maximum) in self._parameters_to_learn().items():
            if learn_temperature and not minimum <= initial <= maximum:
                raise ValueError(
                    f"Invalid value for argument `loss`. Expected a temperature whose {parameter} "
                    f"is in [{minimum:g}, {maximum:g}]. Received: {parameter}={initial:g}"
                )
        readings = {"temperature": self.temperature_tensor} if learn_temperature else {}
        self.weight = LayerWeight(weight, self.name, readings)
        self._weight_state = self.weight.state
        self._learned: dict[str, Any] = {}
        # On JAX a metric cannot read what a layer holds; there the callback fills the logs.
        if keras.backend.backend() != "jax":
            self._readouts = [
                _Readout(f"{self.name}_{reading}", read, self.weight.reset)
                for reading, read in self.weight.tensors.items()
            ]

    def _parameters_to_learn(self):
        is_views_loss = isinstance(self.loss, losses.ViewsLoss)
        return self.loss.learned_parameters() if is_views_loss else {}

    def temperature_tensor(self):
        """Returns the temperature now as a scalar tensor."""
        return ops.convert_to_tensor(self.loss.temperature(**self._learned))

    def build(self, input_shape):
        self._validate_shapes(input_shape)
        if self.learn_temperature:
            for name, parameter in self._parameters_to_learn().items():
                self._learned[name] = self.add_weight(
                    name=name,
                    shape=(),
                    initializer=keras.initializers.Constant(parameter.initial),
                    constraint=_Bounds(parameter.minimum, parameter.maximum),
                    dtype=keras.config.floatx(),
                )

    def _validate_shapes(self, shapes):
        if not isinstance(shapes, list | tuple) or len(shapes) not in (2, 3):
            raise ValueError(
                f"{self.name!r} expects (a, b) or (a, b, labels). Received: input_shape={shapes}"
            )
        a, b = tuple(shapes[0]), tuple(shapes[1])
        batch_differs = None not in (a[0], b[0]) and a[0] != b[0]
        if len(a) != 2 or len(b) != 2 or batch_differs or a[1] != b[1]:
            raise ValueError(
                f"{self.name!r} expects two embeddings of the same shape (batch, dim). "
                f"Received: shapes {a} and {b}"
            )
        has_labels = getattr(self.loss, "has_labels", False)
        if (len(shapes) == 3) != has_labels:
            raise ValueError(
                f"{self.name!r} expects {'(a, b, labels)' if has_labels else '(a, b)'}, since "
                f"{type(self.loss).__name__} has {'' if has_labels else 'no '}labels. "
                f"Received: {len(shapes)} inputs"
            )
        if has_labels:
            self.loss.validate_labels(tuple(shapes[2]), a[0] or b[0])

    def call(self, inputs, training=None):
        a, b = inputs[0], inputs[1]
        loss = ops.mean(self._values(a, b, *inputs[2:]))
        self.add_loss(self.weight.tensor() * loss)
        self.weight.record(loss, ops.shape(a)[0])
        # `None` in a model whose `call` takes no `training`; evaluation stops annealing anyway.
        if training is not False:
            self.weight.advance()
        return a, b

    def _values(self, a, b, labels=None):
        """Returns the loss of each item, `(batch,)`."""
        dtype = keras.backend.result_type(a.dtype, b.dtype, "float32")
        a, b = ops.cast(a, dtype), ops.cast(b, dtype)
        if not isinstance(self.loss, losses.ViewsLoss):
            return self.loss.call(b, a)
        if labels is not None:
            labels = ops.reshape(labels, (-1,))
        parameters = {name: ops.convert_to_tensor(value) for name, value in self._learned.items()}
        return self.loss.values(ops.stack([a, b], axis=1), labels, **parameters)

    def compute_output_spec(self, inputs, training=None):
        return tuple(keras.KerasTensor(x.shape, dtype=x.dtype) for x in inputs[:2])

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else tuple(mask[:2])

    def load_own_variables(self, store):
        super().load_own_variables(store)
        # A file that was written in the midst of an epoch says that annealing is on.
        self.weight.reset()

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "weight": keras.saving.serialize_keras_object(self.weight.initial),
            "learn_temperature": self.learn_temperature,
        }

    @classmethod
    def from_config(cls, config: dict) -> "ContrastiveTerm":
        return cls(**{**config, "weight": deserialize_weight(config["weight"])})
