"""What an anchor and a candidate are to one another: positives, negatives, or nothing at all."""

from typing import Any, NamedTuple

from keras import ops

from keras_jointloss._labels import label_tensor
from keras_jointloss._math import float_dtype, prepare

#: What `same_label` may be.
SAME_LABEL = (None, "positive", "ignore")


def share_label(a, b):
    """Returns whether each item of `a` shares a label with each of `b`: `(len(a), len(b))`, bool.

    Args:
        a: `(n,)`, one label an item, of any dtype, or `(n, classes)`, 1 for each class of an item
            and 0 for the others.
        b: Likewise, `(m,)` or `(m, classes)`.
    """
    if len(a.shape) == 1:
        return a[:, None] == b[None, :]
    return ops.einsum("ic,jc->ij", ops.cast(a, "float32"), ops.cast(b, "float32")) > 0.5


#: In place of an item: the sample is none of the batch.
ELSEWHERE = -1
#: In place of an item: the sample is a negative of all, whatever its label.
NEGATIVE = -2


class Samples(NamedTuple):
    """Embeddings, and what is known of each.

    Attributes:
        embeddings: `(n, dim)`.
        items: `(n,)`, int32: of which item of the batch it is a view; `ELSEWHERE`; `NEGATIVE`.
        labels: `(n,)` or `(n, classes)`, or `None`.
        valid: `(n,)`, bool, or `None` if all are.
    """

    embeddings: Any
    items: Any
    labels: Any = None
    valid: Any = None

    def join(self, others: "Samples") -> "Samples":
        """Returns these samples and others. Labels are those of all or of none."""
        valid = None
        if self.valid is not None or others.valid is not None:
            valid = ops.concatenate([self.is_valid(), others.is_valid()])
        labels = None
        if self.labels is not None:
            labels = ops.concatenate([self.labels, ops.cast(others.labels, self.labels.dtype)])
        return Samples(
            ops.concatenate([self.embeddings, others.embeddings]),
            ops.concatenate([self.items, others.items]),
            labels,
            valid,
        )

    def is_valid(self):
        """Returns which are valid, `(n,)`, bool."""
        return ops.ones_like(self.items, dtype="bool") if self.valid is None else self.valid


class Roles(NamedTuple):
    """Selects the positives of each anchor, and the candidates in its denominator.

    Attributes:
        anchors: `Samples`.
        candidates: `Samples`.
        same_label: What it means to share a label: `"positive"`, `"ignore"` (of different items:
            to be left out) or `None`.
        without_self: Whether the first candidates are the anchors themselves, which are no
            candidates of their own.
        without_positives: Whether positives stay out of the denominator.
    """

    anchors: Samples
    candidates: Samples
    same_label: str | None = None
    without_self: bool = False
    without_positives: bool = False

    @property
    def trivial(self) -> bool:
        """Whether every candidate is in every denominator."""
        valid = (self.anchors.valid, self.candidates.valid)
        excludes = self.same_label == "ignore" or self.without_self or self.without_positives
        return valid == (None, None) and not excludes

    def masks(self, rows):
        """Returns who is a positive and who is in the denominator.

        Args:
            rows: `(k,)`, int32, indices of anchors.

        Returns:
            Two masks, `(k, candidates)`, bool; `None` for the second if all are `trivial`.
        """
        anchors, candidates = self.anchors, self.candidates
        positive = ops.take(anchors.items, rows, axis=0)[:, None] == candidates.items[None, :]
        if self.trivial and self.same_label is None:
            return positive, None
        allowed = ops.ones_like(positive)
        if self.same_label is not None:
            if anchors.labels is None:
                raise ValueError(
                    f"Expected labels, since same_label={self.same_label!r}. Received: labels=None"
                )
            same = share_label(ops.take(anchors.labels, rows, axis=0), candidates.labels)
            same = ops.logical_and(same, candidates.items[None, :] != NEGATIVE)
            if self.same_label == "positive":
                positive = ops.logical_or(positive, same)
            else:
                allowed = ops.logical_or(positive, ops.logical_not(same))
        if self.without_self:
            columns = ops.arange(ops.shape(candidates.items)[0], dtype="int32")
            allowed = ops.logical_and(allowed, rows[:, None] != columns[None, :])
        if anchors.valid is not None:
            allowed = ops.logical_and(allowed, ops.take(anchors.valid, rows, axis=0)[:, None])
        if candidates.valid is not None:
            allowed = ops.logical_and(allowed, candidates.valid[None, :])
        positive = ops.logical_and(positive, allowed)
        if self.without_positives:
            allowed = ops.logical_and(allowed, ops.logical_not(positive))
        return positive, allowed


class Memory(NamedTuple):
    """Views of earlier items: further candidates, into which no gradient flows.

    Attributes:
        views: `(size, views, dim)`.
        labels: `(size,)` or `(size, classes)`, or `None`.
        valid: `(size,)`, bool: which places are filled.
    """

    views: Any
    labels: Any
    valid: Any


def as_views(views, valid=None):
    """Returns views as a float tensor, float32 at least, with zeros in place of invalid items."""
    views = ops.convert_to_tensor(views)
    views = ops.cast(views, float_dtype(views.dtype))
    return views if valid is None else ops.where(valid[:, None, None], views, 0)


def samples_of(views, similarity, labels=None, valid=None, item=None):
    """Returns the views of all items, one item after the other, as `Samples`.

    Args:
        views: `(batch, views, dim)`.
        similarity: For which the embeddings are to be prepared.
        labels: `(batch,)` or `(batch, classes)`, or `None`.
        valid: `(batch,)`, bool, or `None`.
        item: What to note as the item, in place of its index.
    """
    count, size = views.shape[1], ops.shape(views)[0]
    items = ops.arange(size, dtype="int32")
    if item is not None:
        items = ops.full_like(items, item)

    def of_views(x):
        return None if x is None else ops.repeat(x, count, axis=0)

    labels = None if labels is None else label_tensor(labels)
    valid = None if valid is None else ops.convert_to_tensor(valid)
    embeddings = ops.reshape(prepare(views, similarity), (-1, views.shape[2]))
    return Samples(embeddings, of_views(items), of_views(labels), of_views(valid))


def remembered(memory, similarity, view=slice(None)):
    """Returns views of a memory, all or those in a slice, as `Samples`."""
    views = ops.stop_gradient(ops.convert_to_tensor(memory.views)[:, view])
    return samples_of(views, similarity, memory.labels, memory.valid, ELSEWHERE)


def mean_of_views(values, count, valid=None):
    """Returns the mean over the views of each item: `(batch,)`, 0 for invalid items.

    Args:
        values: `(batch * views,)`.
        count: The number of views.
        valid: `(batch,)`, bool, or `None`.
    """
    return for_valid(ops.sum(ops.reshape(values, (-1, count)), axis=1) / count, valid)


def for_valid(values, valid):
    """Returns values of items, 0 for invalid ones."""
    return values if valid is None else ops.where(valid, values, 0)


def class_masks(samples):
    """Returns which of the samples are positives and negatives of one another, by their labels."""
    rows = ops.arange(ops.shape(samples.items)[0], dtype="int32")
    positive, others = Roles(samples, samples, "positive", without_self=True).masks(rows)
    return positive, ops.logical_and(others, ops.logical_not(positive))


def moments(x, valid=None):
    """Returns `(batch, dim)` less its mean over the valid items, 0 for others, and their number."""
    if valid is None:
        count = ops.cast(ops.shape(x)[0], x.dtype)
    else:
        count = ops.maximum(ops.sum(ops.cast(valid, x.dtype)), 1)
    centered = x - ops.sum(x, axis=0) / count  # Invalid items are 0.
    return (centered if valid is None else ops.where(valid[:, None], centered, 0)), count
