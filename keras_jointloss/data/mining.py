"""The search for hard negatives."""

from typing import Any, Literal

import numpy as np
from keras import ops

from keras_jointloss._core.relevance import Relevance, parse_relevant
from keras_jointloss._core.types import Tensor
from keras_jointloss._core.validation import (
    invalid,
    validate_choice,
    validate_count,
    validate_number,
)

#: The number of similarities in memory at a time.
_AT_ONCE = 2**24


def hard_negatives(
    queries: Tensor,
    candidates: Tensor,
    k: int = 1,
    margin: float | None = None,
    margin_strategy: Literal["absolute", "relative"] = "absolute",
    relevant: Any = None,
    similarity: Literal["cosine", "dot"] = "cosine",
    tile_size: int = 1024,
) -> np.ndarray:
    """Returns the `k` wrong candidates that are the most similar to each query.

    As further views of the queries they make a contrastive loss harder than random items of the
    batch do. The most similar candidates, however, are often right ones that nobody has labelled.
    With a `margin`, a candidate counts as wrong only if its similarity is clearly below that of the
    right one: `j` is a negative of the query `i`, whose right candidate has the similarity `p_i`,
    if, by default,

        s_ij <= p_i - margin

    or, with `margin_strategy="relative"`, if

        s_ij <= p_i * (1 - margin)

    The relative margin is meant for positive similarities. If a query has several right candidates,
    the least similar of them counts. Memory holds the embeddings and a tile of the similarities,
    never all of them.

    Args:
        queries: Embeddings, `(queries, dim)`.
        candidates: Embeddings, `(candidates, dim)`.
        k: The number of negatives of each query, >= 1.
        margin: A number >= 0, or `None` for all candidates that are not right. 0 excludes those
            that are more similar than the right one.
        margin_strategy: `"absolute"` or `"relative"`.
        relevant: For each query the index of its right candidate, `(queries,)`, the indices of its
            right candidates, a list of lists of any lengths, or `(queries, candidates)`, bool.
            `None` if the candidate `i` is right for the query `i`.
        similarity: `"cosine"` or `"dot"`.
        tile_size: The number of queries to compare at once.

    Returns:
        The indices of the negatives among the candidates, `(queries, k)`, int64, the most similar
        first. -1 where a query has fewer.

    Raises:
        ValueError: If an argument is invalid, an embedding is not finite, or a query has no right
            candidate but a margin.

    References:
        - Moreira et al., 2024, NV-Retriever: Improving Text Embedding Models with Effective
          Hard-Negative Mining (margins: "TopK-MarginPos" 0.05, "TopK-PercPos" 95 %)
        - Xiong et al., 2021, Approximate Nearest Neighbor Negative Contrastive Learning for Dense
          Text Retrieval

    Example:

    >>> import numpy as np
    >>> candidates = np.array([[1.0, 0.0], [0.9, 0.1], [0.5, 0.5], [0.0, 1.0]])
    >>> hard_negatives(candidates[:1], candidates, k=2, relevant=[0])
    array([[1, 2]])
    >>> hard_negatives(candidates[:1], candidates, k=2, relevant=[0], margin=0.05)
    array([[2, 3]])
    """
    k, tile_size = validate_count(k, "k"), validate_count(tile_size, "tile_size")
    margin = None if margin is None else validate_number(margin, "margin", minimum=0)
    validate_choice(margin_strategy, "margin_strategy", ("absolute", "relative"))
    is_cosine = validate_choice(similarity, "similarity", ("cosine", "dot")) == "cosine"
    a, b = (
        _embeddings(queries, "queries", is_cosine),
        _embeddings(candidates, "candidates", is_cosine),
    )
    if a.shape[1] != b.shape[1]:
        raise invalid("candidates", f"embeddings of dim {a.shape[1]}", received=f"dim {b.shape[1]}")
    right = parse_relevant(np.arange(len(a)) if relevant is None else relevant)
    right = right.validated(len(a), len(b))
    limits = np.full(len(a), np.inf, "float32")
    if margin is not None:
        nearest = _least_similar(a, b, right)
        limits = nearest * (1 - margin) if margin_strategy == "relative" else nearest - margin
    found = np.full((len(a), k), -1)
    for start in range(0, len(a), tile_size):
        rows = slice(start, min(start + tile_size, len(a)))
        found[rows] = _search(a[rows], b, k, limits[rows], right, start)
    return found


def _embeddings(values: Any, name: str, is_cosine: bool) -> np.ndarray:
    x = np.asarray(ops.convert_to_numpy(values) if ops.is_tensor(values) else values, "float32")
    if x.ndim != 2 or not len(x):
        raise invalid(name, "embeddings (items, dim)", received=f"the shape {x.shape}")
    if not np.isfinite(x).all():
        raise invalid(name, "finite embeddings", received="NaN or infinity")
    if is_cosine:
        length = np.linalg.norm(x, axis=1, keepdims=True)
        x = x / np.where(length == 0, 1, length)
    return x


def _least_similar(a, b, right: Relevance) -> np.ndarray:
    """Returns the least similarity of a right candidate for each query: `(queries,)`."""
    least = np.full(len(a), np.inf, "float32")
    rows = max(1, _AT_ONCE // a.shape[1])
    for start in range(0, len(right.rows), rows):
        i, j = right.rows[start : start + rows], right.columns[start : start + rows]
        np.minimum.at(least, i, np.sum(a[i] * b[j], axis=1))
    if np.isinf(least).any():
        expected = "at least one right candidate for each query, since a margin is given"
        raise invalid("relevant", expected, received=f"none for query {np.argmax(least)}")
    return least


def _search(a, b, k, limits, right: Relevance, start: int) -> np.ndarray:
    """Returns the negatives of some queries, from the one at `start`: `(queries, k)`."""
    pairs = slice(*np.searchsorted(right.rows, [start, start + len(a)]))
    rows, columns = right.rows[pairs] - start, right.columns[pairs]
    values = np.full((len(a), k), -np.inf, "float32")
    indices = np.full((len(a), k), -1)
    width = max(1, _AT_ONCE // len(a))
    for first in range(0, len(b), width):
        tile = a @ b[first : first + width].T
        is_here = (columns >= first) & (columns < first + width)
        tile[rows[is_here], columns[is_here] - first] = -np.inf
        tile[tile > limits[:, None]] = -np.inf
        number = min(k, tile.shape[1])
        best = np.argpartition(tile, -number, axis=1)[:, -number:]
        values = np.concatenate([values, np.take_along_axis(tile, best, axis=1)], axis=1)
        indices = np.concatenate([indices, best + first], axis=1)
        order = np.lexsort((indices, -values), axis=1)[:, :k]
        values = np.take_along_axis(values, order, axis=1)
        indices = np.take_along_axis(indices, order, axis=1)
    return np.where(np.isneginf(values), -1, indices)
