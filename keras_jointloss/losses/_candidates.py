"""The choice of the negatives of an anchor, and how much each of them counts."""

import math
from typing import Any, NamedTuple

from keras import ops

from keras_jointloss._core.math import (
    dot_matrix,
    logsumexp_where,
    max_along,
    similarity_of_prepared,
)
from keras_jointloss.losses._pairs import Roles, Samples

#: The accepted values of `false_negative_margin_strategy`.
STRATEGIES = ("absolute", "relative")


class Selection(NamedTuple):
    """What changes in the logits of anchors, one tile of rows at a time.

    First the logarithm of the candidates' probabilities, if they have any, is subtracted from the
    logits. Then negatives above a limit are left out, the largest of the others remain, and these
    are weighted. No gradient flows through the choice and the weights.
    """

    #: `(anchors,)`: a candidate that is more similar is no negative; `None` if there is no limit.
    limit: Any = None
    largest: int | None = None  # How many of the largest negatives remain; `None` for all
    #: Negatives weigh exp(hardness * similarity), with a mean of 1; `None` if all weigh the same.
    hardness: Any = None

    @property
    def is_among_negatives(self) -> bool:
        """Whether it treats positives and negatives differently."""
        return any(x is not None for x in self)

    def apply(self, logits, scale, rows, roles: Roles, positive, denominator):
        """Returns the logits and the mask of the denominator that take their places.

        Both are `(len(rows), candidates)`, for the anchors with the indices `rows`. The masks are
        those that `Roles` returns; `positive` is needed if the selection `is_among_negatives`.
        """
        similarity = ops.stop_gradient(logits / scale)
        if roles.candidates.log_probability is not None:
            logits = logits - roles.candidates.log_probability[None, :]
        if not self.is_among_negatives:
            return logits, denominator
        negative = ops.logical_not(positive)
        if denominator is not None:
            negative = ops.logical_and(negative, denominator)
        if self.limit is not None:
            compared = similarity
            if roles.candidates.guide is not None:
                guide = ops.take(roles.anchors.guide, rows, axis=0)
                compared = dot_matrix(guide, roles.candidates.guide)
            limit = ops.take(self.limit, rows, axis=0)[:, None]
            negative = ops.logical_and(negative, compared <= limit)
        if self.largest is not None:
            values = ops.where(negative, ops.stop_gradient(logits), -math.inf)
            negative = ops.logical_and(negative, _largest(values, self.largest))
        kept = negative if roles.without_positives else ops.logical_or(positive, negative)
        denominator = kept if denominator is None else ops.logical_and(denominator, kept)
        if self.hardness is not None:
            exponents = ops.stop_gradient(self.hardness * similarity)
            number = ops.maximum(ops.sum(ops.cast(negative, logits.dtype), axis=1), 1)
            log_mean = logsumexp_where(exponents, negative, axis=1) - ops.log(number)
            logits = logits + ops.where(negative, exponents - log_mean[:, None], 0)
        return logits, denominator

    def bound(self, similarity, roles: Roles):
        """Returns by how much it changes a logit at most, if no |similarity| is larger."""
        bound = 0
        if roles.candidates.log_probability is not None:
            bound = ops.relu(max_along(ops.abs(roles.candidates.log_probability), axis=0))
        return bound if self.hardness is None else bound + 2 * self.hardness * similarity


def selection_of(
    a: Samples, b: Samples, similarity: str, margin, strategy: str, largest: int | None, hardness
) -> Selection | None:
    """Returns the selection for the two views of some items as anchors, `None` if there is none.

    The arguments after the similarity are those of `InfoNCE` from `false_negative_margin` on.
    """
    limit = None
    if margin is not None:
        guided = a.guide is not None
        pair = (a.guide, b.guide) if guided else (a.embeddings, b.embeddings)
        paired = ops.stop_gradient(similarity_of_prepared(*pair, "dot" if guided else similarity))
        limit = paired - margin * (ops.abs(paired) if strategy == "relative" else 1)
    is_even = isinstance(hardness, int | float) and hardness == 0
    dtype = a.embeddings.dtype
    weight = None if is_even else ops.cast(ops.convert_to_tensor(hardness), dtype)
    selection = Selection(limit, largest, weight)
    is_used = selection.is_among_negatives or a.log_probability is not None
    return selection if is_used else None


def _largest(values, count: int):
    """Returns the mask of the `count` largest values of each row, `(rows, columns)`, bool."""
    rows, columns = ops.shape(values)
    count = min(count, columns) if isinstance(columns, int) else ops.minimum(count, columns)
    chosen = ops.cast(ops.top_k(values, count, sorted=False)[1], "int32")  # (rows, count)
    of_row = ops.zeros_like(chosen) + ops.arange(rows, dtype="int32")[:, None]
    places = ops.stack([ops.reshape(of_row, (-1,)), ops.reshape(chosen, (-1,))], axis=1)
    hits = ops.ones_like(places[:, 0], dtype=values.dtype)
    return ops.scatter_update(ops.zeros_like(values), places, hits) > 0.5
