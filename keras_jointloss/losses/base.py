"""The base of the losses on views."""

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_jointloss._labels import as_labels, check_labels, label_tensor, labelled
from keras_jointloss._masks import valid_items


class LearnedParameter(NamedTuple):
    """A parameter of a loss that `ContrastiveTerm` can train, within closed bounds."""

    initial: float
    minimum: float
    maximum: float


class _Reduction(keras.losses.Loss):
    """Reduces values that are there already, as Keras does after the `call` of any loss."""

    def __init__(self, values, reduction, dtype):
        super().__init__(reduction=reduction, dtype=dtype)
        self.values = values

    def call(self, y_true, y_pred):
        return self.values


class ViewsLoss(keras.losses.Loss):
    """Base of the losses that compare the views of each item.

    The views are two (or more) embeddings of the same item, stacked on axis 1. Of the loss function
    below it a subclass says

    - `function`: the stateless function `(views, labels, valid, **arguments) -> (batch,)`,
    - `label_kind`, `max_views`, `has_memory`: what the function can take,

    and hands the function's arguments, as keyword arguments, on to `__init__`, after checking them.
    They become attributes and stand in the config. One of them, `unlabelled`, is the base's: the
    label of items without a label.

    An item that the Keras mask of `y_pred`, `(batch,)`, leaves out, whose sample weight is 0 or
    whose label is `unlabelled` is excluded from the batch, as anchor, positive and negative.

    Labels that cannot be meant raise an error where their values can be read: called directly, and
    on PyTorch with tensors on the CPU. In a compiled training step nothing checks them. On JAX
    integers have 32 bits unless `jax_enable_x64` is set, and Keras cuts larger ids before a loss
    sees them in `fit`: replace ids by their index, `np.unique(ids, return_inverse=True)[1]`.

    Args:
        name: Name of the loss.
        reduction: As in `keras.losses.Loss`. The default is the mean over the batch.
        dtype: As in `keras.losses.Loss`. Labels keep their own dtype.
        **arguments: Those of the function, as they are to be kept, and `unlabelled`.

    Input shape:
        `y_pred`: `(batch, views, dim)`, float. `y_true`: labels, if the loss has any: `(batch,)` or
        `(batch, 1)`, or, for class labels, `(batch, classes)` with 1 for each class of an item and
        0 for the others. Labels of pairs are 1 for a pair that belongs together and 0 for one that
        does not. Else anything with the right batch size.

    Output shape:
        `(batch,)` from `call`, one value an item.

    Raises:
        ValueError: If the shape of `y_pred`, or of the labels, is another, or a label cannot be
            meant: one of a pair or in a row of classes that is not in [0, 1].
    """

    #: Computes the values.
    function: Any = None
    #: What labels say: `"pair"`, whether the views belong together; `"class"`, of what class the
    #: item is; `None`, nothing.
    label_kind: str | None = None
    #: How many views an item may have: 2 or, for `math.inf`, 2 or more.
    max_views: float = 2
    #: Whether the function takes a `memory` of other items' views.
    has_memory = False
    #: The names of what `parts` returns.
    part_names: tuple[str, ...] = ()
    #: The label of items without a label.
    unlabelled: int | None = None

    def __init__(self, name=None, reduction="sum_over_batch_size", dtype=None, **arguments):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self._argument_names = tuple(arguments)
        for argument, value in arguments.items():
            setattr(self, argument, value)

    @property
    def has_labels(self) -> bool:
        """Whether the loss needs labels."""
        return self.label_kind is not None or getattr(self, "same_label", None) is not None

    def values(self, views, labels=None, valid=None, **parameters):
        """Returns the loss of each item.

        Args:
            views: `(batch, views, dim)`, float.
            labels: `(batch,)` or `(batch, classes)`, or `None` where `has_labels` is false.
            valid: `(batch,)`, bool: which items take part. `None` for all.
            **parameters: Replace arguments of the loss, or add to them.

        Returns:
            `(batch,)`, of the dtype of `views`, float32 at least; 0 for excluded items.
        """
        if self.has_labels and labels is not None:
            labels = label_tensor(labels)
            valid = self.labelled(labels, valid)
            check_labels(labels, valid, type(self).__name__, self.label_kind == "pair")
        arguments = {**self._arguments(), **parameters}
        arguments.pop("unlabelled", None)  # `valid` says so.
        return type(self).function(views, labels, valid, **arguments)

    def labelled(self, labels, valid=None):
        """Returns which valid items have a label: `(batch,)`, bool, or `None` if all have one."""
        return labelled(labels, valid, self.unlabelled)

    def parts(self, views, labels=None, valid=None) -> dict[str, Any]:
        """Returns the parts of the loss that are worth logging by name, `(batch,)` each."""
        return {}

    def learned_parameters(self) -> dict[str, LearnedParameter]:
        """Returns the parameters that may be trained, by name.

        For a loss with a temperature it is CLIP's logarithm of the inverse temperature, kept
        between 0 and log 100.
        """
        if "temperature" not in self._argument_names:
            return {}
        return {"log_scale": LearnedParameter(-math.log(self.temperature), 0.0, math.log(100))}

    def arguments_of(self, learned: dict[str, Any]) -> dict[str, Any]:
        """Returns the arguments of the function that learned parameters stand for."""
        others = {name: value for name, value in learned.items() if name != "log_scale"}
        return {"temperature": ops.exp(-learned["log_scale"]), **others} if learned else {}

    def validate_views(self, shape) -> None:
        """Raises `ValueError` if `shape` is not that of stacked views."""
        views = shape[1] if len(shape) == 3 else 0
        if views is not None and not 2 <= views <= self.max_views:
            expected = "2" if self.max_views == 2 else "2 or more"
            raise ValueError(
                f"{type(self).__name__} expects stacked views of shape (batch, {expected}, dim). "
                f"Received: shape={tuple(shape)}"
            )

    def validate_labels(self, shape, batch_size: int | None = None) -> None:
        """Raises `ValueError` if `shape` is not that of one label, or row of classes, an item."""
        is_matrix = len(shape) == 2 and (shape[1] in (1, None) or self.label_kind != "pair")
        differs = len(shape) > 0 and None not in (shape[0], batch_size) and shape[0] != batch_size
        if differs or not (len(shape) == 1 or is_matrix):
            batch = batch_size or "batch"
            classes = "" if self.label_kind == "pair" else f" or ({batch}, classes)"
            raise ValueError(
                f"{type(self).__name__} expects labels of shape ({batch},) or ({batch}, 1)"
                f"{classes}. Received: shape={tuple(shape)}"
            )

    def _arguments(self):
        return {name: getattr(self, name) for name in self._argument_names}

    def get_config(self) -> dict:
        return {**super().get_config(), "dtype": self.dtype, **self._arguments()}

    def call(self, y_true, y_pred):
        return self._values(y_true, y_pred, None)

    def __call__(self, y_true, y_pred, sample_weight=None):
        with keras.name_scope(self.name):
            views = ops.convert_to_tensor(y_pred, dtype=self.dtype)
            self.validate_views(views.shape)
            values = self._values(y_true, views, valid_items(y_pred, sample_weight))
            # Keras finds the mask at the prediction.
            return _Reduction(values, self.reduction, self.dtype)(y_pred, y_pred, sample_weight)

    def _values(self, y_true, views, valid):
        self.validate_views(views.shape)
        if not self.has_labels:
            return self.values(views, None, valid)
        if y_true is None:
            raise ValueError(f"{type(self).__name__} expects labels. Received: y_true=None")
        labels = label_tensor(y_true)
        self.validate_labels(labels.shape, views.shape[0])
        return self.values(views, as_labels(labels), valid)


def get(identifier: Any) -> keras.losses.Loss:
    """Returns a loss by instance, by name or by config.

    Args:
        identifier: A `keras.losses.Loss`, the name of a class of `keras_jointloss.losses`
            (`"InfoNCE"`), a name that `keras.losses.get` knows as a class
            (`"MeanSquaredError"`), or the serialized form of a loss.

    Raises:
        ValueError: If there is no such loss.

    Example:

    >>> get("InfoNCE").name
    'info_nce'
    """
    if isinstance(identifier, keras.losses.Loss):
        return identifier
    if isinstance(identifier, dict):
        loss = keras.losses.deserialize(identifier)
        if isinstance(loss, keras.losses.Loss):
            return loss
    if isinstance(identifier, str):
        registered = keras.saving.get_registered_object(f"keras_jointloss>{identifier}")
        if registered is not None and issubclass(registered, ViewsLoss):
            return registered()
        loss = getattr(keras.losses, identifier, None)
        if isinstance(loss, type) and issubclass(loss, keras.losses.Loss):
            return loss()
    raise ValueError(
        "Expected a `keras.losses.Loss`, its config, or the name of a class in "
        f"`keras_jointloss.losses` or `keras.losses`. Received: loss={identifier!r}"
    )
