"""The global batch of a step that several replicas compute together."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_jointloss._core.backend import current_replicas, custom_gradient
from keras_jointloss._core.backend.replicas import RowCounts
from keras_jointloss._core.keras import outermost_layer


class Batch(NamedTuple):
    """What a loss or metric on views compares.

    Attributes:
        views: `(batch, views, dim)`, float.
        labels: `(batch,)` or `(batch, classes)`, or `None`.
        mask: `(batch,)`, bool: which items to include. `None` for all.
        sample_weight: `(batch,)`, or `None`.
    """

    views: Any
    labels: Any = None
    mask: Any = None
    sample_weight: Any = None

    def size(self, dtype):
        """Returns the number of items, those that the mask excludes too, as a scalar."""
        return ops.cast(ops.shape(self.views)[0], dtype)

    def valid(self):
        """Returns which items take part: the mask without those of weight 0; `None` for all."""
        if self.sample_weight is None:
            return self.mask
        weighs = ops.not_equal(self.sample_weight, 0)
        return weighs if self.mask is None else ops.logical_and(self.mask, weighs)


class Items(NamedTuple):
    """Some successive items of a batch, whose losses are wanted; the others are candidates only.

    Attributes:
        start: The index of the first.
        size: How many.
    """

    start: Any
    size: Any


def rows_of(x, items: Items | None, count: int = 1):
    """Returns the rows of some items, each of which has `count` rows; all if `items` is `None`."""
    if x is None or items is None:
        return x
    return x[count * items.start : count * (items.start + items.size)]


def is_after_call() -> bool:
    """Returns whether this code runs in one of several replicas, after the forward pass of a model.

    Metrics may exchange values then. In the forward pass they would disturb the losses of layers.
    """
    return current_replicas().count > 1 and outermost_layer() is None


def shared_batch(own: Batch, takes_exchange: bool) -> "tuple[Batch, Items | None, Exchange | None]":
    """Returns what a loss of the items of this replica compares them with.

    Args:
        own: The batch of this replica.
        takes_exchange: Whether the loss needs the views of one other replica at a time only.

    Returns:
        `exchanged_batch` with `None` as the items, or `global_batch` with `None` as the exchange.
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

    Attributes:
        counts: The number of items of each replica.
        own: The `Items` of this one.
    """

    counts: RowCounts
    own: Items

    def parts(self) -> list[Items]:
        """Returns the items of each replica."""
        counts = self.counts.counts
        return [Items(sum(counts[:i]), count) for i, count in enumerate(counts)]

    def size(self):
        """Returns the number of items of all replicas."""
        return sum(self.counts.counts)

    def rows_of(self, replica: int, own, after):
        """Returns the rows of one replica, on each.

        Args:
            replica: The index of the replica.
            own: `(items, dim)`, the rows of this replica.
            after: A tensor to compute before the exchange.
        """
        rows = current_replicas().tensor_of(replica, self._padded(own), after)
        return rows[: self.counts.counts[replica]]

    def sum_for(self, replica: int, rows):
        """Returns the sum over all replicas of their `rows` for one replica, or 0 on the others.

        Args:
            replica: The index of the replica.
            rows: `(items of that replica, dim)`.

        Returns:
            `(own items, dim)`.
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
