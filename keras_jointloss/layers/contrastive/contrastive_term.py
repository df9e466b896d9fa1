"""The layer that turns two embeddings inside a model into a term of its loss."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_jointloss import losses
from keras_jointloss._core.backend import in_replica
from keras_jointloss._core.batch import as_labels, label_tensor
from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.replicas import (
    Batch,
    recorded_sum,
    rows_of,
    shared_batch,
)
from keras_jointloss._core.state import as_state
from keras_jointloss._core.training import is_training
from keras_jointloss._core.validation import validate_bool, validate_choice, validate_count
from keras_jointloss.layers._late_loss import CallLoss
from keras_jointloss.layers._layer_term import (
    LayerTerm,
    item_mask,
    mean_over_items,
    validate_reduction,
)
from keras_jointloss.layers.contrastive._comparison import loss_between_views
from keras_jointloss.layers.contrastive._inputs import (
    has_labels,
    one_or_all,
    split,
    validate_shapes,
    validated,
)
from keras_jointloss.layers.contrastive._learned_arguments import LearnedArguments
from keras_jointloss.layers.contrastive._memory import EmbeddingMemory
from keras_jointloss.metrics.base import validate_metrics
from keras_jointloss.terms.given_weight import Weight, deserialize_weight


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ContrastiveTerm(LayerTerm):
    """Adds a weighted loss between embeddings of the same items to the loss of the model.

    The layer returns the embeddings unchanged. Use its outputs in the rest of the model, or a
    Functional model will not contain the layer. The added loss is

        weight(step) * mean_i loss_i(a, b, labels)

    computed in float32 at least, whatever the dtype policy. Integer labels stay integers. The
    logs show the mean of the raw loss as `<name>_loss`, the weight as `<name>_weight`, learned
    parameters as `<name>_temperature` and `<name>_bias`, and metrics as `<name>_<metric>`. On JAX
    the `keras_jointloss.callbacks.JointLossCallback` adds them to the logs at the end of an epoch.

    `fit`, `evaluate` and a direct call of the model compute the loss; `predict` and an exported
    model do not. A step of `fit` fills the memory, also if the layer is called with
    `training=False`; so does a direct call of the model with `training=True`.

    A layer is one term. If it is called several times in a step, as in a siamese model, it adds a
    loss for each call, and the term is their sum. To weight or log pairs separately, use a separate
    layer for each.

    Args:
        loss: A loss of `keras_jointloss.losses` or its class name. Any other `keras.losses.Loss`
            (or class name in `keras.losses`) compares the first embedding, as the prediction, with
            the second. Its reduction must be a mean.
        weight: A number, 0 or more, or a `keras.optimizers.schedules.LearningRateSchedule`,
            which moves the weight while a `keras_jointloss.callbacks.JointLossCallback` takes part
            in `fit`.
        learn_temperature: Whether to train the temperature of the loss, starting from its current
            value. The parameter is the logarithm of its inverse, kept in [0, ln 100] as in CLIP.
            For SigLIP the bias is trained, too, and neither has bounds. An optimizer with weight
            decay, such as AdamW, decays them like any weight unless excluded before it is built:
            `optimizer.exclude_from_weight_decay(var_names=["log_scale", "bias"])`.
        memory_size: Number of items from earlier training steps to keep as further candidates,
            which receive no gradient; 0 to disable. The oldest are dropped first. Only for losses
            whose `has_memory` is true.
        metrics: Metrics of `keras_jointloss.metrics` to compute on the embeddings.
        gather: Whether each replica of `tf.distribute`, or process of `torch.distributed`, sees the
            embeddings, labels, masks and sample weights of all replicas, so that training,
            evaluation and memory are those of one device with the same global batches, also if the
            replicas get unequal shares of a batch. All replicas must then compute the loss.
            `None`, the default, and `True`: yes. `False`: each compares its own items alone, which
            saves communication, and keeps a memory of its own; a saved file holds that of the
            first. Without several replicas, and on JAX, it changes nothing. With `SigLIP`, except
            for Euclidean distances, a replica holds the embeddings of one other at a time, if there
            are neither `memory_size` nor `metrics`; otherwise those of all.
        name: Name of the layer and of the term.
        **kwargs: `trainable` and `dtype`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: `(a, b)`, or more embeddings for a loss on more views, followed by the labels if
            the loss has any. `(a, labels)`, one embedding, for a loss that compares items by their
            classes, such as SupCon.
        sample_weight: `(batch,)`, the weight of each item, or `None`. An item of weight 0, or one
            that a Keras mask of shape `(batch,)` masks out, is excluded from the batch (as anchor,
            positive and negative). An item that takes part has the loss NaN if an embedding holds
            NaN or infinity.

    Input shape:
        `(batch, dim)` for each embedding. Labels: `(batch,)`, `(batch, 1)` or `(batch, classes)`,
        as in the loss.

    Output shape:
        The shapes of the embeddings, unchanged. A single embedding is returned without a tuple.

    Raises:
        ValueError: If an argument is invalid, the embeddings differ in batch or dim, or labels are
            missing, unexpected or of the wrong shape.

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
        gather: bool | None = None,
        name: str | None = None,
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        self.loss = losses.get(loss)
        self.learn_temperature = validate_bool(learn_temperature, "learn_temperature")
        self.memory_size = validate_count(memory_size, "memory_size", minimum=0)
        self.gather = validate_choice(gather, "gather", (None, True, False))
        self._is_gathered = gather is not False
        self._validate_loss(loss)
        self._learned = LearnedArguments(self.loss, self.learn_temperature)
        self._memory: EmbeddingMemory | None = None
        # A function, so that Keras does not track the metrics, which have no state here.
        self._get_metrics = partial(tuple, validate_metrics(metrics, has_labels(self.loss)))
        self._create_weight(weight, self._learned.readings(), self._means())

    def _validate_loss(self, given):
        validate_reduction(self.loss, given)
        if self.memory_size and not getattr(self.loss, "has_memory", False):
            raise ValueError(
                "Invalid value for argument `memory_size`. Expected 0, since "
                f"{type(self.loss).__name__} uses no memory. "
                f"Received: memory_size={self.memory_size}"
            )

    @property
    def _is_views_loss(self) -> bool:
        return isinstance(self.loss, losses.ViewsLoss)

    def _means(self):
        """Returns the other means to log: by name, functions from the mean to the logged value."""
        parts = self.loss.part_names if self._is_views_loss else ()
        return {
            **{part: lambda mean: mean for part in parts},
            **{metric.name: metric.finish for metric in self._get_metrics()},
        }

    def build(self, input_shape):
        validate_shapes(input_shape, self.loss, self._get_metrics(), self.name)
        self._learned.add_weights(self)
        if self.memory_size:
            embeddings, labels = split(input_shape, self.loss)
            self._memory = EmbeddingMemory(
                self.memory_size, len(embeddings), embeddings[0][-1], labels, self.name
            )
            self._memory_state = as_state(self._memory.state)

    def call(self, inputs, sample_weight=None, mask=None, inputs_mask=None, training=None):
        embeddings, labels = validated(inputs, sample_weight, self.loss, self.name)
        # Keras passes the masks as `inputs_mask` if `sample_weight` is a tensor, too.
        mask = inputs_mask if mask is None else mask
        training = is_training(training)
        compute = partial(self._compute_loss, embeddings, labels, sample_weight, mask, training)
        batch_size = None if mask is None else ops.shape(embeddings[0])[0]
        self._defer(compute, (inputs, sample_weight, mask), batch_size)
        return one_or_all(embeddings)

    def _compute_loss(self, embeddings, labels, sample_weight, mask, training):
        """Returns the `CallLoss` of a call."""
        dtype = float_dtype(*(x.dtype for x in embeddings))
        views = ops.stack([ops.cast(x, dtype) for x in embeddings], axis=1)
        labels = None if labels is None else as_labels(label_tensor(labels))
        masks = () if mask is None else split(mask, self.loss)[0]
        if sample_weight is not None:
            sample_weight = ops.reshape(ops.cast(sample_weight, dtype), (-1,))
            sample_weight = ops.broadcast_to(sample_weight, ops.shape(views)[:1])
        own = Batch(views, labels, item_mask(masks), sample_weight)
        is_gathered = self._is_gathered and in_replica()
        batch, own_items, exchange = own, None, None
        if is_gathered:
            batch, own_items, exchange = shared_batch(own, self._exchanges_views())
        valid = batch.valid()
        loss, items, _ = mean_over_items(
            lambda _: self._values(batch.views, batch.labels, own_items, valid, exchange),
            own.size(dtype),
            own.mask,
            own.sample_weight,
            is_weighted_mean=self.loss.reduction == "mean_with_sample_weight",
            over_replicas=is_gathered,
        )
        means = self._other_means(batch.views, batch.labels, valid, own_items)
        if batch.labels is not None:
            valid = self.loss.labelled(batch.labels, valid)
        if self._memory is not None and training:
            self._memory.put(batch.views, batch.labels, valid)
        return CallLoss(loss, items, valid, training is not False, means)

    def _exchanges_views(self) -> bool:
        """Whether only the loss needs the views of other replicas, those of one at a time."""
        is_loss_alone = self._memory is None and not self._get_metrics()
        return is_loss_alone and getattr(self.loss, "takes_exchange", False)

    def _values(self, views, labels, items, valid, exchange):
        """Returns the loss of each item, `(batch,)`, or of some `Items`."""
        if not self._is_views_loss:
            return loss_between_views(self.loss, rows_of(views, items), rows_of(valid, items))
        arguments = self._learned.arguments()
        if exchange is not None:
            arguments["exchange"] = exchange
        if self._memory is not None:
            arguments["memory"] = self._memory.read(None if labels is None else labels.dtype)
        return self.loss.values(views, labels, valid, items, **arguments)

    def _other_means(self, views, labels, valid, items):
        """Returns, by name, the sums over all items or over some `Items`, and their counts."""
        means = {}

        def record(name, total, count):
            if items is not None:
                total, count = ops.unstack(recorded_sum(ops.stack([total, count])))
            means[name] = total, count

        if self._is_views_loss and self.loss.part_names:
            counts = ops.ones_like(views[:, 0, 0])
            counts = rows_of(counts if valid is None else ops.where(valid, counts, 0), items)
            for name, values in self.loss.part_values(views, labels, valid).items():
                record(name, ops.sum(rows_of(values, items) * counts), ops.sum(counts))
        for metric in self._get_metrics():
            record(metric.name, *metric.sums(views, labels, valid, items=items))
        return means

    def compute_output_spec(self, inputs, sample_weight=None, **kwargs):
        embeddings, _ = validated(inputs, sample_weight, self.loss, self.name)
        return one_or_all(tuple(keras.KerasTensor(x.shape, dtype=x.dtype) for x in embeddings))

    def compute_mask(self, inputs, mask=None):
        return None if mask is None else one_or_all(split(mask, self.loss)[0])

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self._memory is not None:
            self._memory.save(store)

    def _load(self, store):
        state = self._saved_state(store)
        self._learned.validate(state)
        super()._load(store)
        if self._memory is not None:
            self._memory.load(state)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "learn_temperature": self.learn_temperature,
            "memory_size": self.memory_size,
            "metrics": [keras.saving.serialize_keras_object(x) for x in self._get_metrics()],
            "gather": self.gather,
        }

    @classmethod
    def from_config(cls, config: dict) -> "ContrastiveTerm":
        metrics = [keras.saving.deserialize_keras_object(x) for x in config.get("metrics", ())]
        weight = deserialize_weight(config["weight"])
        return cls(**{**config, "weight": weight, "metrics": metrics})
