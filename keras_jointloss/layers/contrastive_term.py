"""The layer that turns two embeddings inside a model into a term of its loss."""

import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_jointloss import losses
from keras_jointloss._labels import as_labels, label_tensor
from keras_jointloss._loops import enclosing_scope, running_loop
from keras_jointloss._math import divide_or_0, float_dtype
from keras_jointloss._state import as_state
from keras_jointloss._validation import validate_bool, validate_count
from keras_jointloss.layers._memory import EmbeddingMemory
from keras_jointloss.metrics import ViewsMetric
from keras_jointloss.terms.given_weight import Weight, deserialize_weight
from keras_jointloss.terms.layer_weight import LayerWeight


class _Readout(keras.metrics.Metric):
    """Shows a number that a layer holds among the metrics of the model."""

    def __init__(self, name, read, weight):
        super().__init__(name=name)
        self._read = read
        self._weight = weight

    def update_state(self, *args, **kwargs):
        """Does nothing: the layer keeps the number up to date."""

    def result(self):
        self._weight.warn_if_it_stands_still()
        return self._read()

    def reset_state(self):
        self._weight.reset()


class _Bounds(keras.constraints.Constraint):
    """Keeps a weight within closed bounds."""

    def __init__(self, minimum, maximum):
        self.minimum = minimum
        self.maximum = maximum

    def __call__(self, w):
        return ops.clip(w, self.minimum, self.maximum)


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ContrastiveTerm(keras.layers.Layer):
    """Adds a weighted loss between embeddings of the same items to the loss of the model.

    The layer returns the embeddings untouched; use what it returns further on in the model,
    or a Functional model will not contain it. The loss it adds is

        weight(step) * mean_i loss_i(a, b, labels)

    computed in float32 at least, whatever the dtype policy. Integer labels stay integers. The
    logs show the mean of the raw loss as `<name>_loss`, the weight as `<name>_weight`, learned
    parameters as `<name>_temperature` and `<name>_bias`, and metrics as `<name>_<metric>`. On JAX
    these come from the `keras_jointloss.callbacks.JointLossCallback`, at the end of an epoch.

    The loss is computed where the losses of the model are asked for, as in `fit` and `evaluate`.
    `predict` and an exported model compute nothing.

    A layer is one term. Called several times in a step, as in a siamese model, it adds a loss for
    each call, and the term is their sum; give pairs that are to be weighted or logged by themselves
    a layer of their own.

    Args:
        loss: A loss of `keras_jointloss.losses` or its class name. Any other `keras.losses.Loss`
            (or class name in `keras.losses`) compares the first embedding, as the prediction, with
            the second. Its reduction must be a mean.
        weight: A number, 0 or more, or a `keras.optimizers.schedules.LearningRateSchedule`,
            which moves the weight while a `keras_jointloss.callbacks.JointLossCallback` takes part
            in `fit`.
        learn_temperature: Whether to train the temperature of the loss, starting from the one it
            has: its inverse's logarithm, kept in [0, ln 100] as in CLIP. For SigLIP the bias is
            trained, too, both without bounds. An optimizer with weight decay, as AdamW, decays
            them like any weight unless told otherwise before it is built:
            `optimizer.exclude_from_weight_decay(var_names=["log_scale", "bias"])`.
        memory_size: How many items of earlier training steps to remember as further candidates,
            into which no gradient flows; 0 for none. The oldest go first. Only for losses whose
            `has_memory` is true. With several replicas each remembers its own items; a file keeps
            those of the first.
        metrics: Metrics of `keras_jointloss.metrics` on the embeddings.
        name: Name of the layer and of the term.
        **kwargs: `trainable` and `dtype`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: `(a, b)`, or more embeddings for a loss on more views; then the labels, if the loss
            has any.
        sample_weight: `(batch,)`, how much each item weighs, or `None`. An item of weight 0, or
            one that a Keras mask of shape `(batch,)` leaves out, is no part of the batch: neither
            an anchor nor a positive nor a negative.

    Input shape:
        `(batch, dim)` for each embedding. Labels: `(batch,)`, `(batch, 1)` or `(batch, classes)`,
        as in the loss.

    Output shape:
        The embeddings, as they came.

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
        memory_size: int = 0,
        metrics: Sequence[Any] = (),
        name: str | None = None,
        **kwargs,
    ):
        # Without autocasting the embeddings pass through, and labels arrive, as they are.
        super().__init__(name=name, autocast=False, **kwargs)
        self.supports_masking = True
        self.loss = losses.get(loss)
        self.learn_temperature = validate_bool(learn_temperature, "learn_temperature")
        self.memory_size = validate_count(memory_size, "memory_size", minimum=0)
        self._validate_loss(loss)
        self._learned: dict[str, Any] = {}
        self._memory: EmbeddingMemory | None = None
        # A function: Keras would take metrics, which have no state here, for its own.
        self._get_metrics = partial(tuple, _validated_metrics(metrics, self._has_labels))
        self.weight = LayerWeight(weight, self.name, self._readings(), self._means())
        self._weight_state = as_state(self.weight.state)
        # For each call in this step, what is to be computed when the losses are asked for.
        self._deferred: list[Any] = []
        self._get_scope: Callable[[], Any] = lambda: None
        # On JAX a metric cannot read what a layer holds: there it is only reset with the others,
        # and the callback fills the logs.
        readings: dict[str, Any] = self.weight.tensors
        if keras.backend.backend() == "jax":
            readings = {"readout": dict}
        self._readouts = [
            _Readout(f"{self.name}_{reading}", read, self.weight)
            for reading, read in readings.items()
        ]

    def _validate_loss(self, given):
        if self.loss.reduction in ("sum", "none", None):
            raise ValueError(
                "Invalid value for argument `loss`. Expected a loss whose reduction is a mean. "
                f"Received: loss={given!r} with reduction={self.loss.reduction!r}"
            )
        if self.learn_temperature and not self._parameters_to_learn():
            raise ValueError(
                "Invalid value for argument `learn_temperature`. Expected False, since "
                f"{type(self.loss).__name__} has no temperature to train. "
                f"Received: learn_temperature={self.learn_temperature}"
            )
        for parameter, (initial, minimum, maximum) in self._parameters_to_learn().items():
            if self.learn_temperature and not minimum <= initial <= maximum:
                raise ValueError(
                    f"Invalid value for argument `loss`. Expected a temperature whose {parameter} "
                    f"is in [{minimum:g}, {maximum:g}]. Received: {parameter}={initial:g}"
                )
        if self.memory_size and not getattr(self.loss, "has_memory", False):
            raise ValueError(
                "Invalid value for argument `memory_size`. Expected 0, since "
                f"{type(self.loss).__name__} has no use for a memory. "
                f"Received: memory_size={self.memory_size}"
            )

    @property
    def _is_views_loss(self) -> bool:
        return isinstance(self.loss, losses.ViewsLoss)

    @property
    def _has_labels(self) -> bool:
        return self._is_views_loss and self.loss.has_labels

    def _parameters_to_learn(self):
        return self.loss.learned_parameters() if self._is_views_loss else {}

    def _readings(self):
        """Returns the learned arguments of the loss: by name, functions that return them."""
        if not self.learn_temperature:
            return {}
        others = [name for name in self._parameters_to_learn() if name != "log_scale"]
        return {name: partial(self._learned_argument, name) for name in ("temperature", *others)}

    def _learned_arguments(self):
        tensors = {name: ops.convert_to_tensor(value) for name, value in self._learned.items()}
        return self.loss.arguments_of(tensors) if tensors else {}

    def _learned_argument(self, name):
        return self._learned_arguments()[name]

    def _means(self):
        """Returns what else is logged as a mean: by name, what makes of the mean what is logged."""
        parts = self.loss.part_names if self._is_views_loss else ()
        return {
            **{part: lambda mean: mean for part in parts},
            **{metric.name: metric.finish for metric in self._get_metrics()},
        }

    def _split(self, inputs):
        """Returns the embeddings, or their shapes, and the labels, or `None`."""
        inputs = tuple(inputs)
        return (inputs[:-1], inputs[-1]) if self._has_labels else (inputs, None)

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
        if self.memory_size:
            embeddings, labels = self._split(input_shape)
            self._memory = EmbeddingMemory(
                self.memory_size, len(embeddings), embeddings[0][-1], labels, self.name
            )
            self._memory_state = as_state(self._memory.state)

    def _validate_shapes(self, shapes):
        most = self.loss.max_views if self._is_views_loss else 2
        count = len(shapes) - self._has_labels if isinstance(shapes, list | tuple) else 0
        if not 2 <= count <= most:
            views = "(a, b" if most == 2 else "(a, b, ..."
            name = type(self.loss).__name__
            has = "has labels" if self._has_labels else "has no labels"
            raise ValueError(
                f"{self.name!r} expects {views}{', labels' if self._has_labels else ''}), since "
                f"{name} {has}. Received: input_shape={shapes}"
            )
        embeddings, labels = self._split(shapes)
        sizes = {shape[0] for shape in embeddings} - {None}
        if (
            any(len(shape) != 2 for shape in embeddings)
            or len(sizes) > 1
            or len({shape[1] for shape in embeddings}) > 1
        ):
            raise ValueError(
                f"{self.name!r} expects embeddings of the same shape (batch, dim)"
                f"{'' if self._has_labels else ' and no labels'}. "
                f"Received: shapes {', '.join(str(tuple(shape)) for shape in embeddings)}"
            )
        if labels is not None:
            self.loss.validate_labels(tuple(labels), next(iter(sizes), None))

    def call(self, inputs, sample_weight=None, mask=None, training=None):
        embeddings, labels = self._split(inputs)
        if running_loop() != "predict_step":
            scope = enclosing_scope()
            self._get_scope = (lambda: None) if scope is None else weakref.ref(scope)
            self._deferred.append(
                partial(self._compute_loss, embeddings, labels, sample_weight, mask, training)
            )
        return embeddings

    def _get_own_losses(self):
        # Keras asks for the losses after the call, but not to predict or to export.
        calls, self._deferred = self._deferred, []
        if calls:
            self._add_losses([compute() for compute in calls])
        return super()._get_own_losses()

    def _clear_losses(self):
        scope = enclosing_scope()
        if scope is None or self._get_scope() is not scope:
            self._deferred = []
        super()._clear_losses()

    def _add_losses(self, calls):
        """Adds the weighted losses of the calls of a step, and counts the step."""
        losses, items, is_training = zip(*calls, strict=True)
        weight = self.weight.tensor()
        for loss in losses:
            # Keras adds up losses of one dtype only.
            self.add_loss(ops.cast(ops.cast(weight, loss.dtype) * loss, keras.config.floatx()))
        self.weight.record(sum(losses), items[0])
        if any(is_training):
            self.weight.advance()

    def _compute_loss(self, embeddings, labels, sample_weight, mask, training):
        """Returns the loss of a call, over how many items it is, and whether it trains."""
        dtype = float_dtype(*(x.dtype for x in embeddings))
        views = ops.stack([ops.cast(x, dtype) for x in embeddings], axis=1)
        labels = None if labels is None else as_labels(label_tensor(labels))
        valid = mask = self._item_mask(mask)
        items = ops.cast(ops.shape(views)[0], dtype)
        if mask is not None:
            items = ops.sum(ops.cast(mask, dtype))
        if sample_weight is None:
            values, total = self._values(views, labels, valid), items
        else:
            weights = ops.reshape(ops.cast(sample_weight, dtype), (-1,))
            weights = weights if mask is None else ops.where(mask, weights, 0)
            valid = ops.not_equal(weights, 0)
            values = weights * self._values(views, labels, valid)
            is_mean = self.loss.reduction == "mean_with_sample_weight"
            total = ops.sum(weights) if is_mean else items
        self._record_means(views, labels, valid)
        if self._memory is not None:
            self._remember(self._memory, views, labels, valid, training)
        # `None` in a model whose `call` takes no `training`; evaluation stops annealing anyway.
        return divide_or_0(ops.sum(values), total), items, training is not False

    def _item_mask(self, mask):
        """Returns which items no mask of an embedding leaves out, `(batch,)`, or `None`."""
        masks = [] if mask is None else [x for x in self._split(mask)[0] if x is not None]
        if not masks:
            return None
        return ops.all(ops.stack([ops.cast(x, "bool") for x in masks], axis=1), axis=1)

    def _values(self, views, labels, valid):
        """Returns the loss of each item, `(batch,)`."""
        if not self._is_views_loss:
            values = self.loss.call(views[:, 1], views[:, 0])
            return values if valid is None else ops.where(valid, values, 0)
        arguments = self._learned_arguments()
        if self._memory is not None:
            arguments["memory"] = self._memory.read(None if labels is None else labels.dtype)
        return self.loss.values(views, labels, valid, **arguments)

    def _record_means(self, views, labels, valid):
        counts = ops.ones_like(views[:, 0, 0])
        counts = counts if valid is None else ops.where(valid, counts, 0)
        if self._is_views_loss and self.loss.part_names:
            for name, values in self.loss.parts(views, labels, valid).items():
                self.weight.record_mean(name, ops.sum(values * counts), ops.sum(counts))
        for metric in self._get_metrics():
            self.weight.record_mean(metric.name, *metric.sums(views, labels, valid))

    def _remember(self, memory, views, labels, valid, training):
        """Puts the items of a training step into the memory."""
        if training is None:
            warnings.warn(
                f"The memory of {self.name!r} stays as it is, as it is not known whether this is "
                "training: give `call` of the model around it an argument `training`.",
                stacklevel=2,
            )
        elif training:
            valid = valid if labels is None else self.loss.labelled(labels, valid)
            memory.put(views, labels, valid)

    def compute_output_spec(self, inputs, sample_weight=None, mask=None, training=None):
        embeddings, _ = self._split(inputs)
        return tuple(keras.KerasTensor(x.shape, dtype=x.dtype) for x in embeddings)

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else self._split(mask)[0]

    def save_own_variables(self, store):
        super().save_own_variables(store)
        self.weight.save(store)
        if self._memory is not None:
            self._memory.save(store)

    def load_own_variables(self, store):
        # Those of Keras are numbered.
        numbered = [key for key in list(store.keys()) if key.isdigit()]
        super().load_own_variables({key: store[key] for key in numbered})
        self.weight.load(store)
        if self._memory is not None:
            self._memory.load(store)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "weight": keras.saving.serialize_keras_object(self.weight.initial),
            "learn_temperature": self.learn_temperature,
            "memory_size": self.memory_size,
            "metrics": [keras.saving.serialize_keras_object(x) for x in self._get_metrics()],
        }

    @classmethod
    def from_config(cls, config: dict) -> "ContrastiveTerm":
        metrics = [keras.saving.deserialize_keras_object(x) for x in config.get("metrics", ())]
        weight = deserialize_weight(config["weight"])
        return cls(**{**config, "weight": weight, "metrics": metrics})


def _validated_metrics(metrics, has_labels):
    """Returns the metrics, or raises `ValueError` if one of them cannot be computed here."""
    for metric in metrics:
        if not isinstance(metric, ViewsMetric):
            raise ValueError(
                "Invalid value for argument `metrics`. Expected metrics of "
                f"`keras_jointloss.metrics`. Received: metrics={metrics!r}"
            )
        if metric.has_labels and not has_labels:
            raise ValueError(
                "Invalid value for argument `metrics`. Expected metrics without labels, since the "
                f"loss has none. Received: {metric.name!r}"
            )
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise ValueError(
            "Invalid value for argument `metrics`. Expected metrics of different names. "
            f"Received: {names}"
        )
    return tuple(metrics)
