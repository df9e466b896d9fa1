"""The logit matrix of a softmax loss and its statistics, of the whole matrix."""

from typing import Any, NamedTuple

from keras import ops

from keras_jointloss._core.math import divide_or_0, logsumexp_where, matrix_of_prepared
from keras_jointloss.losses._candidates import Selection
from keras_jointloss.losses._pairs import Roles


class Matrix(NamedTuple):
    """The logits of anchors (rows) and candidates (columns).

    `dense`, like `tiled`, returns lse, positive, average and whether these are defined (1 or 0),
    for rows and, with `both_ways`, for columns: `(1 or 2, 4, anchors)`.
    """

    roles: Roles
    similarity: str
    #: `(anchors, positives)`, int32, the columns of the positives, or `None` if the masks select
    #: them. With `own`, the mean of the positives is used without its gradient.
    own: Any
    needs_average: bool
    both_ways: bool
    #: What changes for the rows, or `None`. Requires that not `both_ways`.
    selection: Selection | None = None

    @property
    def needs_positive(self) -> bool:
        """Whether the mask selects the positives."""
        return self.own is None

    @property
    def needs_masks(self) -> bool:
        """Whether the candidates of an anchor differ in more than their logits."""
        is_among = self.selection is not None and self.selection.is_among_negatives
        return self.needs_positive or is_among or not self.roles.trivial

    def selected(self, logits, scale, rows):
        """Returns the logits of the given rows and the masks of positives and denominator.

        The logits are those of the similarities. The masks are `None` if they are not needed.
        """
        positive, denominator = self.roles.masks(rows) if self.needs_masks else (None, None)
        if self.selection is not None:
            arguments = scale, rows, self.roles, positive, denominator
            logits, denominator = self.selection.apply(logits, *arguments)
        return logits, positive, denominator

    def own_logits(self, logits, rows):
        """Returns the mean logit of the own pairs in the given rows, 0 if there are none.

        No gradient flows: TensorFlow would add a matrix of zeros to that of the logits.
        """
        if self.own is None:
            return 0
        columns = ops.take(self.own, rows, axis=0)
        own = ops.take_along_axis(ops.stop_gradient(logits), columns, axis=1)
        return ops.sum(own, axis=1) / self.own.shape[1]

    def totals(self, logits, positive, denominator, axis, weights=None, own=0):
        """Returns sums of the logits and of 1 over positives and denominator, `(4, others)`."""
        weights = ops.ones_like(logits[:, 0]) if weights is None else weights
        weights = ops.broadcast_to(weights[:, None], ops.shape(logits))
        nothing = ops.sum(ops.zeros_like(logits[:1] if axis == 0 else logits[:, :1]), axis=axis)

        def total(mask, values):
            return ops.sum(values if mask is None else ops.where(mask, values, 0), axis=axis)

        return ops.stack(
            [
                total(positive, logits * weights) if self.needs_positive else nothing + own,
                total(positive, weights) if self.needs_positive else nothing + 1,
                total(denominator, logits * weights) if self.needs_average else nothing,
                nothing + 1
                if denominator is None and not self.needs_average
                else total(denominator, weights),
            ]
        )

    def statistics(self, lse, totals):
        """Returns lse, positive, average and whether these are defined, `(4, others)`."""
        is_defined = ops.logical_and(totals[1] > 0, totals[3] > 0)
        positive, average = (divide_or_0(totals[i], totals[i + 1]) for i in (0, 2))
        return ops.stack([lse, positive, average, ops.cast(is_defined, lse.dtype)])

    def dense(self, x, y, scale):
        # Scales the vectors, not the logits: a compiler may fuse a product of logits with the
        # difference from their maximum and round only once, which puts that maximum above 0.
        others = scale * y if self.similarity == "euclidean" else y
        logits = matrix_of_prepared(scale * x, others, self.similarity)
        rows = ops.arange(ops.shape(x)[0], dtype="int32")
        logits, positive, denominator = self.selected(logits, scale, rows)
        own = self.own_logits(logits, rows)  # Also for columns that are anchors.
        result = []
        for axis in (1, 0) if self.both_ways else (1,):
            lse = logsumexp_among(logits, denominator, axis)
            totals = self.totals(logits, positive, denominator, axis, own=own)
            result.append(self.statistics(lse, totals))
        return ops.stack(result)


def logsumexp_among(x, mask, axis):
    """Returns the log-sum-exp over the elements of the mask, all if it is `None`."""
    return ops.logsumexp(x, axis=axis) if mask is None else logsumexp_where(x, mask, axis)
