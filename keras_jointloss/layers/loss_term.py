"""The layer that turns any tensor inside a model into a term of its loss."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import keras
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.keras_calls import is_training
from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.registry import deserialized, deserialized_list
from keras_jointloss._core.types import Config, LayerOptions, LossLike, MetricLike, Nested, Tensor
from keras_jointloss._core.validation import invalid, validate_number
from keras_jointloss.layers._layer_term import CallLoss, LayerTerm
from keras_jointloss.layers._means import (
    has_leading_axes,
    mean_of_scalar,
    mean_over_elements,
    without_excluded,
)
from keras_jointloss.layers._target_and_prediction import (
    loss_function,
    mean_metrics,
    metric_means,
    validate_pair,
    validate_values,
)
from keras_jointloss.terms.value import Weight, validate_schedule


@keras.saving.register_keras_serializable(package="keras_jointloss")
class LossTerm(LayerTerm):
    """Adds any tensor, or any loss between two tensors, as a weighted term to the loss of a model.

    The layer returns its first argument unchanged. Use its output in the rest of the model, or a
    Functional model will not contain the layer. Without a `loss`, the added loss is

        weight(step) * mean(values)

    over all elements, for example of a KL divergence, a residual of a differential equation, or a
    penalty. With a `loss`, it is

        weight(step) * mean(loss(target, prediction))

    for example of an auxiliary output, or of feature maps in distillation (stop the gradient of the
    target, if it must not receive one). Both are computed in float32 at least, whatever the dtype
    policy. The logs show the mean of the raw loss as `<name>_loss`, the weight as `<name>_weight`,
    and metrics as `<name>_<metric>`. On JAX, `evaluate` shows them, and in `fit`
    the `keras_jointloss.callbacks.JointLossCallback` adds them at the end of an epoch.

    For variational autoencoders, `floor` and `target` change the mean:

        floor:  sum_d max(mean_i values_id, floor)      (free bits)
        target: |mean(values) - target(step)|           (capacity)

    The floor keeps dimensions from collapsing: the term has no gradient for a dimension `d` whose
    mean over the items `i` is below it. It replaces the mean over dimensions by their sum: without
    a floor, pass `keras.ops.sum(values, axis=-1)` for the same scale. With both, the floor applies
    first. The logs then also show the plain sum or mean as `<name>_value`.

    `fit`, `evaluate` and a direct call of the model compute the loss; `predict` and an exported
    model do not. One layer is one term with one value in a step: where a step needs several, as for
    two views, create a layer for each call, or add the values first.

    Args:
        loss: A loss as Keras accepts it, by name, as a function or as a `keras.losses.Loss` whose
            reduction is a mean; `None` if the call receives the values of the loss. For the losses
            of `keras_jointloss.losses` on views use `ContrastiveTerm`.
        weight: A number, 0 or more, or a `keras.optimizers.schedules.LearningRateSchedule`,
            which moves the weight while a `keras_jointloss.callbacks.JointLossCallback` takes part
            in `fit`.
        metrics: Metrics of the target and the prediction that are means over items, such as
            `"mean_absolute_error"`: names, functions of both, or `keras.metrics.MeanMetricWrapper`
            objects. `"accuracy"` depends on the shapes, as in `compile`. Only with a `loss`.
        floor: The smallest mean of a dimension, a number, or `None`. Only without a `loss`, for
            values of shape `(batch, dim)`.
        target: The number that the mean should have, or a `LearningRateSchedule`, or `None`.
        name: Name of the layer and of the term.
        **kwargs: `trainable` and `dtype`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: Any structure of tensors, which the layer returns. With a `loss`, the prediction.
        values: The values of the loss: `()` or `(batch, ...)`. With a `loss`, the target.
        sample_weight: The weight of each item, `(batch,)`, or of each element, with the leading
            axes of the loss, such as `(batch, time)`. An element of weight 0 is excluded.

    Keras masks with the leading axes of the loss exclude elements in the same way: those of
    `inputs`, if it is one tensor, and of `values`. Without a `loss`, a mask of other sizes does not
    apply: to the values `(batch, dim)` of a masked sequence only if `dim` is by chance its length.
    Sum such values to `(batch,)` first. The mean is over the elements that remain, and 0 if there
    are none. A target that is excluded may be NaN.

    Output shape:
        That of `inputs`.

    Raises:
        ValueError: If an argument is invalid, the values have no items to weight, or the layer is
            called several times in a step.

    References:
        Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", 2016
        (free bits); Burgess et al., "Understanding disentangling in beta-VAE", 2018 (capacity).

    Example:

    >>> import keras
    >>> from keras_jointloss.schedules import Linear
    >>> inputs = keras.Input((8,))
    >>> code = keras.layers.Dense(2)(inputs)
    >>> code = LossTerm(weight=Linear(0.0, 1.0, 1000), name="energy")(code, keras.ops.square(code))
    >>> model = keras.Model(inputs, keras.layers.Dense(8)(code))
    >>> float(model.get_layer("energy").weight)
    0.0
    """

    _is_gathered = True

    def __init__(
        self,
        loss: LossLike | None = None,
        weight: Weight = 1.0,
        metrics: Sequence[MetricLike] = (),
        floor: float | None = None,
        target: Weight | None = None,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
    ):
        super().__init__(name=name, **kwargs)
        self.loss = loss
        self._compare = loss_function(loss, self.name)
        self.floor = None if floor is None else validate_number(floor, "floor")
        if self.floor is not None and loss is not None:
            expected = "None, since dimensions have no loss of their own between two tensors"
            raise invalid("floor", expected, floor)
        self.target = target
        if isinstance(target, LearningRateSchedule):
            validate_schedule(target, "target")
        elif target is not None:
            self.target = validate_number(target, "target")
        found = mean_metrics(metrics, loss)
        # A function, so that Keras does not track the metrics, which have no state here.
        self._get_metrics = partial(tuple, found)
        means = [*(metric.name for metric in found), *["value"] * self._changes_mean]
        self._create_weight(
            weight,
            readings={},
            means={name: lambda mean: mean for name in means},
            schedules={"target": target} if isinstance(target, LearningRateSchedule) else {},
        )
        self.weight.may_be_constant = self._changes_mean

    @property
    def _changes_mean(self) -> bool:
        return self.floor is not None or self.target is not None

    def call(
        self,
        inputs: Nested,
        values: Tensor,
        sample_weight: Tensor | None = None,
        inputs_mask: Nested = None,
        values_mask: Nested = None,
        training: bool | None = None,
    ) -> Nested:
        self._validate(inputs, values, sample_weight)
        if self._step.is_pending:
            raise ValueError(
                f"{self.name!r} expects one call in a step: floor, target and logs are of one "
                "value. Create a LossTerm for each call, or add the values first. "
                "Received: a second call"
            )
        training = is_training(training)
        masks = (None if keras.tree.is_nested(inputs) else inputs_mask, values_mask)
        compute = partial(self._compute_loss, sample_weight, masks, training)
        self._defer(compute, (inputs, values), (inputs, values, sample_weight, masks))
        return inputs

    def _validate(self, inputs, values, sample_weight) -> None:
        validate_values(values, sample_weight, self.name)
        if self.loss is not None:
            validate_pair(values, inputs, self.name)
        rank = len(values.shape)
        if self.loss is None and rank == 0 and sample_weight is not None:
            raise ValueError(
                f"{self.name!r} expects no `sample_weight` for values without items. "
                "Received: values of shape ()"
            )
        if self.floor is not None and (rank != 2 or values.shape[1] is None):
            raise ValueError(
                f"{self.name!r} expects values of shape (batch, dim) for its floor. "
                f"Received: shape={tuple(values.shape)}"
            )

    def _compute_loss(self, sample_weight, masks, training, tensors):
        """Returns the `CallLoss` of a call."""
        means, ((inputs, values), _) = {}, tensors
        values = _at_least_float32(values)
        masks = [mask for mask in masks if mask is not None]
        if self._compare is None:
            raw, pair = ops.cast(values, float_dtype(values.dtype)), None
            # The values may lack the axes of `inputs`: a divergence of a sequence has no time.
            axes = self._leading_axes_of(raw)
            masks = [mask for mask in masks if has_leading_axes(mask, axes, unknown=False)]
        else:
            pair = without_excluded(values, _at_least_float32(inputs), masks, sample_weight)
            raw = ops.convert_to_tensor(self._compare(*pair))
        self._validate_leading_axes(raw, masks, sample_weight)
        if len(raw.shape):
            loss, items, valid = mean_over_elements(
                raw,
                masks,
                sample_weight,
                is_weighted_mean=getattr(self.loss, "reduction", None) == "mean_with_sample_weight",
                keeps_dimensions=self.floor is not None,
                over_replicas=current_replicas().count > 1,
            )
            means = metric_means(self._get_metrics(), pair, valid)
        else:
            loss, items, valid = mean_of_scalar(raw, _batch_size(inputs))
        if self._changes_mean:
            value = ops.sum(loss)
            means["value"] = value * items, items
            loss = self._changed(loss, value)
            if valid is not None:
                is_any = ops.cast(ops.any(valid), loss.dtype)
                loss = ops.where(current_replicas().sum(is_any) > 0, loss, 0)
        return CallLoss(loss, items, valid, training is not False, _batch_size(inputs), means)

    def _leading_axes_of(self, raw):
        """Returns a tensor whose axes masks and sample weights may have."""
        return raw if self.floor is None else raw[:, 0]

    def _validate_leading_axes(self, raw, masks, sample_weight) -> None:
        for x in (*masks, sample_weight):
            if x is not None and not has_leading_axes(x, self._leading_axes_of(raw)):
                raise ValueError(
                    f"{self.name!r} expects masks and sample weights with the leading axes of the "
                    f"loss, which has the shape {tuple(raw.shape)}. "
                    f"Received: shape={tuple(x.shape)}"
                )

    def _changed(self, mean, value):
        """Returns the loss with floor and target, from the mean of each dimension and their sum."""
        loss = value if self.floor is None else ops.sum(ops.maximum(mean, self.floor))
        if self.target is None:
            return loss
        target = self.weight.annealed_values().get("target", self.target)
        return ops.abs(loss - ops.cast(target, loss.dtype))

    def compute_output_spec(
        self, inputs: Nested, values: Tensor, sample_weight: Tensor | None = None, **kwargs: Any
    ) -> Nested:
        self._validate(inputs, values, sample_weight)
        return keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, dtype=x.dtype, sparse=x.sparse), inputs
        )

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> Nested:
        return mask

    def get_config(self) -> Config:
        target, loss = self.target, self.loss
        if isinstance(target, LearningRateSchedule):
            target = keras.saving.serialize_keras_object(target)
        if loss is not None and not isinstance(loss, str):
            loss = keras.saving.serialize_keras_object(loss)
        return {
            **super().get_config(),
            "loss": loss,
            "metrics": [keras.saving.serialize_keras_object(x) for x in self._get_metrics()],
            "floor": self.floor,
            "target": target,
        }

    @classmethod
    def from_config(cls, config: Config) -> "LossTerm":
        names = ("loss", "weight", "target")
        objects = {name: deserialized(config.get(name), name) for name in names}
        metrics = deserialized_list(config.get("metrics", ()), "metrics")
        return cls(**{**config, **objects, "metrics": metrics})


def _at_least_float32(x):
    """Returns a tensor in float32 or float64; integers stay as they are."""
    x = ops.convert_to_tensor(x)
    is_float = keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype))
    return ops.cast(x, float_dtype(x.dtype)) if is_float else x


def _batch_size(inputs):
    """Returns the number of items, 1 if `inputs` has no axes."""
    first = ops.convert_to_tensor(keras.tree.flatten(inputs)[0])
    return ops.shape(first)[0] if len(first.shape) else 1
