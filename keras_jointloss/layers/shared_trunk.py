"""The layer that combines the gradients of several terms with respect to a trunk's parameters."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_jointloss import _keras
from keras_jointloss._math import float_dtype
from keras_jointloss.layers._gradient_combination import GradientCombination
from keras_jointloss.layers.contrastive_term import ContrastiveTerm


@keras.saving.register_keras_serializable(package="keras_jointloss")
class SharedTrunk(GradientCombination):
    """Wraps a trunk and combines the gradients of several terms with respect to its parameters.

    In the forward pass the layer returns the output of the trunk once for each term. In the
    backward pass each parameter of the trunk gets

        sum_i w_i g_i

    in place of the sum. The `g_i = d term_i / d theta` are the gradients of the weighted terms with
    respect to all trainable parameters `theta` of the trunk. An aggregator maps their Gramian to
    the k coefficients `w_i`. Its guarantees thus hold for a step of gradient descent on the
    parameters. `GradientBalancer` costs far less, but takes the gradients with respect to the
    output of the trunk.

    A training step costs k forward and k backward passes of the trunk, and the memory of k
    gradients. All passes use the same random numbers. Statistics, such as those of batch
    normalization, are updated only once. The argument `training` goes to the trunk: a call with
    `training=False` freezes batch normalization, and the gradients are combined whenever the
    enclosing model trains. In `evaluate`, `predict` and an exported model the trunk runs once.
    Under `tf.distribute.MirroredStrategy` the gradients are those of the global batch.

    Layers below the trunk get the plain sum, as do the trunk's parameters from regularizers.

    Args:
        trunk: A layer or model.
        terms: As in `GradientBalancer`.
        aggregator: As in `GradientBalancer`.
        rescale: As in `GradientBalancer`.
        telemetry: As in `GradientBalancer`.
        name: Name of the layer.
        **kwargs: `dtype`, as in `keras.layers.Layer`.

    Input shape:
        The input shape of the trunk.

    Output shape:
        A dict with the output of the trunk for each term.

    Raises:
        ValueError: If an argument is invalid, or the trunk contains a layer that adds to the loss
            or combines gradients itself.

    References:
        - Sener and Koltun, 2018, Multi-Task Learning as Multi-Objective Optimization

    Example:

    >>> import keras
    >>> inputs = keras.Input((8,))
    >>> trunk = keras.Sequential([keras.layers.Dense(16, activation="relu")])
    >>> z = SharedTrunk(trunk, ["label", "rating"], aggregator="upgrad")(inputs)
    >>> outputs = {
    ...     "label": keras.layers.Dense(3)(z["label"]),
    ...     "rating": keras.layers.Dense(1)(z["rating"]),
    ... }
    >>> model = keras.Model(inputs, outputs)
    >>> model.compile("adam", loss=dict.fromkeys(outputs, "mean_squared_error"))
    """

    def __init__(
        self,
        trunk: keras.layers.Layer,
        terms: Sequence[str],
        aggregator: Any = "pcgrad",
        rescale: bool = True,
        telemetry: bool = True,
        name: str | None = None,
        **kwargs,
    ):
        # The parameters are the only row. Each replica sees the gradients of its own items.
        super().__init__(terms, aggregator, "sum", rescale, telemetry, name, **kwargs)
        if not isinstance(trunk, keras.layers.Layer):
            raise ValueError(
                "Invalid value for argument `trunk`. Expected a layer or a model. "
                f"Received: trunk={trunk!r}"
            )
        for layer in _keras.flatten_layers(trunk):
            if isinstance(layer, ContrastiveTerm | GradientCombination):
                raise self._adds_losses(layer)
        self.trunk = trunk
        self.supports_masking = trunk.supports_masking

    @staticmethod
    def _adds_losses(layer) -> ValueError:
        return ValueError(
            "Invalid value for argument `trunk`. Expected a trunk in which no layer adds to the "
            f"loss or combines gradients. Received: a trunk with {layer!r}"
        )

    def build(self, input_shape=None):
        if not self.trunk.built:
            self.trunk.build(input_shape)
        super().build(input_shape)

    def call(self, inputs, training=None):
        parameters = self.trunk.trainable_variables
        values = [ops.convert_to_tensor(variable) for variable in parameters]
        if not parameters or not self._is_trained(training, values):
            return dict.fromkeys(self.terms, self._run(inputs, training))
        dtype = float_dtype(*(value.dtype for value in values))
        joined = ops.concatenate([ops.reshape(ops.cast(x, dtype), (1, -1)) for x in values], axis=1)
        others = [variable for variable in self.trunk.variables if not variable.trainable]
        state = [(variable, ops.copy(variable)) for variable in others]
        outputs, updated = {}, []
        for term, copy in zip(self.terms, self._copies(joined), strict=True):
            mapping = [*zip(parameters, _split(copy[0], values), strict=True), *state]
            with keras.StatelessScope(mapping, collect_losses=True) as scope:
                outputs[term] = self._run(inputs, training)
            if scope.losses:
                raise self._adds_losses(self.trunk)
            updated = [scope.get_current_value(variable) for variable in others]
        for variable, value in zip(others, updated, strict=True):
            variable.assign(value)
        return outputs

    def _run(self, inputs, training):
        options = {"training": training} if _keras.takes_training(self.trunk) else {}
        return self.trunk(inputs, **options)

    def compute_output_spec(self, inputs, training=None):
        spec = self.trunk.compute_output_spec(inputs)
        return {
            term: keras.tree.map_structure(
                lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), spec
            )
            for term in self.terms
        }

    def compute_mask(self, inputs, mask=None):
        return dict.fromkeys(self.terms, self.trunk.compute_mask(inputs, mask))

    def get_config(self) -> dict:
        config = super().get_config()
        del config["reduction"]
        return {**config, "trunk": keras.saving.serialize_keras_object(self.trunk)}

    @classmethod
    def from_config(cls, config: dict) -> "SharedTrunk":
        trunk = keras.saving.deserialize_keras_object(config["trunk"])
        return cls(**{**config, "trunk": trunk})


def _split(vector, like):
    """Splits a vector into parts with the shapes and dtypes of other tensors."""
    parts, start = [], 0
    for x in like:
        end = start + math.prod(x.shape)
        parts.append(ops.cast(ops.reshape(vector[start:end], x.shape), x.dtype))
        start = end
    return parts
