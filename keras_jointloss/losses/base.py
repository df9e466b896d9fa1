"""The base of the losses on views."""

import math
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_jointloss._masks import valid_items
from keras_jointloss._math import SIMILARITIES
from keras_jointloss._validation import validate_choice, validate_count, validate_number


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

    and hands the function's arguments, as keyword arguments, on to `__init__`. They become
    attributes and stand in the config.

    An item that the Keras mask of `y_pred`, `(batch,)`, leaves out, or whose sample weight is 0, is
    no part of the batch: neither an anchor nor a positive nor a negative.

    Args:
        name: Name of the loss.
        reduction: As in `keras.losses.Loss`. The default is the mean over the batch.
        dtype: As in `keras.losses.Loss`. Labels keep their own dtype.
        **arguments: Those of the function.

    Input shape:
        `y_pred`: `(batch, views, dim)`, float. `y_true`: labels, if the loss has any: `(batch,)` or
        `(batch, 1)`, or, for class labels, `(batch, classes)` with 1 for each class of an item and
        0 for the others. Else anything with the right batch size.

    Output shape:
        `(batch,)` from `call`, one value an item.

    Raises:
        ValueError: If the shape of `y_pred`, or of the labels, is another.
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

    def __init__(self, name=None, reduction="sum_over_batch_size", dtype=None, **arguments):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self._argument_names = tuple(arguments)
        for argument, value in arguments.items():
            setattr(self, argument, _validated(argument, value))
        if getattr(self, "similarity", None) == "euclidean" and getattr(self, "tile_size", None):
            raise ValueError(
                "Invalid value for argument `tile_size`. Expected None, since Euclidean distances "
                f"are not computed in tiles. Received: tile_size={self.tile_size!r}"
            )

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
            `(batch,)`, of the dtype of `views`, float32 at least; 0 for items that take no part.
        """
        arguments = {name: getattr(self, name) for name in self._argument_names}
        return type(self).function(views, labels, valid, **{**arguments, **parameters})

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

    def get_config(self) -> dict:
        arguments = {name: getattr(self, name) for name in self._argument_names}
        return {**super().get_config(), "dtype": self.dtype, **arguments}

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
        labels = ops.convert_to_tensor(y_true)
        self.validate_labels(labels.shape, views.shape[0])
        return self.values(views, as_labels(labels), valid)


def as_labels(labels):
    """Returns labels of shape `(batch, 1)` as `(batch,)`, others as they are."""
    return ops.squeeze(labels, 1) if len(labels.shape) == 2 and labels.shape[1] == 1 else labels


_POSITIVE = ("temperature", "alpha", "beta", "gamma", "epsilon")
_NOT_NEGATIVE = (
    "invariance_weight",
    "variance_weight",
    "covariance_weight",
    "off_diagonal_weight",
    "margin",
    "mining_margin",
)
_CHOICES = {
    "similarity": SIMILARITIES,
    "same_label": (None, "positive", "ignore"),
    "mining": ("all", "semi_hard", "hard"),
    "normalize": (True, False),
    "symmetric": (True, False),
}


def _validated(name: str, value: Any) -> Any:
    """Returns the value of an argument, by whose name it is known what is allowed."""
    if name in _CHOICES:
        return validate_choice(value, name, _CHOICES[name])
    if name == "tile_size":
        return None if value is None else validate_count(value, name)
    if value is None and name == "mining_margin":
        return None
    if name == "label_smoothing":
        smoothing = validate_number(value, name, minimum=0, expected="a number in [0, 1)")
        if smoothing >= 1:
            validate_number(None, name, expected="a number in [0, 1)")
        return smoothing
    if name in _POSITIVE:
        return validate_number(value, name, minimum=0, exclusive=True)
    return validate_number(value, name, minimum=0 if name in _NOT_NEGATIVE else -math.inf)


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
        return keras.losses.deserialize(identifier)
    if isinstance(identifier, str):
        registered = keras.saving.get_registered_object(f"keras_jointloss>{identifier}")
        if registered is not None and issubclass(registered, ViewsLoss):
            return registered()
        loss = getattr(keras.losses, identifier, None)
        if isinstance(loss, type) and issubclass(loss, keras.losses.Loss):
            return loss()
    raise ValueError(
        "Expected a `keras.losses.Loss`, or the name of a class in `keras_jointloss.losses` or "
        f"`keras.losses`. Received: loss={identifier!r}"
    )
