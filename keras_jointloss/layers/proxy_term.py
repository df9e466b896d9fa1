"""The layer that has a trained proxy for each class, and adds a loss between proxies and items."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import keras
from keras import ops

from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.batch import (
    Batch,
    as_labels,
    check_numbers,
    label_tensor,
    labelled,
    rows_of,
    validate_unlabelled,
)
from keras_jointloss._core.keras_calls import is_training
from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.registry import deserialized, deserialized_list
from keras_jointloss._core.replicas import shared_batch
from keras_jointloss._core.types import Config, LayerOptions, MetricLike, Nested, Tensor, Weights
from keras_jointloss._core.validation import invalid, validate_count
from keras_jointloss.layers._layer_term import CallLoss, LayerTerm
from keras_jointloss.layers._means import item_mask, mean_over_items, validate_item_weights
from keras_jointloss.layers._target_and_prediction import mean_metrics, metric_means
from keras_jointloss.losses import ProxyLoss
from keras_jointloss.losses._lookup import get_proxy_loss
from keras_jointloss.terms.value import Weight


@keras.saving.register_keras_serializable(package="keras_jointloss")
class ProxyTerm(LayerTerm):
    """Adds a weighted loss between embeddings and trained proxies of classes to that of the model.

    A proxy is an embedding of its class, which the layer trains. A loss such as ArcFace draws the
    items of a class to its proxy and away from the others. So a batch needs no two items of the
    same class, as the losses of `ContrastiveTerm` do. The layer returns the embeddings unchanged.
    Use its output in the rest of the model, or a Functional model will not contain the layer. The
    added loss is

        weight(step) * mean_i loss_i(embedding, proxies, label)

    over the labelled items, computed in float32 at least, whatever the dtype policy. The logs show
    the mean of the raw loss as `<name>_loss`, the weight as `<name>_weight`, and metrics as
    `<name>_<metric>`. On JAX, `evaluate` shows them, and in `fit` the
    `keras_jointloss.callbacks.JointLossCallback` adds them at the end of an epoch.

    `fit`, `evaluate` and a direct call of the model compute the loss; `predict` and an exported
    model do not. For predictions, `logits` returns those of the classes.

    The proxies are the weight `<name>/proxies`, `(classes, dim)`. Their length does not matter to
    the losses of the package, but the shorter they are, the faster an optimizer turns them. Weight
    decay shortens them. With `keras.distribution.ModelParallel` on JAX, the layout
    `layout_map["<name>/proxies"] = ("model", None)` divides the classes among devices.

    If the layer is called several times in a step, it adds a loss for each call, and the term is
    their sum. Under `tf.distribute` and in the processes of `torch.distributed`, loss and gradient
    are those of one device with the same global batches; all replicas must compute the loss.

    Args:
        loss: A `keras_jointloss.losses.ProxyLoss` or its class name, such as `"ArcFace"`.
        classes: The number of classes, 2 or more.
        weight: A number, 0 or more, or a `keras.optimizers.schedules.LearningRateSchedule`,
            which moves the weight while a `keras_jointloss.callbacks.JointLossCallback` takes part
            in `fit`.
        unlabelled: The label that marks items without one, such as -1, or `None` if all items have
            one. It is the value of every entry in a row of classes.
        metrics: Metrics of the labels and the logits that are means over items, such as
            `"accuracy"`: names, functions of both, or `keras.metrics.MeanMetricWrapper` objects.
        proxies_initializer: Initializer of the proxies. By default, their numbers are normal with
            variance `1 / dim`: random directions, and lengths of about 1.
        name: Name of the layer and of the term.
        **kwargs: `trainable` and `dtype`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: `(embedding, labels)`.
        sample_weight: `(batch,)`, the weight of each item, or `None`. An item of weight 0, one that
            a Keras mask of shape `(batch,)` masks out, and one whose label is `unlabelled` are
            excluded. An item that takes part has the loss NaN if its embedding holds NaN or
            infinity.

    Input shape:
        `(batch, dim)` for the embedding. Labels: `(batch,)` or `(batch, 1)`, whole numbers from 0
        to `classes - 1`, or `(batch, classes)` with 1 for each class of an item and 0 for others.

    Output shape:
        That of the embedding.

    Raises:
        ValueError: If an argument is invalid, an input has the wrong shape, or a label that the
            host can read is out of range. In a compiled step, the loss is NaN then.

    Example:

    >>> import keras
    >>> image, label = keras.Input((8,)), keras.Input((), dtype="int32")
    >>> faces = ProxyTerm("ArcFace", classes=1000, metrics=["accuracy"], name="faces")
    >>> embedding = faces((keras.layers.Dense(4)(image), label))
    >>> model = keras.Model([image, label], embedding)  # To train: compile("adam") and fit.
    >>> classifier = keras.Model(image, faces.logits(model.layers[1].output))
    >>> classifier.output_shape
    (None, 1000)
    """

    _is_gathered = True

    def __init__(
        self,
        loss: str | Config | ProxyLoss,
        classes: int,
        weight: Weight = 1.0,
        unlabelled: int | None = None,
        metrics: Sequence[MetricLike] = (),
        proxies_initializer: str | Config | keras.Initializer | None = None,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
    ):
        super().__init__(name=name, **kwargs)
        self.loss = get_proxy_loss(loss)
        self.classes = validate_count(classes, "classes", minimum=2)
        self.unlabelled = validate_unlabelled(unlabelled)
        if proxies_initializer is None:
            proxies_initializer = keras.initializers.VarianceScaling(
                mode="fan_out", distribution="untruncated_normal"
            )
        try:
            self.proxies_initializer = keras.initializers.get(proxies_initializer)
        except (TypeError, ValueError) as error:
            expected = "an initializer as Keras accepts it"
            raise invalid("proxies_initializer", expected, proxies_initializer) from error
        found = mean_metrics(metrics, self.loss)
        # A function, so that Keras does not track the metrics, which have no state here.
        self._get_metrics = partial(tuple, found)
        means = {metric.name: lambda mean: mean for metric in found}
        self._create_weight(weight, {}, means, self.loss.schedules)
        self._current_loss = self.loss.moved_by(self.weight.annealed_values)

    def build(self, input_shape: Nested) -> None:
        # With labels or, for the logits, without.
        has_labels = isinstance(input_shape[0], list | tuple)
        embedding = input_shape[0] if has_labels else input_shape
        _validate_embedding(embedding, self.name)
        self.proxies = self.add_weight(
            name="proxies",
            shape=(self.classes, embedding[1]),
            initializer=self.proxies_initializer,
            dtype=keras.config.floatx(),
            autocast=False,
        )

    def logits(self, embedding: Tensor) -> Tensor:
        """Returns the logits of the classes, without margin, for predictions and metrics.

        They may be an output of a Functional model, which is saved, loaded and cloned with them,
        and need no labels. The largest is that of the class whose proxy is most similar.

        Args:
            embedding: `(batch, dim)`.

        Returns:
            `(batch, classes)`, float32 at least: the cosines times the scale of the loss, or what
            `logits` of a custom loss returns.
        """
        return self(embedding, as_logits=True)

    def call(
        self,
        inputs: Nested,
        sample_weight: Weights = None,
        mask: Nested = None,
        inputs_mask: Nested = None,
        training: bool | None = None,
        as_logits: bool = False,
    ) -> Nested:
        if as_logits:
            return self._current_loss.logits(inputs, self.proxies)
        embedding, labels = self._validated(inputs, sample_weight)
        # Keras passes the masks as `inputs_mask` if `sample_weight` is a tensor, too.
        masks = inputs_mask if mask is None else mask
        compute = partial(self._compute_loss, labels, sample_weight, masks, is_training(training))
        self._defer(compute, embedding, (inputs, sample_weight, masks))
        return embedding

    def _trained_tensors(self):
        return {"proxies": ops.convert_to_tensor(self.proxies)}

    def _validated(self, inputs, sample_weight):
        """Returns the embedding and the labels."""
        if not isinstance(inputs, list | tuple) or len(inputs) != 2:
            raise ValueError(f"{self.name!r} expects (embedding, labels). Received: {inputs}")
        embedding, labels = inputs
        for x in inputs:
            check_numbers(x, "inputs", repr(self.name))
        _validate_embedding(embedding.shape, self.name)
        self.loss.validate_labels(tuple(labels.shape), self.classes, embedding.shape[0])
        validate_item_weights(sample_weight, embedding.shape[0], self.name)
        return embedding, labels

    def _compute_loss(self, labels, sample_weight, masks, training, tensors) -> CallLoss:
        """Returns the `CallLoss` of a call."""
        embedding, proxies = tensors[0], tensors[1]["proxies"]
        dtype = float_dtype(embedding.dtype)
        embedding = ops.cast(embedding, dtype)
        labels = as_labels(label_tensor(labels))
        if sample_weight is not None:
            sample_weight = ops.reshape(ops.cast(sample_weight, dtype), (-1,))
            sample_weight = ops.broadcast_to(sample_weight, ops.shape(embedding)[:1])
        mask = labelled(labels, item_mask(masks or ()), self.unlabelled)
        own = Batch(embedding[:, None], labels, mask, sample_weight)
        count = current_replicas().count
        batch, items = own, None
        if self.loss.compares_items and count > 1:
            batch, items, _ = shared_batch(own, takes_exchange=False)
        valid = batch.valid()

        def values(_):
            found = self._current_loss.values(batch.views[:, 0], proxies, batch.labels, valid)
            return rows_of(found, items)

        loss, number, _ = mean_over_items(
            values,
            own.size(dtype),
            own.mask,
            own.sample_weight,
            is_weighted_mean=False,
            over_replicas=count > 1,
        )
        batch_size = None if own.mask is None else ops.shape(embedding)[0]
        means = self._metric_means(own, proxies)
        return CallLoss(loss, number, valid, training is not False, batch_size, means)

    def _metric_means(self, own: Batch, proxies: Tensor) -> dict[str, tuple]:
        """Returns, by the name of the metric, the sum of its values and their number."""
        if not self._get_metrics():
            return {}
        valid, labels, embedding = own.valid(), own.labels, own.views[:, 0]
        if valid is not None:
            # The label of an excluded item may be none of the classes, its embedding not finite.
            labels = ops.where(valid if len(labels.shape) == 1 else valid[:, None], labels, 0)
            embedding = ops.where(valid[:, None], embedding, 0)
        logits = self._current_loss.logits(embedding, proxies)
        return metric_means(self._get_metrics(), (labels, logits), valid)

    def compute_output_spec(
        self,
        inputs: Nested,
        sample_weight: Weights = None,
        as_logits: bool = False,
        **kwargs: Any,
    ) -> Nested:
        if as_logits:
            _validate_embedding(inputs.shape, self.name)
            dtype = float_dtype(inputs.dtype)
            return keras.KerasTensor((inputs.shape[0], self.classes), dtype=dtype)
        embedding, _ = self._validated(inputs, sample_weight)
        return keras.KerasTensor(embedding.shape, dtype=embedding.dtype)

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> Nested:
        return mask[0] if isinstance(mask, list | tuple) else mask

    def _load(self, store):
        state = self._saved_state(store)
        if "0" in state and self.built:  # Keras uses numbers as keys.
            state.array("0", self.proxies.shape, name="proxies")
        super()._load(store)

    def get_config(self) -> Config:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "loss": serialize(self.loss),
            "classes": self.classes,
            "unlabelled": self.unlabelled,
            "metrics": [serialize(x) for x in self._get_metrics()],
            "proxies_initializer": serialize(self.proxies_initializer),
        }

    @classmethod
    def from_config(cls, config: Config) -> "ProxyTerm":
        weight = deserialized(config.get("weight"), "weight")
        metrics = deserialized_list(config.get("metrics", ()), "metrics")
        return cls(**{**config, "weight": weight, "metrics": metrics})


def _validate_embedding(shape, name: str) -> None:
    if len(shape) != 2 or not isinstance(shape[1], int) or not shape[1]:
        raise ValueError(
            f"{name!r} expects embeddings of shape (batch, dim). Received: shape={tuple(shape)}"
        )
