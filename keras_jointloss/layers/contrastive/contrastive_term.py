"""The layer that turns two embeddings inside a model into a term of its loss."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import keras

from keras_jointloss import losses
from keras_jointloss._core.keras_calls import is_training
from keras_jointloss._core.registry import deserialized, deserialized_list
from keras_jointloss._core.state import as_state
from keras_jointloss._core.types import Config, LayerOptions, Nested, Tensor, Weights
from keras_jointloss._core.validation import invalid, validate_bool, validate_choice, validate_count
from keras_jointloss.layers._layer_term import LayerTerm
from keras_jointloss.layers._means import validate_reduction
from keras_jointloss.layers.contrastive._comparison import Comparison, LearnedArguments
from keras_jointloss.layers.contrastive._inputs import (
    has_labels,
    one_or_all,
    split,
    validate_call_arguments,
    validate_shapes,
    validated,
)
from keras_jointloss.layers.contrastive._memory import EmbeddingMemory
from keras_jointloss.metrics.base import ViewsMetric, validate_metrics
from keras_jointloss.terms.value import Weight


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ContrastiveTerm(LayerTerm):
    """Adds a weighted loss between embeddings of the same items to the loss of the model.

    The layer returns the embeddings unchanged. Use its outputs in the rest of the model, or a
    Functional model will not contain the layer. The added loss is

        weight(step) * mean_i loss_i(a, b, labels)

    computed in float32 at least, whatever the dtype policy. Integer labels stay integers. The
    logs show the mean of the raw loss as `<name>_loss`, the weight as `<name>_weight`, learned
    parameters as `<name>_temperature` and `<name>_bias`, and metrics as `<name>_<metric>`. On JAX,
    `evaluate` shows them, and in `fit` the `keras_jointloss.callbacks.JointLossCallback` adds them
    at the end of an epoch.

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
        sampling_probability: `(batch,)`, for a loss that takes it, such as
            `keras_jointloss.losses.InfoNCE`: the probability of each item to be in a batch.
        guide: For the same losses, embeddings of the same views by another model, as many as there
            are in `inputs` and of one size: `InfoNCE(false_negative_margin=...)` compares these to
            find false negatives. They receive no gradient.

    Input shape:
        `(batch, dim)` for each embedding. With `SimilarityDistillation`, `dim` may differ between
        them. Labels: `(batch,)`, `(batch, 1)` or `(batch, classes)`, as in the loss.

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
        loss: str | Config | keras.losses.Loss,
        weight: Weight = 1.0,
        learn_temperature: bool = False,
        memory_size: int = 0,
        metrics: Sequence[str | Config | ViewsMetric] = (),
        gather: bool | None = None,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
    ):
        super().__init__(name=name, **kwargs)
        self.loss = losses.get(loss)
        self.learn_temperature = validate_bool(learn_temperature, "learn_temperature")
        self.memory_size = validate_count(memory_size, "memory_size", minimum=0)
        self.gather = validate_choice(gather, "gather", (None, True, False))
        self._is_gathered = gather is not False
        validate_reduction(self.loss, loss)
        if self.memory_size and not getattr(self.loss, "has_memory", False):
            name = type(self.loss).__name__
            raise invalid("memory_size", f"0, since {name} uses no memory", self.memory_size)
        metrics = validate_metrics(metrics, has_labels(self.loss))
        self._learned = LearnedArguments(self.loss, self.learn_temperature)
        schedules = getattr(self.loss, "schedules", {})
        moved = self.loss.moved_by(self._annealed_values) if schedules else self.loss
        self._comparison = Comparison(moved, self._learned, metrics, self._is_gathered)
        readings, means = self._learned.readings(), self._comparison.means()
        self._create_weight(weight, readings, means, schedules)

    def _annealed_values(self):
        return self.weight.annealed_values()

    def build(
        self,
        inputs_shape: Nested,
        sampling_probability_shape: Nested = None,
        guide_shape: Nested = None,
    ) -> None:
        validate_shapes(inputs_shape, self.loss, self._comparison.metrics, self.name)
        self._learned.add_weights(self)
        if self.memory_size:
            embeddings, labels = split(inputs_shape, self.loss)
            memory = EmbeddingMemory(
                self.memory_size,
                len(embeddings),
                embeddings[0][-1],
                labels,
                self.name,
                sampling_probability_shape is not None,
                None if guide_shape is None else guide_shape[0][-1],
            )
            self._comparison.memory, self._memory_state = memory, as_state(memory.state)

    def call(
        self,
        inputs: Nested,
        sample_weight: Weights = None,
        sampling_probability: Tensor | None = None,
        guide: Sequence[Tensor] | None = None,
        mask: Nested = None,
        inputs_mask: Nested = None,
        training: bool | None = None,
    ) -> Nested:
        embeddings, labels = validated(inputs, sample_weight, self.loss, self.name)
        others = sampling_probability, guide
        validate_call_arguments(self.loss, self.name, embeddings, *others)
        # Keras passes the masks as `inputs_mask` if another argument is a tensor, too.
        mask = inputs_mask if mask is None else mask
        masks = () if mask is None else split(mask, self.loss)[0]
        arguments = labels, sample_weight, masks, is_training(training), *others
        compute = partial(self._comparison.loss_of, *arguments)
        self._defer(compute, embeddings, (inputs, sample_weight, mask, *others))
        return one_or_all(embeddings)

    def _trained_tensors(self):
        return self._learned.tensors()

    def _keep(self, found):
        batch, valid = found.kept
        self._comparison.remember(batch, valid, found.is_good if self.weight.drops else None)

    def compute_output_spec(
        self, inputs: Nested, sample_weight: Weights = None, **kwargs: Any
    ) -> Nested:
        embeddings, _ = validated(inputs, sample_weight, self.loss, self.name)
        others = (kwargs.get(name) for name in ("sampling_probability", "guide"))
        validate_call_arguments(self.loss, self.name, embeddings, *others)
        return one_or_all(tuple(keras.KerasTensor(x.shape, dtype=x.dtype) for x in embeddings))

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> Nested:
        return None if mask is None else one_or_all(split(mask, self.loss)[0])

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self._comparison.memory is not None:
            self._comparison.memory.save(store)

    def _load(self, store):
        state = self._saved_state(store)
        self._learned.validate(state)
        super()._load(store)
        if self._comparison.memory is not None:
            self._comparison.memory.load(state)

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "loss": keras.saving.serialize_keras_object(self.loss),
            "learn_temperature": self.learn_temperature,
            "memory_size": self.memory_size,
            "metrics": [keras.saving.serialize_keras_object(x) for x in self._comparison.metrics],
            "gather": self.gather,
        }

    @classmethod
    def from_config(cls, config: Config) -> "ContrastiveTerm":
        weight = deserialized(config.get("weight"), "weight")
        metrics = deserialized_list(config.get("metrics", ()), "metrics")
        return cls(**{**config, "weight": weight, "metrics": metrics})
