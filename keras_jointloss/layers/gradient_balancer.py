"""The layer that combines the gradients of several terms where their heads leave the trunk."""

import math

import keras
from keras import ops

from keras_jointloss.layers._gradient_combination import GradientCombination


@keras.saving.register_keras_serializable(package="keras_jointloss")
class GradientBalancer(GradientCombination):
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
    itself; of the trunk's parameters, which move `z` for all items at once, it need not hold: see
    `SharedTrunk` for that. What reaches the trunk past the layer, as regularization does, is not
    balanced.

    Telemetry: the layer keeps the lengths of the gradients, the cosines of the angles between them,
    in which share of the steps they were in conflict, and the coefficients. `statistics()` returns
    the means, and the `keras_jointloss.callbacks.JointLossCallback` logs them epoch by epoch. With
    `aggregator=None` they are all that the layer adds to plain training. Lengths are those of the
    weighted terms without the scale that mixed precision gives to the loss. There are none where
    nothing before the layer is trained. If the layer is called several times in a step, one of the
    calls counts: on JAX the first, elsewhere that whose backward pass comes last.

    On JAX the record of a step can only leave the backward pass as the "gradient" of a variable,
    which therefore counts as trainable there, in `model.summary()`, too: `2 k (k + 3)` numbers that
    no optimizer trains. Of the batches whose gradients the optimizer accumulates it holds the last
    there, if a `JointLossCallback` takes part; and with `ema_overwrite_frequency` an optimizer
    of Keras fails on such a variable there, unless `telemetry=False`.

    In `evaluate`, `predict` and an exported model the layer computes nothing. If `call` of the
    model around it takes no argument `training`, the layer cannot know: it copies its inputs then,
    and on JAX it also counts the call as a step, with a warning. Under
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
        telemetry: Whether to keep `statistics`.
        name: Name of the layer.
        **kwargs: `dtype`, as in `keras.layers.Layer`.

    Input shape:
        `(batch, ...)`, or a structure (a list, a dict) of such tensors of floating-point numbers
        with the same batch and dtype, whose gradients are balanced together.

    Output shape:
        For each term the input: a dict.

    Raises:
        ValueError: If an argument is invalid, or the aggregator needs the losses, which are not
            known in the backward pass; when called, if the input is anything else.

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

    def call(self, inputs, training=None):
        if not self._is_trained(training):
            return dict.fromkeys(self.terms, inputs)
        joined, parts_of = _joined(_validated(inputs))
        return {
            term: keras.tree.pack_sequence_as(inputs, parts_of(copy))
            for term, copy in zip(self.terms, self._copies(joined), strict=True)
        }

    def compute_output_spec(self, inputs, training=None):
        _validated(inputs)
        return {
            term: keras.tree.map_structure(
                lambda x: keras.KerasTensor(x.shape, dtype=x.dtype), inputs
            )
            for term in self.terms
        }

    def compute_mask(self, inputs, mask=None):
        return dict.fromkeys(self.terms, mask)


def _joined(tensors):
    """Returns the tensors as one, and the function that takes such a one apart."""
    if len(tensors) == 1:
        return tensors[0], lambda joined: [joined]
    # Of the static sizes as many as there are.
    shapes = [ops.shape(x)[1:] for x in tensors]
    sizes = [math.prod(shape) for shape in shapes]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]

    def parts_of(joined):
        return [
            ops.reshape(joined[:, end - size : end], (-1, *shape))
            for shape, size, end in zip(shapes, sizes, ends, strict=True)
        ]

    rows = [ops.reshape(x, (-1, size)) for x, size in zip(tensors, sizes, strict=True)]
    return ops.concatenate(rows, axis=1), parts_of


def _validated(inputs) -> list:
    """Returns the tensors, or raises `ValueError` if they cannot be balanced as one."""
    tensors = keras.tree.flatten(inputs)
    dtypes = {keras.backend.standardize_dtype(x.dtype) for x in tensors}
    has_batch = all(len(x.shape) for x in tensors)
    batches = {x.shape[0] for x in tensors if len(x.shape) and x.shape[0] is not None}
    is_one = len(dtypes) == 1 and has_batch and len(batches) <= 1
    if not is_one or not keras.backend.is_float_dtype(*dtypes):
        received = [(tuple(x.shape), keras.backend.standardize_dtype(x.dtype)) for x in tensors]
        raise ValueError(
            "Invalid value for argument `inputs`. Expected floating-point tensors of one batch and "
            f"one dtype. Received: inputs of shapes and dtypes {received}"
        )
    return tensors
