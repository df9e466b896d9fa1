"""The base class of the losses on views."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
from keras import ops

from keras_jointloss._core import batch as _batch
from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.batch import Batch, Items, rows_of
from keras_jointloss._core.replicas import (
    may_exchange,
    reduced_over_replicas,
    values_among_all,
    warn_of_separate_items,
)
from keras_jointloss._core.types import DType, Labels, Mask, Reduction, Shape, Tensor, Weights
from keras_jointloss._core.validation import validate_name
from keras_jointloss.losses._annealing import AnnealedArguments


class LearnedParameter(NamedTuple):
    """A parameter of a loss that `ContrastiveTerm` can train, within closed bounds.

    Attributes:
        initial: The value at the start of training.
        minimum: The lower bound.
        maximum: The upper bound.

    Example:

    >>> from keras_jointloss.losses import SigLIP
    >>> SigLIP(bias=-10.0).learned_parameters()["bias"].initial
    -10.0
    """

    initial: float
    minimum: float
    maximum: float


class ViewsLoss(AnnealedArguments, keras.losses.Loss):
    """Base class of the losses that compare the views of each item.

    The views are two (or more) embeddings of the same item, stacked on axis 1. A subclass defines

    - `function`: the stateless function `(views, labels, valid, **arguments) -> (batch,)`,
    - `label_kind`, `min_views`, `max_views`, `has_memory`, `takes_items`, `takes_exchange`: what it
      accepts,
    - `compares_items`: false if the loss of an item does not depend on the other items.

    It validates the function's arguments and passes them to `__init__` as keyword arguments. They
    become attributes and part of the config. The base class itself handles one of them,
    `unlabelled`: the label that marks items without one.

    An argument may be a `keras.optimizers.schedules.LearningRateSchedule`. In a term of
    `joint_loss` or a layer, it moves with the steps of the term's weight, and the logs show it as
    `<term>_<argument>`. The function receives a scalar tensor or a float.

    The config also has `name`, `reduction` and `dtype`. An `__init__` of the subclass must accept
    these three and pass them on, or Keras cannot load the loss.

    As the loss of an output in `fit` and `evaluate` under `tf.distribute`, and in the processes of
    `torch.distributed`, it compares the items of all replicas: the loss and its gradient are those
    of one device with the same global batches. In a custom loop of PyTorch it does so for views
    that have a gradient: each process has to compute the loss then, or the others wait for it.
    Under `torch.no_grad()` one process may compute it alone. There, in a custom loop of TensorFlow,
    and if a layer calls it in its own `call`, it sees the items of one replica, and a warning says
    so.

    An item is excluded from the batch (as anchor, positive and negative) if the Keras mask of
    `y_pred`, `(batch,)`, excludes it, if its sample weight is 0 or if its label is `unlabelled`.
    In the losses of the package, any item that takes part has the loss NaN if a view of it holds
    NaN or infinity.

    Invalid labels raise an error if the host can read them: in a direct call, and on PyTorch with
    tensors on the CPU. A compiled training step does not check them. On JAX, integers have 32 bits
    unless `jax_enable_x64` is set, and Keras truncates larger ids before a loss sees them in `fit`:
    replace ids with their indices, `np.unique(ids, return_inverse=True)[1]`.

    Args:
        name: Name of the loss.
        reduction: As in `keras.losses.Loss`. The default is the mean over the batch.
        dtype: As in `keras.losses.Loss`. Labels keep their own dtype.
        **arguments: The validated arguments of the function, and `unlabelled`.

    Input shape:
        `y_pred`: `(batch, views, dim)`, float; also `(batch, dim)`, one view per item, if
        `min_views` is 1. `y_true`: labels, if the loss needs them: `(batch,)`
        or `(batch, 1)`, or, for class labels, `(batch, classes)` with 1 for each class of an item
        and 0 for the others. The label of a pair is 1 if its views match and 0 if not. A
        score is any finite number. Without labels, anything with the right batch size.

    Output shape:
        `(batch,)` from `call`, one value per item.

    Raises:
        ValueError: If `y_pred` or the labels have the wrong shape, or if a label is invalid: that
            of a pair, or an entry of a class row, that is not in [0, 1], or a score that is not
            finite.

    Example:

    >>> def absolute_difference(views, labels=None, valid=None):
    ...     return ops.mean(ops.abs(views[:, 0] - views[:, 1]), axis=-1)
    >>> class AbsoluteDifference(ViewsLoss):
    ...     function = staticmethod(absolute_difference)
    >>> float(AbsoluteDifference()(ops.zeros(1), ops.array([[[1.0, 2.0], [3.0, 5.0]]])))
    2.5
    """

    #: The function that computes the values.
    function: Any = None
    #: The meaning of labels: `"pair"`, whether the views match; `"score"`, a number for the views;
    #: `"class"`, the class of the item; `None`, nothing.
    label_kind: str | None = None
    #: The minimum number of views per item: 1 if other items can be positives of an item.
    min_views: int = 2
    #: The maximum number of views per item: `math.inf` for any number.
    max_views: float = 2
    #: Whether the function takes a `memory` of other items' views.
    has_memory = False
    #: Whether the function takes `items`, to compute the losses of some items among all.
    takes_items = False
    #: Whether the loss of an item depends on the other items of the batch.
    compares_items = True
    #: Whether a `ContrastiveTerm` may pad embeddings with zeros to the dimension of the largest.
    dims_may_differ = False
    #: The names of the further arguments of the function that hold a value for each item.
    call_arguments: tuple[str, ...] = ()
    #: The names of the parts that `part_values` returns.
    part_names: tuple[str, ...] = ()
    #: Whether `part_values` takes `items` and parameters, too, as `values` does.
    parts_take_parameters = False
    #: The label that marks items without one.
    unlabelled: int | None = None

    if TYPE_CHECKING:  # The arguments, which are attributes.

        def __getattr__(self, name: str) -> Any: ...

    def __init__(
        self,
        name: str | None = None,
        reduction: Reduction = "sum_over_batch_size",
        dtype: DType = None,
        **arguments: Any,
    ):
        super().__init__(name=validate_name(name), reduction=reduction, dtype=dtype)
        self._argument_names = tuple(arguments)
        self._has_warned_of_replicas = False
        for argument, value in arguments.items():
            setattr(self, argument, value)

    @property
    def takes_exchange(self) -> bool:
        """Whether the function takes an `exchange`, to see the views of one replica at a time.

        The views are then those of one replica, the labels and the mask those of all.
        """
        return False

    @property
    def has_labels(self) -> bool:
        """Whether the loss needs labels."""
        return self.label_kind is not None or getattr(self, "same_label", None) is not None

    def values(
        self,
        views: Tensor,
        labels: Labels = None,
        valid: Mask = None,
        items: Items | None = None,
        **parameters: Any,
    ) -> Tensor:
        """Returns the loss of each item.

        Args:
            views: `(batch, views, dim)`, float.
            labels: `(batch,)` or `(batch, classes)`, or `None` if `has_labels` is false.
            valid: `(batch,)`, bool: which items to include. `None` for all.
            items: `Items(start, size)`, the successive items whose losses to return, among the
                others; `None` for all.
            **parameters: Arguments that replace those of the loss or add to them.

        Returns:
            `(batch,)`, of the dtype of `views`, at least float32; 0 for excluded items. With
            `items`, one value for each of them.
        """
        if self.has_labels and labels is not None:
            labels = _batch.label_tensor(labels)
            valid = self.labelled(labels, valid)
            _batch.check_labels(labels, valid, type(self).__name__, self.label_kind)
        arguments = {**self._arguments_of_step(), **parameters}
        arguments.pop("unlabelled", None)  # `valid` excludes them.
        if items is not None and self.takes_items:
            arguments["items"], items = items, None
        elif not self.compares_items:
            views, labels, valid = (rows_of(x, items) for x in (views, labels, valid))
            items = None
        return rows_of(type(self).function(views, labels, valid, **arguments), items)

    def labelled(self, labels: Tensor, valid: Mask = None) -> Mask:
        """Returns which valid items have a label: `(batch,)`, bool, or `None` if all items do."""
        return _batch.labelled(labels, valid, self.unlabelled)

    def part_values(
        self, views: Tensor, labels: Labels = None, valid: Mask = None
    ) -> dict[str, Tensor]:
        """Returns the parts of the loss to log, by name, each `(batch,)`."""
        return {}

    def learned_parameters(self) -> dict[str, LearnedParameter]:
        """Returns the parameters that can be trained, by name.

        A loss with a temperature has one: the logarithm of the inverse temperature, as in CLIP,
        kept between 0 and log 100.
        """
        if "temperature" not in self._argument_names:
            return {}
        return {"log_scale": LearnedParameter(-math.log(self.temperature), 0.0, math.log(100))}

    def arguments_of(self, learned: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the arguments of the function that correspond to learned parameters."""
        others = {name: value for name, value in learned.items() if name != "log_scale"}
        return {"temperature": ops.exp(-learned["log_scale"]), **others} if learned else {}

    def validate_views(self, shape: Shape) -> None:
        """Raises `ValueError` if `shape` is not a shape of stacked views, or of single ones."""
        _batch.validate_views(shape, self.min_views, self.max_views, type(self).__name__)

    def validate_labels(self, shape: Shape, batch_size: int | None = None) -> None:
        """Raises `ValueError` if `shape` does not hold one label or row of classes per item."""
        has_classes = self.label_kind not in ("pair", "score")
        _batch.validate_vector(shape, batch_size, type(self).__name__, may_be_classes=has_classes)

    def _arguments(self):
        return {name: getattr(self, name) for name in self._argument_names}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "dtype": self.dtype, **self._arguments()}

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        return self._values(y_true, y_pred, None)

    def __call__(self, y_true: Tensor, y_pred: Tensor, sample_weight: Weights = None) -> Tensor:
        with keras.name_scope(self.name):
            _batch.check_numbers(y_pred, "y_pred", type(self).__name__)
            views = ops.convert_to_tensor(y_pred, dtype=self.dtype)
            y_pred = y_pred if ops.is_tensor(y_pred) else views
            self.validate_views(views.shape)
            _batch.validate_items(views.shape[0], sample_weight, type(self).__name__)
            values = self._values(y_true, views, _batch.valid_items(y_pred, sample_weight))
            # Keras reads the mask from the prediction.
            reduce = (
                reduced_over_replicas if self.is_of_all_replicas(views) else _batch.reduce_values
            )
            return reduce(values, y_pred, sample_weight, self.reduction, self.dtype)

    def is_of_all_replicas(self, y_pred: Tensor) -> bool:
        """Returns whether the reduced loss of one of several replicas is here that of all."""
        return self.reduction not in ("none", None) and may_exchange(y_pred)

    def _values(self, y_true, views, valid):
        self.validate_views(views.shape)
        labels = None
        if self.has_labels:
            if y_true is None:
                raise ValueError(f"{type(self).__name__} expects labels. Received: y_true=None")
            _batch.check_numbers(y_true, "y_true", type(self).__name__)
            labels = _batch.label_tensor(y_true)
            self.validate_labels(labels.shape, views.shape[0])
            labels = _batch.as_labels(labels)
        own = Batch(_batch.stacked(views), labels, valid)
        if self.compares_items and may_exchange(own.views):
            return values_among_all(self.values, own, self.takes_exchange)
        is_apart = self.compares_items and current_replicas().count > 1
        if is_apart and not self._has_warned_of_replicas:
            self._has_warned_of_replicas = True
            warn_of_separate_items(type(self).__name__)
        return self.values(own.views, own.labels, own.mask)
