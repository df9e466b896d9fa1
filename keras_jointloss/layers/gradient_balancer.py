"""The layer that combines the gradients of several terms where their heads leave the trunk."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_jointloss import aggregators
from keras_jointloss._math import float_dtype, upstream_of
from keras_jointloss._validation import validate_choice
from keras_jointloss.distribution import replica_count, sum_over_replicas


@keras.saving.register_keras_serializable(package="keras_jointloss")
class GradientBalancer(keras.layers.Layer):
    """Combines the gradients of several terms into one, between a shared trunk and its heads.

    Forward it is the identity: it returns what it is called with, `z`, once for each term, and the
    head of a term reads `z[term]`. Backward it receives the gradients `g_i = d term_i / dz` of all
    k terms, weighted as the terms are. From the Gramian of their inner products an aggregator makes
    k coefficients, and what goes on to the trunk is

        sum_i w_i g_i

    in place of the sum. The heads get their own gradients, unchanged. It is one backward pass
    through the trunk, as in training on the sum, in any optimizer, in stock `fit`.

    It looks at the gradients with respect to `z`, not with respect to the trunk's parameters. What
    an aggregator promises, as that no term gets worse in first order, holds of a step of `z`
    itself; of the trunk's parameters, which move `z` for all items at once, it need not hold. What
    reaches the trunk past the layer, as regularization does, is not balanced.

    In `evaluate`, `predict` and an exported model the layer computes nothing. Under
    `tf.distribute.MirroredStrategy` the Gramian is that of the global batch: all replicas use the
    same coefficients, those of one device.

    Args:
        terms: The names of the terms, whose order is that of `preference` of the aggregator.
        aggregator: A rule of `keras_jointloss.aggregators`, by instance or by name; `None` for the
            sum. Most rules (not `"pcgrad"`, `"sum"`) give a gradient of the size of the mean, not
            of the sum: the learning rate may have to grow.
        reduction: What the gradients are compared by: `"flatten"`, batch and features, or `"sum"`,
            their sums over the batch.
        rescale: Whether `"nash_mtl"` and `"imtl_g"`, by name, give the gradient the length of the
            mean gradient. It goes for the name alone: an instance has its own setting.
        name: Name of the layer.
        **kwargs: `dtype`, as in `keras.layers.Layer`.

    Input shape:
        `(batch, ...)`, or a structure (a list, a dict) of such tensors with the same batch and
        dtype, whose gradients are balanced together.

    Output shape:
        For each term the input: a dict.

    Raises:
        ValueError: If an argument is invalid, or the aggregator needs the losses, which are not
            known in the backward pass, or smooths its coefficients, of which the layer keeps none.

    References:
        - Sener and Koltun, 2018, Multi-Task Learning as Multi-Objective Optimization (the gradients
          with respect to the representation, which bound those of the parameters)

    Example:

    >>> import keras
    >>> inputs = keras.Input((8,))
    >>> trunk = keras.layers.Dense(16, activation="relu")(inputs)
    >>> z = GradientBalancer(["label", "rating"], aggregator="mgda")(trunk)
    >>> outputs = {
    ...     "label": keras.layers.Dense(3)(z["label"]),
    ...     "rating": keras.layers.Dense(1)(z["rating"]),
    ... }
    >>> model = keras.Model(inputs, outputs)
    >>> model.compile("adam", loss=dict.fromkeys(outputs, "mean_squared_error"))
    """

    def __init__(
        self,
        terms: Sequence[str],
        aggregator: Any = "pcgrad",
        reduction: str = "flatten",
        rescale: bool = True,
        name: str | None = None,
        **kwargs,
    ):
        # Without autocasting what it hands on is what it got.
        super().__init__(name=name, autocast=False, **kwargs)
        self.supports_masking = True
        is_list = isinstance(terms, Sequence) and not isinstance(terms, str)
        if (
            not is_list
            or not terms
            or not all(isinstance(term, str) for term in terms)
            or len(set(terms)) < len(terms)
        ):
            raise ValueError(
                "Invalid value for argument `terms`. Expected a list of different names, one or "
                f"more. Received: terms={terms!r}"
            )
        self.terms = tuple(terms)
        self.reduction = validate_choice(reduction, "reduction", ("flatten", "sum"))
        self.rescale = bool(rescale)
        self.aggregator = aggregators.get("sum" if aggregator is None else aggregator)
        if isinstance(aggregator, str) and not self.rescale:
            self.aggregator.rescale = False
        if "losses" in self.aggregator.inputs or self.aggregator.ema:
            raise ValueError(
                "Invalid value for argument `aggregator`. Expected one that needs neither the "
                "losses nor its coefficients of the step before. Received: aggregator="
                f"{type(self.aggregator).__name__} with {self.aggregator.get_config()}"
            )

    def build(self, input_shape):
        # Aggregators draw random numbers from it.
        self._step = self.add_weight(
            name="step",
            shape=(),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )

    def call(self, inputs, training=None):
        # `None` in a model whose `call` takes no `training`.
        if training is False or len(self.terms) == 1:
            return dict.fromkeys(self.terms, inputs)
        step = ops.copy(self._step)
        if "step" in self.aggregator.inputs:
            self._step.assign(step + 1)
        tensors = keras.tree.flatten(inputs)
        sizes = [math.prod(x.shape[1:]) for x in tensors]
        joined = ops.concatenate(
            [ops.reshape(x, (-1, size)) for x, size in zip(tensors, sizes, strict=True)], axis=1
        )
        copies = self._copies(joined, step)  # (terms, batch, features)
        ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]

        def unjoined(copy):
            parts = [
                ops.reshape(copy[:, end - size : end], (-1, *x.shape[1:]))
                for x, size, end in zip(tensors, sizes, ends, strict=True)
            ]
            return keras.tree.pack_sequence_as(inputs, parts)

        return {term: unjoined(copies[index]) for index, term in enumerate(self.terms)}

    def _copies(self, x, step):
        """Returns a copy for each term, whose gradients are combined on the way back."""

        def compute(x):
            def gradient(*arguments, upstream=None):
                return self._combined(upstream_of(arguments, upstream), step)

            return ops.stack([x] * len(self.terms)), gradient

        return ops.custom_gradient(compute)(x)

    def _combined(self, upstream, step):
        """Returns the combination of the terms' gradients, `(terms, batch, features)`."""
        gradients = ops.cast(upstream, float_dtype(upstream.dtype))
        replicas = replica_count()
        if self.reduction == "sum":
            rows = sum_over_replicas(ops.sum(gradients, axis=1))
        else:
            rows = ops.reshape(gradients, (len(self.terms), -1))
        # Squares could leave the range of the dtype. Each replica would have a scale of its own.
        largest = ops.max(ops.absolute(rows)) if replicas == 1 else ops.ones_like(rows[0, 0])
        scale = ops.where(largest == 0, 1, largest)
        rows = rows / scale
        gramian = ops.einsum("im,jm->ij", rows, rows)
        if self.reduction == "flatten":
            gramian = sum_over_replicas(gramian)
        coefficients = self.aggregator.solve(gramian, step=step)
        if self.aggregator.degree and not self.aggregator.rescale:
            coefficients = coefficients * scale**self.aggregator.degree
        combined = ops.sum(coefficients[:, None, None] * gradients, axis=0)
        return ops.cast(combined, upstream.dtype)

    def compute_output_spec(self, inputs, training=None):
        return {
            term: keras.tree.map_structure(
                lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), inputs
            )
            for term in self.terms
        }

    def compute_mask(self, inputs, mask=None):
        return dict.fromkeys(self.terms, mask)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "terms": list(self.terms),
            "aggregator": keras.saving.serialize_keras_object(self.aggregator),
            "reduction": self.reduction,
            "rescale": self.rescale,
        }
