"""How a contrastive term compares the embeddings of a call, and what it learns for that."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_jointloss import losses
from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.batch import Batch, as_labels, finite_items, label_tensor, rows_of
from keras_jointloss._core.math import float_dtype
from keras_jointloss._core.replicas import shared_batch
from keras_jointloss._core.saved_state import SavedState
from keras_jointloss._core.validation import invalid
from keras_jointloss.layers._layer_term import CallLoss
from keras_jointloss.layers._means import item_mask, mean_over_items
from keras_jointloss.layers.contrastive._memory import EmbeddingMemory
from keras_jointloss.terms.missing.targets import fill

#: The rounding of the dtype, at most that of bfloat16, may put a weight this far out of its bounds.
_ROUNDING = 0.05


class _Bounds(keras.constraints.Constraint):
    """Keeps a weight within closed bounds."""

    def __init__(self, minimum, maximum):
        self.minimum = minimum
        self.maximum = maximum

    def __call__(self, w):
        return ops.clip(w, self.minimum, self.maximum)


class LearnedArguments:
    """The weights of a layer that determine arguments of its loss.

    A `keras_jointloss.losses.ViewsLoss` may have arguments to train, and any other loss has none.
    Raises `ValueError` if there are none to learn, or an initial value is out of bounds.
    """

    def __init__(self, loss: Any, learn_temperature: bool):
        self._loss = loss
        self._weights: dict[str, Any] = {}
        self._to_learn: dict[str, Any] = {}
        if not learn_temperature:
            return
        if "temperature" in getattr(loss, "schedules", {}):
            expected = f"False, since the temperature of {type(loss).__name__} follows a schedule"
            raise invalid("learn_temperature", expected, learn_temperature)
        if hasattr(loss, "learned_parameters"):
            self._to_learn = loss.learned_parameters()
        if not self._to_learn:
            expected = f"False, since {type(loss).__name__} has no temperature to train"
            raise invalid("learn_temperature", expected, learn_temperature)
        for name, (initial, minimum, maximum) in self._to_learn.items():
            if not minimum <= initial <= maximum:
                expected = f"a temperature whose {name} is in [{minimum:g}, {maximum:g}]"
                raise invalid("loss", expected, loss, f", with {name}={initial:g}")

    def add_weights(self, layer: keras.layers.Layer) -> None:
        """Adds the weights to a layer that is being built."""
        for name, parameter in self._to_learn.items():
            self._weights[name] = layer.add_weight(
                name=name,
                shape=(),
                initializer=keras.initializers.Constant(parameter.initial),
                constraint=_Bounds(parameter.minimum, parameter.maximum),
                dtype=keras.config.floatx(),
                autocast=False,
            )

    def validate(self, state: SavedState) -> None:
        """Raises `ValueError` if the saved weights are no finite numbers within their bounds."""
        for number, (name, parameter) in enumerate(self._to_learn.items()):
            if str(number) in state:  # Keras uses numbers as keys.
                bounds = parameter.minimum - _ROUNDING, parameter.maximum + _ROUNDING
                state.array(str(number), (), *bounds, name=name)

    def tensors(self) -> dict[str, Any]:
        """Returns the values of the weights by name."""
        return {name: ops.convert_to_tensor(value) for name, value in self._weights.items()}

    def arguments(self, tensors: dict[str, Any] | None = None) -> dict[str, Any]:
        """Returns the arguments of the loss: scalar tensors by name.

        They depend on the values of the weights, by default those of now.
        """
        tensors = self.tensors() if tensors is None else tensors
        return self._loss.arguments_of(tensors) if tensors else {}

    def readings(self) -> dict[str, Callable[[], Any]]:
        """Returns the arguments to log: by name, functions that return the argument."""
        if not self._to_learn:
            return {}
        others = [name for name in self._to_learn if name != "log_scale"]
        return {name: partial(self._argument, name) for name in ("temperature", *others)}

    def _argument(self, name: str):
        return self.arguments()[name]


class Comparison:
    """The loss, its parts and the metrics of embeddings.

    If it is gathered, each replica compares the embeddings of all replicas.
    """

    def __init__(
        self,
        loss: keras.losses.Loss,
        learned: LearnedArguments,
        metrics: Sequence[Any],
        is_gathered: bool,
    ):
        self.loss, self.metrics = loss, metrics
        self._learned, self._is_gathered = learned, is_gathered
        #: Embeddings of earlier steps, if the layer keeps any.
        self.memory: EmbeddingMemory | None = None

    @property
    def _part_names(self) -> tuple[str, ...]:
        return self.loss.part_names if isinstance(self.loss, losses.ViewsLoss) else ()

    def means(self) -> dict[str, Callable[[Any], Any]]:
        """Returns the other means to log: by name, functions from the mean to the logged value."""
        return {
            **{part: lambda mean: mean for part in self._part_names},
            **{metric.name: metric.finish for metric in self.metrics},
        }

    def loss_of(
        self, labels, sample_weight, masks, training, sampling_probability, guide, tensors
    ) -> CallLoss:
        """Returns the loss of a call, and what to `remember` if the call trains.

        The tensors are the embeddings, `(batch, dim)`, and those that are learned; labels and Keras
        masks, `(batch,)`, may be `None`; the sample weight is a number for all items or one for
        each, or `None`. Whether the model trains may be unknown. The two before the tensors are
        further arguments of the loss, or `None`.
        """
        embeddings, learned = tensors
        dtype = float_dtype(*(x.dtype for x in embeddings))
        views = _stacked([ops.cast(x, dtype) for x in embeddings])
        labels = None if labels is None else as_labels(label_tensor(labels))
        if sample_weight is not None:
            sample_weight = ops.reshape(ops.cast(sample_weight, dtype), (-1,))
            sample_weight = ops.broadcast_to(sample_weight, ops.shape(views)[:1])
        if sampling_probability is not None:
            sampling_probability = ops.reshape(ops.cast(sampling_probability, dtype), (-1,))
        if guide is not None:
            guide = ops.stack([ops.cast(x, dtype) for x in guide], axis=1)
        of_items = labels, item_mask(masks), sample_weight, sampling_probability, guide
        own = Batch(views, *of_items)
        is_gathered = self._is_gathered and current_replicas().count > 1
        batch, own_items, exchange = own, None, None
        if is_gathered:
            batch, own_items, exchange = shared_batch(own, self._exchanges_views())
        valid = batch.valid()
        loss, items, _ = mean_over_items(
            lambda _: self._values(batch, own_items, valid, exchange, learned),
            own.size(dtype),
            own.mask,
            own.sample_weight,
            is_weighted_mean=self.loss.reduction == "mean_with_sample_weight",
            over_replicas=is_gathered,
        )
        means = self._other_means(batch, own_items, valid, learned)
        if batch.labels is not None:
            valid = self.loss.labelled(batch.labels, valid)
        kept = (batch, valid) if self.memory is not None and training else None
        batch_size = ops.shape(views)[0] if masks else None
        return CallLoss(loss, items, valid, training is not False, batch_size, means, kept)

    def remember(self, batch: Batch, valid: Any, is_good: Any) -> None:
        """Adds items to the memory, as excluded ones unless they are good; `None` for good."""
        memory: Any = self.memory
        if is_good is not None and is_good is not True:
            views = ops.where(is_good, batch.views, ops.zeros_like(batch.views))
            batch = batch._replace(views=views)
            valid = ops.ones_like(views[:, 0, 0], dtype="bool") if valid is None else valid
            valid = ops.logical_and(is_good, valid)
        memory.put(batch, valid)

    def _exchanges_views(self) -> bool:
        """Whether only the loss needs the views of other replicas, those of one at a time."""
        is_loss_alone = self.memory is None and not self.metrics and not self._part_names
        return is_loss_alone and getattr(self.loss, "takes_exchange", False)

    def _values(self, batch, items, valid, exchange, learned):
        """Returns the loss of each item, `(batch,)`, or of some `Items`."""
        if not isinstance(self.loss, losses.ViewsLoss):
            views, valid = rows_of(batch.views, items), rows_of(valid, items)
            return _values_between_two(self.loss, views, valid)
        arguments = self._arguments(batch, learned)
        if exchange is not None:
            arguments["exchange"] = exchange
        return self.loss.values(batch.views, batch.labels, valid, items, **arguments)

    def _arguments(self, batch, learned) -> dict[str, Any]:
        """Returns the arguments of the loss beside views, labels and mask."""
        arguments, labels = self._learned.arguments(learned), batch.labels
        for name in getattr(self.loss, "call_arguments", ()):
            if getattr(batch, name) is not None:
                arguments[name] = getattr(batch, name)
        if self.memory is not None:
            arguments["memory"] = self.memory.read(None if labels is None else labels.dtype)
        return arguments

    def _other_means(self, batch, items, valid, learned) -> dict[str, tuple]:
        """Returns, by name, the sums over all items or over some `Items`, and their counts."""
        means = {}

        def record(name, total, count):
            if items is not None:
                total, count = ops.unstack(current_replicas().state_sum(ops.stack([total, count])))
            means[name] = total, count

        views, labels = batch.views, batch.labels
        if self._part_names:
            counts = ops.ones_like(views[:, 0, 0])
            counts = rows_of(counts if valid is None else ops.where(valid, counts, 0), items)
            for name, values in self._parts(batch, items, valid, learned).items():
                record(name, ops.sum(values * counts), ops.sum(counts))
        for metric in self.metrics:
            record(metric.name, *metric.sums(views, labels, valid, items=items))
        return means

    def _parts(self, batch, items, valid, learned) -> dict[str, Any]:
        """Returns the parts of the loss of all items or of some `Items`, by name."""
        inputs = batch.views, batch.labels, valid
        if self.loss.parts_take_parameters:
            return self.loss.part_values(*inputs, items, **self._arguments(batch, learned))
        parts = self.loss.part_values(*inputs)
        return {name: rows_of(values, items) for name, values in parts.items()}


def _stacked(embeddings):
    """Returns embeddings `(batch, dim)` as views, with zeros at the end of shorter ones."""
    dims = [x.shape[1] for x in embeddings]
    if len(set(dims)) > 1:
        pads = [((0, 0), (0, max(dims) - dim)) for dim in dims]
        embeddings = [ops.pad(x, pad) for x, pad in zip(embeddings, pads, strict=True)]
    return ops.stack(embeddings, axis=1)


def _values_between_two(loss: keras.losses.Loss, views, valid):
    """Returns the loss of Keras of each item between its two views, `(batch,)`; 0 for invalid ones.

    The views are `(batch, 2, dim)`: prediction and target.
    """
    pair = views[:, 1], views[:, 0]
    if valid is None:
        return loss.call(*pair) * finite_items(views)
    # The gradient, too, has to be 0 for the others.
    values = loss.call(*fill(*pair, valid))
    return ops.where(valid, values * finite_items(ops.where(valid[:, None, None], views, 0)), 0)
