"""The global batch of a step that several replicas compute together."""

from typing import Any, NamedTuple

import keras
from keras import ops

from keras_jointloss._core.backend import (
    Shares,
    custom_gradient,
    in_replica,
    replica_count,
    rows_of_replicas,
    sum_over_replicas,
    summed_replicas,
    tensor_of_replica,
)
from keras_jointloss._core.keras import outermost_layer
from keras_jointloss._core.math import divide_or_0


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
    return in_replica() and outermost_layer() is None


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
    all, and `sum_of_replicas` adds them. The gradient for the rows of a replica is the sum over all
    replicas, which exchange it in the backward pass.

    TensorFlow switches to another replica meanwhile. If Keras has not yet collected the losses that
    layers have added, the caller keeps them: the forward pass of the other replica replaces them.
    """
    batch, shares = _gathered(own, own.views)
    rows = (_with_gradient(*both, shares.start) for both in zip(batch, own, strict=True))
    return Batch(*rows), Items(shares.start, ops.shape(own.views)[0])


def _gathered(own: Batch, views) -> tuple[Batch, Shares]:
    """Returns the rows of all replicas, without a gradient, and their shares."""
    present = [x for x in own if x is not None]
    # Not every collective operation supports booleans.
    sent = [ops.cast(x, "int32") if _name_of_dtype(x) == "bool" else x for x in present]
    rows, shares = rows_of_replicas(sent, views)
    found = (
        ops.cast(ops.reshape(x, (-1, *like.shape[1:])), like.dtype)
        for x, like in zip(rows, present, strict=True)
    )
    return Batch(*(None if x is None else next(found) for x in own)), shares


def _with_gradient(rows, own, start):
    """Returns the rows of all replicas, with a gradient for the own ones, from row `start`."""
    if own is None or not keras.backend.is_float_dtype(_name_of_dtype(own)):
        return rows

    def compute(own):
        def gradient(upstream):
            total = sum_over_replicas(upstream)
            return total[start : start + ops.shape(own)[0]]

        return ops.copy(rows), gradient

    return custom_gradient(compute, own)


class Exchange(NamedTuple):
    """Passes the embeddings of each replica to all, those of one replica after the other.

    A replica so holds the embeddings of one other replica at a time. All replicas call the methods
    in the same order. No gradient flows. TensorFlow switches to another replica meanwhile.

    Attributes:
        shares: The items of each replica.
        own: The `Items` of this one.
    """

    shares: Shares
    own: Items

    def parts(self) -> list[Items]:
        """Returns the items of each replica."""
        counts = self.shares.counts
        return [Items(sum(counts[:i]), count) for i, count in enumerate(counts)]

    def size(self):
        """Returns the number of items of all replicas."""
        return sum(self.shares.counts)

    def rows_of(self, replica: int, own, after):
        """Returns the rows of one replica, on each.

        Args:
            replica: The index of the replica.
            own: `(items, dim)`, the rows of this replica.
            after: A tensor to compute before the exchange.
        """
        rows = tensor_of_replica(self._padded(own), replica, after)
        return rows[: self.shares.counts[replica]]

    def sum_for(self, replica: int, rows):
        """Returns the sum over all replicas of their `rows` for one replica, or 0 on the others.

        Args:
            replica: The index of the replica.
            rows: `(items of that replica, dim)`.

        Returns:
            `(own items, dim)`.
        """
        total = sum_over_replicas(self._padded(rows))
        return ops.where(ops.equal(self.shares.index, replica), total, 0)[: self.own.size]

    def _padded(self, rows):
        """Returns rows with zeros below, so that all replicas have the same number."""
        largest = self.shares.counts[0]
        for count in self.shares.counts[1:]:
            largest = max(largest, count) if isinstance(count, int) else ops.maximum(largest, count)
        return ops.pad(rows, ((0, largest - ops.shape(rows)[0]), (0, 0)))


def exchanged_batch(own: Batch) -> tuple[Batch, Exchange]:
    """Returns the own views, with labels and mask of all replicas, and the exchange of views.

    The mask excludes items of weight 0, too. To be called where `global_batch` may be.
    """
    others, shares = _gathered(Batch(None, own.labels, own.valid()), own.views)
    items = Items(shares.start, ops.shape(own.views)[0])
    return Batch(own.views, others.labels, others.mask), Exchange(shares, items)


def _name_of_dtype(x):
    return keras.backend.standardize_dtype(x.dtype)


def sum_of_replicas(x):
    """Returns the sum over the replicas for a loss that each of them computes from it.

    The gradient is exact if the loss is divided by the number of replicas and the gradients are
    summed over them, as Keras does, or if gradients are averaged, as PyTorch does. TensorFlow
    switches to another replica meanwhile.
    """
    replicas = replica_count()

    def compute(x):
        return sum_over_replicas(x), lambda upstream: upstream * replicas

    return custom_gradient(compute, x)


def counted_by(mean, divisor):
    """Returns the mean of this replica's part of a batch, with the gradient for the whole batch.

    The mean over the whole batch counts each replica by what it divides by, whereas Keras counts
    all replicas alike. The value remains the mean of this replica, since TensorFlow would switch to
    another replica during an exchange in the forward pass.

    Args:
        mean: A tensor.
        divisor: The scalar by which this replica has divided, such as its number of items.
    """
    if not in_replica():
        return mean
    replicas = replica_count()

    def compute(mean):
        def gradient(upstream):
            share = divide_or_0(divisor, sum_over_replicas(divisor))
            return upstream * replicas * share

        return ops.copy(mean), gradient

    return custom_gradient(compute, mean)


def recorded_sum(x):
    """Returns what one replica adds to its state for a sum of which it has computed its own part.

    Keras adds up the states of the replicas, but each process of PyTorch keeps the whole sum.
    """
    return x if summed_replicas() > 1 else sum_over_replicas(x)


def own_share(x):
    """Returns what one replica adds to a sum that each replica computes of the global batch."""
    return x / summed_replicas()
