"""The layer that adds the residual of an equation, with a weight for each point, as a term."""

import math
from functools import partial
from typing import Any, Unpack

import keras
import numpy as np
from keras import ops

from keras_jointloss._core.backend import current_replicas, host_values
from keras_jointloss._core.batch import Batch
from keras_jointloss._core.keras_calls import is_training
from keras_jointloss._core.math import divide_or_0, float_dtype, to_numpy
from keras_jointloss._core.replicas import global_batch
from keras_jointloss._core.state import as_state, layer_state
from keras_jointloss._core.types import Config, LayerOptions, Nested, Tensor, Weights
from keras_jointloss._core.validation import validate_count
from keras_jointloss.layers._layer_term import CallLoss, LayerTerm
from keras_jointloss.layers._means import mean_over_items, validate_item_weights
from keras_jointloss.points import PointRule, get
from keras_jointloss.terms.value import Weight, deserialize_weight

#: The index of a point without a weight of its own.
_NO_POINT = -1


@keras.saving.register_keras_serializable(package="keras_jointloss")
class PointWeights(LayerTerm):
    """Adds the squared residuals of an equation, each with the weight of its point, to the loss.

    The points are those at which the equation has to hold, the collocation points. The layer keeps
    a state of each, by its index in the data, and a rule turns the residuals into weights. The
    layer returns its first argument unchanged. Use its output in the rest of the model, or a
    Functional model will not contain the layer. The added loss is

        weight(step) * mean_j w_j r_j^2

    over the points `j` of the batch, without a gradient through the `w_j`. A step of `fit` first
    updates the state with the residuals of its batch, and then computes the weights; `evaluate`
    changes nothing. Loss and weights are computed in float32 at least, whatever the dtype policy.

    The logs show the mean as `<name>_loss`, that without point weights as `<name>_value`, the
    smallest weight of a point as `<name>_min_weight` and the weight of the term as `<name>_weight`.
    On JAX, `evaluate` shows them, and in `fit` the `keras_jointloss.callbacks.JointLossCallback`
    adds them at the end of an epoch. The state is saved with the model.

    `fit`, `evaluate` and a direct call of the model compute the loss; `predict` and an exported
    model do not. If the layer is called several times in a step, it adds a loss for each call, and
    the term is their sum. Under `tf.distribute` and in the processes of `torch.distributed`, loss,
    gradient and weights are those of one device with the same global batches; all replicas must
    compute the loss. For several equations, create a layer for each.

    Args:
        points: The number of points.
        rule: A `keras_jointloss.points.PointRule` or its class name: `"residual"`, `"causal"` or
            `"self_adaptive"`.
        weight: A number, 0 or more, or a `keras.optimizers.schedules.LearningRateSchedule`,
            which moves the weight while a `keras_jointloss.callbacks.JointLossCallback` takes part
            in `fit`.
        name: Name of the layer and of the term.
        **kwargs: `trainable` and `dtype`, as in `keras.layers.Layer`.

    Call arguments:
        inputs: Any structure of tensors, which the layer returns.
        residual: The residual of the equation at each point, `(batch,)`, or several, `(batch,
            ...)`, whose squares are averaged.
        index: The index of each point, whole numbers from 0 to `points - 1`, `(batch,)` or
            `(batch, 1)`. -1 is a point without a weight of its own, such as one for validation: it
            weighs 1, and does not change the state. A point may be several times in a batch.
        sample_weight: `(batch,)`, a further weight of each point, such as that of a quadrature, or
            `None`. A point of weight 0 is excluded, and its residual may be NaN.

    Output shape:
        That of `inputs`.

    Raises:
        ValueError: If an argument is invalid, an input has the wrong shape, an index is not an
            integer, or one that the host can read is out of range. In a compiled step, the loss is
            NaN then.

    Example:

    >>> import keras
    >>> t, index = keras.Input((1,)), keras.Input((), dtype="int32")
    >>> u, residual = keras.layers.Dense(1)(t), keras.layers.Dense(1)(t)  # In place of u' + u.
    >>> decay = PointWeights(1000, "causal", name="decay")
    >>> model = keras.Model([t, index], decay(u, residual, index))
    >>> model.compile("adam")  # To train: fit([times, np.arange(1000)]).
    >>> [float(x) for x in decay.point_weights()[:2]]
    [1.0, 1.0]
    """

    _is_gathered = True

    def __init__(
        self,
        points: int,
        rule: str | Config | PointRule = "residual",
        weight: Weight = 1.0,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
    ):
        super().__init__(name=name, **kwargs)
        self.points = validate_count(points, "points")
        self.rule = get(rule)
        dtype = float_dtype(keras.config.floatx())
        self._state = {
            part: layer_state(
                f"{self.name}_point_{part}",
                np.shape(initial),
                initial,
                dtype,
                aggregation="only_first_replica",
            )
            for part, initial in self.rule.initial_state(self.points).items()
        }
        self._point_state = as_state(self._state.values())
        readings = {"min_weight": lambda: ops.min(self.point_weights())}
        self._create_weight(weight, readings, {"value": lambda mean: mean}, self.rule.schedules)

    def point_weights(self) -> Tensor:
        """Returns the weight of each point now, `(points,)`."""
        return self._weights(self._current_state())

    def call(
        self,
        inputs: Nested,
        residual: Tensor,
        index: Tensor,
        sample_weight: Weights = None,
        training: bool | None = None,
    ) -> Nested:
        self._validate(residual, index, sample_weight)
        compute = partial(self._compute_loss, index, sample_weight, is_training(training))
        self._defer(compute, residual, (inputs, residual, index, sample_weight))
        return inputs

    def _validate(self, residual, index, sample_weight) -> None:
        shape, index_shape = tuple(np.shape(residual)), tuple(np.shape(index))
        is_vector = len(index_shape) == 1 or index_shape[1:] == (1,)
        sizes = {x for x in (*shape[:1], *index_shape[:1]) if x is not None}
        if not shape or None in shape[1:] or not is_vector or len(sizes) > 1:
            raise ValueError(
                f"{self.name!r} expects residuals of shape (batch, ...) and indices of shape "
                f"(batch,). Received: shape={shape} and shape={index_shape}"
            )
        dtype = keras.backend.standardize_dtype(getattr(index, "dtype", None) or "int32")
        if "int" not in dtype:
            raise ValueError(f"{self.name!r} expects integers as indices. Received: dtype={dtype}")
        validate_item_weights(sample_weight, shape[0], self.name)

    def _validate_values(self, index) -> None:
        values = host_values(index)
        if values is None or not values.size:
            return
        if values.min() < _NO_POINT or values.max() >= self.points:
            raise ValueError(
                f"{self.name!r} expects indices of points, from 0 to {self.points - 1}, or "
                f"{_NO_POINT} for a point without a weight. Received: indices from "
                f"{values.min()} to {values.max()}"
            )

    def _compute_loss(self, index, sample_weight, training, tensors) -> CallLoss:
        self._validate_values(index)
        residual = ops.convert_to_tensor(tensors[0])
        dtype = float_dtype(residual.dtype)
        residual = ops.reshape(residual, (-1, math.prod(residual.shape[1:])))
        residual = ops.cast(residual, dtype)
        index = ops.cast(ops.reshape(index, (-1,)), "int32")
        is_point = ops.logical_and(index >= 0, index < self.points)
        if sample_weight is not None:
            sample_weight = ops.reshape(ops.cast(sample_weight, dtype), (-1,))
            sample_weight = ops.broadcast_to(sample_weight, ops.shape(residual)[:1])
            residual = ops.where(ops.not_equal(sample_weight, 0)[:, None], residual, 0)
        square = ops.sum(ops.square(residual), axis=1) / residual.shape[1]
        state = self._current_state()
        if training:
            state = self._updated(state, square, index, is_point, sample_weight)
        weights = ops.take(self._weights(state), ops.where(is_point, index, 0))
        others = ops.where(ops.equal(index, _NO_POINT), 1.0, math.nan)
        weights = ops.where(is_point, ops.cast(weights, dtype), ops.cast(others, dtype))
        values = ops.stack([ops.stop_gradient(weights) * square, square], axis=1)
        # With point weights, and without.
        means, items, valid = mean_over_items(
            lambda valid: values if valid is None else ops.where(valid[:, None], values, 0),
            ops.cast(ops.shape(square)[0], dtype),
            None,
            sample_weight,
            is_weighted_mean=False,
            over_replicas=current_replicas().count > 1,
        )
        value = {"value": (means[1] * items, items)}
        kept = state if training else None
        return CallLoss(means[0], items, valid, training is not False, None, value, kept)

    def _keep(self, found):
        for part, variable in self._state.items():
            value = ops.cast(found.kept[part], variable.dtype)
            if self.weight.drops:
                value = ops.where(found.is_good, value, ops.copy(variable))
            variable.assign(value)

    def _current_state(self):
        return {part: ops.copy(ops.convert_to_tensor(x)) for part, x in self._state.items()}

    def _weights(self, state):
        scheduled = {name: self.weight.annealed_values()[name] for name in self.rule.schedules}
        return self.rule.weights(state, **scheduled)

    def _updated(self, state, square, index, is_point, sample_weight):
        """Returns the state after a step with squared residuals, `(batch,)`."""
        square, valid = ops.stop_gradient(square), is_point
        if sample_weight is not None:
            valid = ops.logical_and(valid, ops.not_equal(sample_weight, 0))
        if current_replicas().count > 1:
            batch, _ = global_batch(Batch(square[:, None, None], index, valid))
            square = ops.stop_gradient(batch.views[:, 0, 0])
            index, valid = batch.labels, batch.mask
        valid = ops.logical_and(valid, ops.isfinite(square))
        parts = [ops.where(valid, square, 0), ops.cast(valid, square.dtype)]
        # Of a point that is several times in the batch, the mean: an order would be undefined.
        sums = ops.segment_sum(
            ops.stack(parts, axis=1), ops.where(valid, index, 0), num_segments=self.points
        )
        is_seen = sums[:, 1] > 0
        residual = ops.sqrt(divide_or_0(sums[:, 0], sums[:, 1]))
        return self.rule.update(state, residual, is_seen)

    def compute_output_spec(
        self,
        inputs: Nested,
        residual: Tensor,
        index: Tensor,
        sample_weight: Weights = None,
        **kwargs: Any,
    ) -> Nested:
        self._validate(residual, index, sample_weight)
        return keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, dtype=x.dtype, sparse=x.sparse), inputs
        )

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> Nested:
        return mask

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        for part, variable in self._state.items():
            store[f"point_{part}"] = to_numpy(variable)

    def _load(self, store):
        super()._load(store)
        state = self._saved_state(store)
        for part, variable in self._state.items():
            minimum = self.rule.minimum.get(part, -math.inf)
            variable.assign(state.array(f"point_{part}", variable.shape, minimum))

    def get_config(self) -> Config:
        return {
            **super().get_config(),
            "points": self.points,
            "rule": keras.saving.serialize_keras_object(self.rule),
        }

    @classmethod
    def from_config(cls, config: Config) -> "PointWeights":
        return cls(**{**config, "weight": deserialize_weight(config.get("weight"))})
