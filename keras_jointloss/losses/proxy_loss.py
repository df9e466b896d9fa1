"""The base class of the losses between embeddings and one proxy for each class."""

import math
from typing import TYPE_CHECKING, Any

from keras import ops

from keras_jointloss._core import batch as _batch
from keras_jointloss._core.backend import host_values
from keras_jointloss._core.keras_calls import running_loop
from keras_jointloss._core.math import float_dtype, value_range
from keras_jointloss._core.types import Config, Mask, Shape, Tensor
from keras_jointloss.losses._annealing import AnnealedArguments
from keras_jointloss.losses._proxies import cosines


class ProxyLoss(AnnealedArguments):
    """Base class of the losses that compare embeddings with one proxy for each class.

    A `keras_jointloss.layers.ProxyTerm` has the proxies and trains them. A subclass defines

    - `function`: the stateless function `(embeddings, proxies, labels, valid, **arguments)`, which
      returns the loss of each item, `(batch,)`,
    - `logits`, if the loss has others than the cosines,
    - `compares_items`: true if the loss of an item depends on the other items.

    It validates the function's arguments and passes them to `__init__` as keyword arguments. They
    become attributes and the config. Register it, so that models with it can be loaded:
    `keras.saving.register_keras_serializable`. An argument may be a
    `keras.optimizers.schedules.LearningRateSchedule`, which moves with the steps of the term's
    weight; the logs show it as `<term>_<argument>`, and the function receives a scalar.

    The function receives float32 or float64, zeros in place of embeddings that are excluded, and as
    labels either one class of each item, `(batch,)`, int32, or rows of classes,
    `(batch, classes)`, floats from 0 to 1. What it returns for excluded items is ignored, and
    an item whose embedding holds NaN or infinity has the loss NaN.

    Invalid labels raise an error if the host can read them: in a direct call, and on PyTorch with
    tensors on the CPU. In a compiled training step, the loss of such an item is NaN.

    Args:
        **arguments: The validated arguments of the function.

    Example:

    >>> def distance_to_proxy(embeddings, proxies, labels, valid=None):
    ...     own = ops.one_hot(labels, proxies.shape[0])
    ...     return ops.sum((embeddings - own @ proxies) ** 2, axis=1)
    >>> class DistanceToProxy(ProxyLoss):
    ...     function = staticmethod(distance_to_proxy)
    >>> values = DistanceToProxy().values([[1.0, 2.0]], [[1.0, 0.0], [0.0, 1.0]], [1])
    >>> [float(value) for value in values]
    [2.0]
    """

    #: The function that computes the values.
    function: Any = None
    #: Whether the loss of an item depends on the other items of the batch.
    compares_items = False

    if TYPE_CHECKING:  # The arguments, which are attributes.

        def __getattr__(self, name: str) -> Any: ...

    def __init__(self, **arguments: Any):
        self._argument_names = tuple(arguments)
        for argument, value in arguments.items():
            setattr(self, argument, value)

    def values(
        self, embeddings: Tensor, proxies: Tensor, labels: Tensor, valid: Mask = None
    ) -> Tensor:
        """Returns the loss of each item.

        Args:
            embeddings: `(batch, dim)`, float.
            proxies: `(classes, dim)`, float.
            labels: `(batch,)` or `(batch, 1)`, whole numbers from 0 to `classes - 1`, or
                `(batch, classes)` with 1 for each class of an item and 0 for the others.
            valid: `(batch,)`, bool: which items to include. `None` for all.

        Returns:
            `(batch,)`, of the dtype of the embeddings, at least float32; 0 for excluded items.

        Raises:
            ValueError: If the labels have the wrong shape, or a label is invalid.
        """
        embeddings, proxies = _floats(embeddings, proxies)
        labels = _batch.as_labels(_batch.label_tensor(labels))
        classes = proxies.shape[0]
        self.validate_labels(labels.shape, classes, embeddings.shape[0])
        _check_classes(labels, valid, classes, type(self).__name__)
        if valid is not None:
            valid = ops.convert_to_tensor(valid)
            embeddings = ops.where(valid[:, None], embeddings, 0)
            labels = ops.where(valid if len(labels.shape) == 1 else valid[:, None], labels, 0)
        labels, is_known = _as_classes(labels, classes, embeddings.dtype)
        arguments = {
            name: ops.cast(x, embeddings.dtype) if ops.is_tensor(x) else x
            for name, x in self._arguments_of_step().items()
        }
        values = type(self).function(embeddings, proxies, labels, valid, **arguments)
        factor = _batch.finite_items(embeddings[:, None])
        values = values * ops.where(is_known, factor, math.nan)
        return values if valid is None else ops.where(valid, values, 0)

    def logits(self, embeddings: Tensor, proxies: Tensor) -> Tensor:
        """Returns the logits of the classes without margin, `(batch, classes)`.

        Args:
            embeddings: `(batch, dim)`, float.
            proxies: `(classes, dim)`, float.

        Returns:
            The cosines, times the scale if the loss has one, of the dtype of the embeddings, at
            least float32.
        """
        cosine = cosines(*_floats(embeddings, proxies))
        return ops.cast(self._scale(self._arguments_of_step()), cosine.dtype) * cosine

    def _scale(self, arguments: Config) -> Tensor:
        """Returns the factor of the cosines in the logits."""
        return 1.0

    def validate_labels(self, shape: Shape, classes: int, batch_size: int | None = None) -> None:
        """Raises `ValueError` if `shape` does not hold one label or row of classes per item."""
        name = type(self).__name__
        _batch.validate_vector(shape, batch_size, name, may_be_classes=True)
        if len(shape) == 2 and shape[1] not in (1, classes, None):
            raise ValueError(
                f"{name} expects labels of shape (batch,) or (batch, {classes}), since there are "
                f"{classes} classes. Received: shape={tuple(shape)}"
            )

    def _arguments(self):
        return {name: getattr(self, name) for name in self._argument_names}

    def get_config(self) -> Config:
        return self._arguments()


def _floats(*tensors):
    """Returns tensors of the same dtype, float32 or float64."""
    converted = [ops.convert_to_tensor(x) for x in tensors]
    dtype = float_dtype(*(x.dtype for x in converted))
    return [ops.cast(x, dtype) for x in converted]


def _as_classes(labels, classes: int, dtype):
    """Returns the labels as the function of a loss takes them, and which of them are valid."""
    if len(labels.shape) == 2:
        rows = ops.cast(labels, dtype)
        return rows, ops.all((rows >= 0) & (rows <= 1), axis=1)
    if value_range(labels.dtype)[1] < 2**31 - 1:  # The number of classes may be larger.
        labels = ops.cast(labels, "int32")
    is_known = (labels >= 0) & (labels < classes)
    index = ops.cast(ops.where(is_known, labels, 0), "int32")
    return index, is_known & (ops.cast(index, labels.dtype) == labels)


def _check_classes(labels, valid, classes: int, name: str) -> None:
    """Raises `ValueError` if a valid item has a label out of range that the host can read."""
    if len(labels.shape) == 2:
        _batch.check_labels(labels, valid, name, "class")
        return
    values, included = host_values(labels), None if valid is None else host_values(valid)
    if values is None or (included is None and valid is not None):
        return
    values = values if included is None else values[included]
    is_bad = ~((values >= 0) & (values < classes) & (values == values.round()))
    # Keras builds a model with arbitrary values.
    if is_bad.any() and running_loop() != "compute_output_spec":
        raise ValueError(
            f"{name} expects labels from 0 to {classes - 1}, since there are {classes} classes; "
            f"`unlabelled` marks items without one. Received: the label {values[is_bad][0]}"
        )
