"""The batch that several replicas compute together in a step, and the losses of its items."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_jointloss._core.backend import current_replicas, custom_gradient
from keras_jointloss._core.backend.replicas import RowCounts
from keras_jointloss._core.batch import Batch, Items, reduce_values
from keras_jointloss._core.keras import kept_losses, outermost_layer
from keras_jointloss._core.keras_calls import running_model
from keras_jointloss._core.math import divide_or_0


def is_after_call() -> bool:
    """Returns whether this code runs in one of several replicas, after the forward pass of a model.

    Metrics may exchange values then. In the forward pass they would disturb the losses of layers.
    """
    return current_replicas().count > 1 and outermost_layer() is None


def shared_batch(own: Batch, takes_exchange: bool) -> "tuple[Batch, Items | None, Exchange | None]":
    """Returns what a loss of the items of this replica compares them with, in a step of each.

    That is `global_batch`, and `None` as the exchange; or, if the loss needs the views of one
    other replica at a time only, `exchanged_batch`, and `None` as the items.
    """
    if takes_exchange:
        batch, exchange = exchanged_batch(own)
        return batch, None, exchange
    return *global_batch(own), None


def global_batch(own: Batch) -> tuple[Batch, Items]:
    """Returns the batch of all replicas, in their order, and the items of this one.

    To be called within the step of each replica. Each computes the losses of its own items among
    all, and `loss_sum` adds them. The gradient for the rows of a replica is the sum over all
    replicas, which exchange it in the backward pass.

    TensorFlow switches to another replica meanwhile. If Keras has not yet collected the losses that
    layers have added, the caller keeps them: the forward pass of the other replica replaces them.
    """
    batch, counts = _gathered(own, own.views)
    rows = (_with_gradient(*both, counts.start) for both in zip(batch, own, strict=True))
    return Batch(*rows), Items(counts.start, ops.shape(own.views)[0])


def _gathered(own: Batch, views) -> tuple[Batch, RowCounts]:
    """Returns the rows of all replicas, without a gradient, and their numbers."""
    present = [x for x in own if x is not None]
    # Not every collective operation supports booleans.
    sent = [ops.cast(x, "int32") if _name_of_dtype(x) == "bool" else x for x in present]
    rows, counts = current_replicas().gather(sent, views)
    found = (
        ops.cast(ops.reshape(x, (-1, *like.shape[1:])), like.dtype)
        for x, like in zip(rows, present, strict=True)
    )
    return Batch(*(None if x is None else next(found) for x in own)), counts


def _with_gradient(rows, own, start):
    """Returns the rows of all replicas, with a gradient for the own ones, from row `start`."""
    if own is None or not keras.backend.is_float_dtype(_name_of_dtype(own)):
        return rows

    def compute(own):
        def gradient(upstream):
            total = current_replicas().sum(upstream)
            return total[start : start + ops.shape(own)[0]]

        return ops.copy(rows), gradient

    return custom_gradient(compute, own)


class Exchange(NamedTuple):
    """Passes the embeddings of each replica to all, those of one replica after the other.

    A replica so holds the embeddings of one other replica at a time. All replicas call the methods
    in the same order. No gradient flows. TensorFlow switches to another replica meanwhile.
    """

    counts: RowCounts  # The number of items of each replica
    own: Items  # The `Items` of this one

    def parts(self) -> list[Items]:
        """Returns the items of each replica."""
        counts = self.counts.counts
        return [Items(sum(counts[:i]), count) for i, count in enumerate(counts)]

    def size(self):
        """Returns the number of items of all replicas."""
        return sum(self.counts.counts)

    def rows_of(self, replica: int, own, after):
        """Returns the rows of one replica, by its index, on each; `own` are those of this one.

        The tensor `after` is computed before the exchange.
        """
        rows = current_replicas().tensor_of(replica, self._padded(own), after)
        return rows[: self.counts.counts[replica]]

    def sum_for(self, replica: int, rows):
        """Returns the sum over all replicas of their `rows` for one replica, or 0 on the others.

        Of the shape `(own items, dim)`.
        """
        total = current_replicas().sum(self._padded(rows))
        return ops.where(ops.equal(self.counts.index, replica), total, 0)[: self.own.size]

    def _padded(self, rows):
        """Returns rows with zeros below, so that all replicas have the same number."""
        largest = self.counts.counts[0]
        for count in self.counts.counts[1:]:
            largest = max(largest, count) if isinstance(count, int) else ops.maximum(largest, count)
        return ops.pad(rows, ((0, largest - ops.shape(rows)[0]), (0, 0)))


def exchanged_batch(own: Batch) -> tuple[Batch, Exchange]:
    """Returns the own views, with labels and mask of all replicas, and the exchange of views.

    The mask excludes items of weight 0, too. To be called where `global_batch` may be.
    """
    others, counts = _gathered(Batch(None, own.labels, own.valid()), own.views)
    items = Items(counts.start, ops.shape(own.views)[0])
    return Batch(own.views, others.labels, others.mask), Exchange(counts, items)


def _name_of_dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


# The loss of an output, before Keras has all losses.


def may_exchange(views: Any) -> bool:
    """Returns whether one of several replicas may exchange views for the loss of an output.

    All of them compute the loss in a step of Keras, and in a loop of PyTorch that takes a gradient;
    one process alone may compute a loss for validation. On TensorFlow an exchange needs the model
    whose step is running, to keep the losses of its layers.
    """
    if not is_after_call():
        return False
    return running_model() is not None or current_replicas().share_loop(views)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Keeps the losses of layers, which Keras has not collected yet.

    TensorFlow switches to another replica in an exchange, and the forward pass of that replica
    replaces them.
    """
    model = running_model() if current_replicas().takes_turns else None
    with contextlib.nullcontext() if model is None else kept_losses(model):
        yield


def values_among_all(compute: Callable[..., Any], own: Batch, takes_exchange: bool):
    """Returns the losses of the items of this replica among those of all, `(items,)`."""
    with _undisturbed():
        batch, items, exchange = shared_batch(own, takes_exchange)
        options = {} if exchange is None else {"exchange": exchange}
        return compute(batch.views, batch.labels, batch.mask, items, **options)


def reduced_over_replicas(values, y_pred, sample_weight, reduction: str, dtype):
    """Returns the loss of the items of all replicas, as Keras expects it from each of them.

    The `values` are the losses of the items of this replica, `(items,)`. The others are those of a
    Keras loss that has a reduction.
    """
    weight = sample_weight if reduction == "mean_with_sample_weight" else None
    divisor = reduce_values(ops.ones_like(values), y_pred, weight, "sum", dtype)
    total = reduce_values(values, y_pred, sample_weight, "sum", dtype)
    replicas = current_replicas()
    with _undisturbed():
        total, divisor = ops.unstack(replicas.loss_sum(ops.stack([total, divisor])))
    return replicas.once(total if reduction == "sum" else divide_or_0(total, divisor))


def warn_of_separate_items(name: str) -> None:
    """Warns that a loss of several replicas compares the items of each replica alone."""
    count = current_replicas().count
    warnings.warn(
        f"{name} compares the items of a batch with each other. Called by a layer or in a custom "
        "loop (on PyTorch: one without gradients) it sees, in each of "
        f"{count} replicas, only the items of that replica, so the result depends on the "
        "number of replicas. As the loss of an output in `fit` and `evaluate`, and in "
        "`keras_jointloss.layers.ContrastiveTerm`, it compares the items of all "
        "replicas.",
        stacklevel=2,
    )
