"""The layer that combines the gradients of several terms with respect to a trunk's parameters."""

import math
from collections.abc import Sequence
from typing import Any, Unpack

import keras
from keras import ops

from keras_jointloss._core import keras as _keras
from keras_jointloss._core.batch import validate_batch_axis
from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.types import Config, LayerOptions, Nested
from keras_jointloss._core.validation import invalid
from keras_jointloss.aggregators import Aggregator
from keras_jointloss.layers.gradients._calls import StepMemory
from keras_jointloss.layers.gradients._combination import Copies, GradientCombination
from keras_jointloss.layers.gradients._trunk_run import (
    run_for_terms,
    validate_built_trunk,
    validate_trunk,
)


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

    The layer may be called several times in a step, as for terms with inputs of their own, a
    siamese model, or points inside and on the edge of an equation. The gradients `g_i` are then
    those of all calls, as if all inputs were one batch, and are combined once. This holds for calls
    within one call of the outermost model. Several calls of that model in one step of training, or
    direct calls of the layer, are combined each on its own, with a warning.

    The trunk keeps its state, also that of a stateful RNN. It is one layer with one input, which
    may be a list or a dict; wrap a layer with several inputs in a `keras.Model`. The layer refuses
    trunks that add to the loss, assign to their own parameters, or hold variables that are not of
    Keras. On TensorFlow it refuses one that recomputes a function with `keras.remat`; a trunk in a
    `ChunkedTower` is recomputed on all backends.

    Without any trainable parameter in the trunk there is nothing to combine, and there are no
    statistics. Layers below the trunk get the plain sum, as do the trunk's parameters from
    regularizers.

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
        ValueError: If an argument is invalid, or the trunk is one that the layer refuses. The
            latter is partly known only in training.

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

    several_calls = (
        "is called in several outermost calls that belong to one step of training, and combines "
        "the gradients within each of them only. Put all its calls into one model that is called "
        "once in a step."
    )

    def __init__(
        self,
        trunk: keras.layers.Layer,
        terms: Sequence[str],
        aggregator: str | Config | Aggregator | None = "pcgrad",
        rescale: bool = True,
        telemetry: bool = True,
        name: str | None = None,
        **kwargs: Unpack[LayerOptions],
    ):
        # The parameters are the only row. Each replica sees the gradients of its own items.
        super().__init__(terms, aggregator, "sum", rescale, telemetry, name, **kwargs)
        if not isinstance(trunk, keras.layers.Layer):
            raise invalid("trunk", "a layer or a model", trunk)
        validate_trunk(trunk)
        self.trunk = trunk
        self.supports_masking = trunk.supports_masking
        self._memory = StepMemory()

    @property
    def compute_dtype(self) -> str:
        # In an outermost call, Keras would cast all variables that `call` reads to another one.
        return self.variable_dtype

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Nested]:
        unknown = kwargs.keys() - {"inputs", "training"}
        if len(args) + ("inputs" in kwargs) != 1 or unknown:
            raise ValueError(
                "Expected one input of the `SharedTrunk`, which may be a list or a dict. Wrap a "
                "trunk with several inputs in a model, `keras.Model([a, b], layer(a, b))`. "
                f"Received: {len(args)} positional arguments and {sorted(unknown)}"
            )
        return super().__call__(*args, **kwargs)

    def build(self, input_shape: Nested = None) -> None:
        validate_batch_axis(input_shape, self.name)
        if not self.trunk.built:
            self.trunk.build(input_shape)
        validate_built_trunk(self.trunk)
        super().build(input_shape)

    def call(self, inputs: Nested, training: bool | None = None) -> dict[str, Nested]:
        parameters = self.trunk.trainable_variables
        values = [variable.value for variable in parameters]
        if not parameters or not self._precedes_backward(training, values):
            return dict.fromkeys(self.terms, self._run(inputs, training))
        copies = self._memory.get(values, lambda: self._copies_of(parameters))
        # On JAX, Keras may treat each call as the first one and forget the earlier losses.
        if not any(loss is copies.probe for loss in _keras.own_losses(self)):
            self.add_loss(copies.probe)
        of_terms = dict(zip(self.terms, copies.of_terms, strict=True))
        return run_for_terms(self.trunk, lambda: self._run(inputs, training), parameters, of_terms)

    def _copies_of(self, parameters) -> Copies:
        """Returns the copies of the parameters, for each term a list."""
        values = [ops.convert_to_tensor(variable) for variable in parameters]
        dtype = float_dtype(*(value.dtype for value in values))
        joined = ops.concatenate([ops.reshape(ops.cast(x, dtype), (1, -1)) for x in values], axis=1)
        copies = self._copies(joined)
        return Copies([_split(copy[0], values) for copy in copies.of_terms], copies.probe)

    def _run(self, inputs, training):
        options = {"training": training} if _keras.takes_training(self.trunk) else {}
        return self.trunk(inputs, **options)

    def compute_output_spec(
        self, inputs: Nested, training: bool | None = None
    ) -> dict[str, Nested]:
        return self._spec_for_terms(self.trunk.compute_output_spec(inputs))

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> dict[str, Nested]:
        return dict.fromkeys(self.terms, self.trunk.compute_mask(inputs, mask))

    def get_config(self) -> Config:
        config = super().get_config()
        del config["reduction"]
        return {**config, "trunk": keras.saving.serialize_keras_object(self.trunk)}

    @classmethod
    def from_config(cls, config: Config) -> "SharedTrunk":
        return cls(**{**config, "trunk": deserialized(config.get("trunk"), "trunk")})


def _split(vector, like):
    """Splits a vector into parts with the shapes and dtypes of other tensors."""
    parts, start = [], 0
    for x in like:
        end = start + math.prod(x.shape)
        parts.append(ops.cast(ops.reshape(vector[start:end], x.shape), x.dtype))
        start = end
    return parts
