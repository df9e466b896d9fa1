"""The role of each candidate for each anchor, and of the two views of an item for each other."""

from typing import Any, NamedTuple

from keras import ops

from keras_jointloss._core.batch import Items, finite_items, label_tensor, rows_of
from keras_jointloss._core.math import float_dtype, prepare
from keras_jointloss.losses.base import ViewsLoss

#: The accepted values of `same_label`.
SAME_LABEL = (None, "positive", "ignore")


def share_label(a, b):
    """Returns whether each item of `a` shares a label with each of `b`: `(len(a), len(b))`, bool.

    Labels are `(n,)`, of any dtype, or `(n, classes)`, 1 for each class of an item and 0 for
    others.
    """
    if len(a.shape) == 1:
        return a[:, None] == b[None, :]
    return ops.einsum("ic,jc->ij", ops.cast(a, "float32"), ops.cast(b, "float32")) > 0.5


#: In place of an item's index: the sample is not from the batch.
ELSEWHERE = -1
#: In place of an item's index: the sample is a negative for all anchors, whatever its label.
NEGATIVE = -2


class Samples(NamedTuple):
    """Embeddings with the item, the label and the validity of each."""

    embeddings: Any  # `(n, dim)`
    items: Any  # `(n,)`, int32: the index of the item in the batch, `ELSEWHERE` or `NEGATIVE`
    labels: Any = None  # `(n,)` or `(n, classes)`, or `None`
    valid: Any = None  # `(n,)`, bool, or `None` if all are valid
    #: `(n,)`: the logarithm of the probability to be in a batch, or `None` if all have the same
    log_probability: Any = None
    guide: Any = None  # `(n, guide_dim)`: unit vectors of another model, or `None`

    def join(self, others: "Samples | None") -> "Samples":
        """Returns these samples and others, which have labels, and the rest, if these have."""
        if others is None:
            return self
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
            _joined(self.log_probability, others.log_probability, "sampling_probability"),
            _joined(self.guide, others.guide, "guide"),
        )

    def of(self, items: Items | None, count: int = 1) -> "Samples":
        """Returns the samples of some items; each has `count` of them."""
        return Samples(*(rows_of(x, items, count) for x in self))

    def is_valid(self):
        """Returns the mask of valid samples, `(n,)`, bool."""
        return ops.ones_like(self.items, dtype="bool") if self.valid is None else self.valid


class Roles(NamedTuple):
    """Selects the positives of each anchor and the candidates in its denominator."""

    anchors: Samples
    candidates: Samples
    #: How to treat candidates of other items that share a label with the anchor: `"positive"`,
    #: `"ignore"` (exclude them) or `None`.
    same_label: str | None = None
    #: Whether the anchors are among the candidates, each excluded from its own.
    without_self: bool = False
    without_positives: bool = False  # Whether to exclude positives from the denominator
    first: Any = 0  # The index of the first anchor among the candidates; the others follow it

    @property
    def trivial(self) -> bool:
        """Whether every candidate is in every denominator."""
        valid = (self.anchors.valid, self.candidates.valid)
        excludes = self.same_label == "ignore" or self.without_self or self.without_positives
        return valid == (None, None) and not excludes

    def masks(self, rows):
        """Returns which candidates are positives and which are in the denominator.

        Two masks `(len(rows), candidates)`, bool, for the anchors with the indices `rows`. The
        second is `None` if `trivial` and `same_label` is `None`.
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
            allowed = ops.logical_and(allowed, (self.first + rows)[:, None] != columns[None, :])
        if anchors.valid is not None:
            allowed = ops.logical_and(allowed, ops.take(anchors.valid, rows, axis=0)[:, None])
        if candidates.valid is not None:
            allowed = ops.logical_and(allowed, candidates.valid[None, :])
        positive = ops.logical_and(positive, allowed)
        if self.without_positives:
            allowed = ops.logical_and(allowed, ops.logical_not(positive))
        return positive, allowed


def _joined(values, others, name):
    """Returns what two `Samples` have, or `None` if neither has it."""
    if values is None and others is None:
        return None
    if values is None or others is None:
        given = "memory" if values is None else "batch"
        raise ValueError(f"Expected `{name}` for batch and memory. Received: for the {given} only")
    return ops.concatenate([values, others])


def for_allowed(allowed, values):
    """Returns the values, 0 where the mask, if there is one, is false."""
    return values if allowed is None else ops.where(allowed, values, 0)


class Memory(NamedTuple):
    """Views of earlier items: additional candidates that receive no gradient.

    Attributes:
        views: `(size, views, dim)`.
        labels: `(size,)` or `(size, classes)`, or `None`.
        valid: `(size,)`, bool: which slots are filled.
        sampling_probability: `(size,)`, for a loss of a batch that has it, or `None`.
        guide: `(size, views, guide_dim)`, for a loss of a batch that has it, or `None`.

    Example:

    >>> from keras_jointloss.losses import info_nce
    >>> views = ops.stack([ops.eye(3), ops.eye(3)], axis=1)
    >>> memory = Memory(views, None, ops.array([True, True, False]))
    >>> [round(float(loss), 4) for loss in info_nce(views, temperature=1.0, memory=memory)]
    [1.1326, 1.1326, 0.9048]
    """

    views: Any
    labels: Any
    valid: Any
    sampling_probability: Any = None
    guide: Any = None


def as_views(views, valid=None):
    """Returns views as a tensor, at least float32, with zeros in place of invalid items."""
    views = ops.convert_to_tensor(views)
    views = ops.cast(views, float_dtype(views.dtype))
    return views if valid is None else ops.where(valid[:, None, None], views, 0)


def samples_of(
    views,
    similarity,
    labels=None,
    valid=None,
    item=None,
    sampling_probability=None,
    guide=None,
):
    """Returns the views `(batch, views, dim)` of all items, item by item, as `Samples`.

    The embeddings are prepared for a similarity. In place of its index, every item may have the
    number `item`. The probability is that of each item, `(batch,)`; the guide has other embeddings
    of the same views.
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
    samples = Samples(embeddings, of_views(items), of_views(labels), of_views(valid))
    if sampling_probability is None and guide is None:
        return samples
    log_probability = None
    if sampling_probability is not None:
        probability = ops.cast(ops.reshape(sampling_probability, (-1,)), views.dtype)
        included = probability if valid is None else ops.where(valid, probability, 1)
        log_probability = of_views(ops.stop_gradient(ops.log(included)))
    if guide is not None:
        guide = ops.stop_gradient(prepare(as_views(guide, valid), "cosine"))
        guide = ops.reshape(guide, (-1, guide.shape[2]))
    return Samples(*samples[:4], log_probability, guide)


def remembered(memory, similarity, view=slice(None)):
    """Returns the views of a memory, all or a slice of them, as `Samples`."""
    views = ops.stop_gradient(as_views(memory.views, memory.valid)[:, view])
    guide = None if memory.guide is None else memory.guide[:, view]
    of_items = memory.labels, memory.valid, ELSEWHERE, memory.sampling_probability, guide
    return samples_of(views, similarity, *of_items)


def mean_of_views(values, count):
    """Returns the mean over the views of each item, `(batch,)`, of values `(batch * count,)`."""
    return ops.sum(ops.reshape(values, (-1, count)), axis=1) / count


def item_losses(values, views, valid=None, items=None, memory=None):
    """Returns the losses of items: 0 for invalid ones, NaN for those whose views are not finite.

    The values are those of all items, `(batch,)`, or of some `Items`. The views are those of all,
    as `as_views` returns them. If one in a `Memory` of further candidates is not finite, no loss
    is.
    """
    values = values * rows_of(finite_items(views), items)
    if memory is not None:
        held = as_views(memory.views, memory.valid)
        values = values * finite_items(ops.reshape(held, (1, -1, held.shape[2])))
    return values if valid is None else ops.where(rows_of(valid, items), values, 0)


def class_roles(views, similarity, labels, valid=None, items=None):
    """Returns the anchors and all candidates, prepared, and the anchors' positives and negatives.

    Every view is a candidate, those of all or some `Items` are anchors, and samples that share a
    label are positives. Of the shapes `(anchors, dim)` and `(candidates, dim)`, and two masks,
    `(anchors, candidates)`, bool.
    """
    candidates, count = samples_of(views, similarity, labels, valid), views.shape[1]
    anchors, first = candidates.of(items, count), 0 if items is None else count * items.start
    roles = Roles(anchors, candidates, "positive", without_self=True, first=first)
    rows = ops.arange(ops.shape(anchors.items)[0], dtype="int32")
    positive, others = roles.masks(rows)
    negative = ops.logical_and(others, ops.logical_not(positive))
    return anchors.embeddings, candidates.embeddings, positive, negative


def moments(x, valid=None):
    """Returns `(batch, dim)` minus the mean over valid items, 0 for others, and the valid count."""
    if valid is None:
        count = ops.cast(ops.shape(x)[0], x.dtype)
    else:
        count = ops.maximum(ops.sum(ops.cast(valid, x.dtype)), 1)
    centered = x - ops.sum(x, axis=0) / count  # Invalid items are 0.
    return (centered if valid is None else ops.where(valid[:, None], centered, 0)), count


class PairLoss(ViewsLoss):
    """Base class of losses of labelled pairs."""

    label_kind = "pair"
    compares_items = False


def mixed(views, labels, valid, losses):
    """Returns the loss of each pair, between that of one that matches and of one that does not.

    The views are `(batch, 2, dim)`, and the labels, `(batch,)`, from 1 for pairs that match to 0.
    The function `losses` returns both losses of all pairs, from their views.
    """
    views = as_views(views, valid)
    together, apart = losses(views[:, 0], views[:, 1])
    labels = ops.cast(labels, views.dtype)
    return item_losses(labels * together + (1 - labels) * apart, views, valid)
