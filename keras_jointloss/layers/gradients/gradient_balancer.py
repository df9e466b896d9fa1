"""The layer that combines the gradients of several terms between a trunk and its heads."""

import math

import keras
from keras import ops

from keras_jointloss._core.batch import check_numbers
from keras_jointloss._core.types import Nested
from keras_jointloss._core.validation import invalid
from keras_jointloss.layers.gradients._combination import GradientCombination


@keras.saving.register_keras_serializable(package="keras_jointloss")
class GradientBalancer(GradientCombination):
    """Combines the gradients of several terms into one, between a shared trunk and its heads.

    In the forward pass the layer is the identity: it returns its input `z` once for each term, and
    the head of a term reads `z[term]`. In the backward pass it receives the gradients
    `g_i = d term_i / dz` of all k weighted terms. An aggregator maps the Gramian of their inner
    products to k coefficients, and the layer passes

        sum_i w_i g_i

    to the trunk in place of the sum. The heads get their own gradients, unchanged. Training takes
    one backward pass through the trunk, as on the sum, with any optimizer and in stock `fit`.

    The gradients are taken with respect to `z`, not to the trunk's parameters. An aggregator's
    guarantees, such as that no term gets worse to first order, hold for a step of `z` itself. They
    need not hold for the trunk's parameters, which move `z` for all items at once: see
    `SharedTrunk` for that. Gradients that bypass the layer, such as those of regularization, are
    not balanced.

    To combine the gradients at several tensors, call the layer once with a list of them. Their
    batch sizes may differ, as those of inputs for different terms do. Several calls in one step of
    training cannot be combined, since some gradients arrive before others: the layer combines
    within each call, records one of them, and warns. `SharedTrunk` combines all calls of a trunk.

    Telemetry: the layer records the lengths of the gradients, the cosines of the angles between
    them, the share of the steps in which they conflicted, and the coefficients. `statistics()`
    returns the means, and the `keras_jointloss.callbacks.JointLossCallback` logs them every epoch.
    With `aggregator=None` the layer adds nothing else to plain training. The lengths are those of
    the weighted terms, without the loss scale of mixed precision. There are statistics also if
    nothing before the layer is trained.

    On JAX the record of a step can only leave the backward pass as the "gradient" of a variable.
    This variable therefore counts as trainable there, in `model.summary()`, too: `2 k (k + 3)`
    numbers that no optimizer trains, and twice the state of the aggregator. If the optimizer
    accumulates gradients over batches, the record holds the last of these, provided that a
    `JointLossCallback` takes part. An optimizer with `ema_overwrite_frequency` is refused, since
    Keras fails on such a variable: train without `telemetry` then, and with an aggregator that has
    neither `ema` nor a state.

    The layer balances whenever the enclosing model trains: in each training step of Keras, and in
    a direct call of the model with `training=True`. The argument `training` of the layer itself
    does not switch it off, such as the `training=False` that freezes batch normalization. Where a
    custom step itself calls the model with `training=False`, as for pseudo labels, and in
    `evaluate`, `predict` and an exported model the layer computes nothing. In a direct call of a
    model whose `call` takes no argument `training`, the layer cannot detect this. It then copies
    its inputs, and within a gradient on JAX it also counts the call as a step and warns. Under
    `tf.distribute.MirroredStrategy` the Gramian is that of the global batch: all replicas use the
    same coefficients as a single device would.

    Args:
        terms: The names of the terms, in the order of the aggregator's `preference`: of layer terms
            or outputs. Several losses of one output have one gradient, under the name of the
            output. A loss that a custom layer adds has the name of that layer. A copy that serves
            several terms may have any name.
        aggregator: A rule of `keras_jointloss.aggregators`, as an instance or by name; `None` for
            the sum. Most rules give a gradient of the size of the mean, not of the sum (as `"sum"`,
            `"pcgrad"`, `"grad_vac"`, `"con_fig"` and `"db_mtl"` do), and may need a larger learning
            rate. The layer keeps the state of a rule that has one, and saves it.
        reduction: How to compare the gradients: `"flatten"`, over batch and features, or `"sum"`,
            by their sums over the batch.
        rescale: Whether `"nash_mtl"`, `"fair_grad"` and `"imtl_g"`, by name, give the gradient the
            length of the mean gradient. This applies only to names: an instance has its own
            setting.
        telemetry: Whether to keep `statistics`.
        name: Name of the layer.
        **kwargs: `dtype`, as in `keras.layers.Layer`.

    Input shape:
        `(batch, ...)`, or a structure (a list, a dict) of such floating-point tensors of one dtype,
        whose gradients are balanced together.

    Output shape:
        A dict with the input for each term.

    Raises:
        ValueError: If an argument is invalid, or the aggregator needs the losses, which are unknown
            in the backward pass; when called, if the input is anything else; at the start of `fit`
            with a `keras_jointloss.callbacks.JointLossCallback`, if the head of a term does not
            read its copy.

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

    several_calls = (
        "is called several times in one step of training, and combines the gradients within each "
        "call only; its statistics cover one of the calls. Call it once, with a list of all the "
        "features, or use `SharedTrunk`, which combines the gradients of all its calls."
    )

    def call(self, inputs: Nested, training: bool | None = None) -> dict[str, Nested]:
        tensors = _validated(inputs)
        if not self._precedes_backward(training, inputs):
            return dict.fromkeys(self.terms, inputs)
        joined, parts_of = _joined(tensors)
        copies = self._copies(joined, parts_of)
        self.add_loss(copies.probe)
        return {
            term: keras.tree.pack_sequence_as(inputs, parts_of(copy))
            for term, copy in zip(self.terms, copies.of_terms, strict=True)
        }

    def compute_output_spec(
        self, inputs: Nested, training: bool | None = None
    ) -> dict[str, Nested]:
        _validated(inputs)
        return self._spec_for_terms(inputs)

    def compute_mask(self, inputs: Nested, mask: Nested = None) -> dict[str, Nested]:
        return dict.fromkeys(self.terms, mask)


def _joined(tensors):
    """Returns the tensors joined into one, and the function that splits it or a stack of such."""
    if len(tensors) == 1:
        return tensors[0], lambda joined: [joined]
    # Keeps sizes static where they are known.
    shapes = [ops.shape(x) for x in tensors]
    sizes = [math.prod(shape) for shape in shapes]
    ends = [sum(sizes[: index + 1]) for index in range(len(sizes))]

    def parts_of(joined):
        stacks = ops.shape(joined)[:-1]
        return [
            ops.reshape(joined[..., end - size : end], (*stacks, *shape))
            for shape, size, end in zip(shapes, sizes, ends, strict=True)
        ]

    return ops.concatenate([ops.reshape(x, (-1,)) for x in tensors]), parts_of


def _validated(inputs) -> list:
    """Returns the tensors, or raises `ValueError` if they cannot be balanced as one."""
    tensors = keras.tree.flatten(inputs)
    for x in tensors:
        check_numbers(x, "inputs", "GradientBalancer")
    dtypes = {keras.backend.standardize_dtype(x.dtype) for x in tensors}
    is_one = len(dtypes) == 1 and all(len(x.shape) for x in tensors)
    if not is_one or not keras.backend.is_float_dtype(*dtypes):
        received = [(tuple(x.shape), keras.backend.standardize_dtype(x.dtype)) for x in tensors]
        expected = "floating-point tensors of one dtype with a batch axis"
        raise invalid("inputs", expected, received=f"inputs of shapes and dtypes {received}")
    return tensors
