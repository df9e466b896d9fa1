"""Searches between two sets of embeddings: where the right candidates rank."""

import math

import numpy as np

#: Up to this number of right candidates, one comparison with all candidates for each is cheaper
#: than to sort the candidates.
MAX_COMPARISONS = 16

#: The number of similarities to treat at once: a few MiB stay near the processor.
SIMILARITIES_AT_ONCE = 2**20


def retrieval_figures(a, b, relevance, k, tile_size, has_several) -> dict[str, float]:
    """Returns what searches in both directions find; NaN if an embedding is not finite.

    Embeddings are `(queries, dim)` and `(candidates, dim)`, float32. `tile_size` queries are
    compared with all candidates at once. Only if a query can have several right candidates are nDCG
    and the mean average precision among the figures, which otherwise follow from the rank.
    """
    factor = 1.0 if np.isfinite(a).all() and np.isfinite(b).all() else math.nan
    a, b = unit(a), unit(b)
    results: dict[str, float] = {}
    searches = {"a_to_b": (a, b, relevance), "b_to_a": (b, a, relevance.transposed())}
    for way, search in searches.items():
        figures = _search(*search, k, tile_size)
        for key, values in figures.items():
            if has_several or not key.startswith(("ndcg", "mean_average")):
                mean = np.median if key == "median_rank" else np.mean
                results[f"{way}_{key}"] = factor * float(mean(values))
    for key in [key.removeprefix("a_to_b_") for key in results if key.startswith("a_to_b_")]:
        results[key] = (results[f"a_to_b_{key}"] + results[f"b_to_a_{key}"]) / 2
    return results


def _search(queries, candidates, relevance, k, tile_size) -> dict[str, np.ndarray]:
    """Returns the figures of each query that has a right candidate: `(queries,)` or fewer."""
    tiles: list[dict[str, np.ndarray]] = []
    for start in range(0, len(queries), tile_size):
        tile = queries[start : start + tile_size]
        right = relevance.block(start, start + len(tile))
        count = np.count_nonzero(right, axis=1)
        found = count > 0
        if found.any():
            places = positions(tile[found] @ candidates.T, right[found])
            tiles.append(_figures(places, count[found], k))
    return {key: np.concatenate([figures[key] for figures in tiles]) for key in tiles[0]}


def _figures(places, count, k) -> dict[str, np.ndarray]:
    """Returns the figures of each query.

    Places are `(queries, most)`, as `positions` returns them, and the numbers of right candidates
    `(queries,)`.
    """
    rank, order = places[:, 0], np.arange(1, places.shape[1] + 1)
    figures = {f"recall_at_{n}": rank <= n for n in k}
    figures |= {"mean_reciprocal_rank": 1 / rank, "median_rank": rank}
    gain = 1 / np.log2(1 + places)
    ideal = np.cumsum(1 / np.log2(1 + order))  # of 1, 2, ... right candidates at the top
    for n in k:
        gained = np.sum(np.where(places <= n, gain, 0), axis=1)
        figures[f"ndcg_at_{n}"] = gained / ideal[np.minimum(n, count) - 1]
    figures["mean_average_precision"] = np.sum(order / places, axis=1) / count
    return figures


def positions(similarity, right):
    """Returns the positions of the right candidates in the lists of the queries.

    The position of the j-th nearest right candidate is `j` + the number of wrong candidates that
    are at least as similar, up to rounding. If some similarities are NaN, they have no meaning.

    Similarities are `(queries, candidates)`, float32, of vectors of length 1, and right, likewise,
    bool, at least one for each query. Positions are `(queries, most)`, float64, ascending, where
    `most` is the largest number of right candidates; infinity where a query has fewer.
    """
    # As in `closeness_matrix` of the metrics: 4 roundings of the sum of the two squares, here 2.
    rounding = 8 * np.finfo("float32").eps
    count = np.count_nonzero(right, axis=1)
    places = np.full((len(right), count.max()), np.inf)
    rows = max(1, SIMILARITIES_AT_ONCE // right.shape[1])
    for start in range(0, len(right), rows):
        part = slice(start, start + rows)
        is_right, number = right[part], count[part]
        # A wrong candidate is ahead of a right one if its value is not smaller.
        values = np.where(is_right, similarity[part] - rounding, similarity[part])
        find = _by_sorting if number.max() > MAX_COMPARISONS else _by_comparing
        find(values, is_right, number, places[part])
    return places


def _by_comparing(values, right, count, places) -> None:
    """Sets the positions by comparing each right candidate with all the wrong ones."""
    nearest = np.full((len(right), count.max()), -np.inf, values.dtype)
    pairs = np.flatnonzero(right)
    nearest[pairs // right.shape[1], _slots(count)] = values.ravel()[pairs]
    nearest = -np.sort(-nearest, axis=1)
    wrong = np.where(right, np.nan, values)  # NaN is not ahead.
    for j in range(count.max()):
        rows = np.flatnonzero(count > j)
        ahead = wrong[rows] >= nearest[rows, j, None]
        places[rows, j] = j + 1 + ahead.view("int8").sum(axis=1, dtype="int32")


def _by_sorting(values, right, count, places) -> None:
    """Sets the positions by sorting all candidates of a query.

    The keys are whole numbers: the upper bits ascend as the similarity descends, and the lowest one
    tells whether the candidate is right, so that a wrong one comes first in a tie.
    """
    # The bits of a float below 2 leave room for one more. Subtraction from 0 returns no -0.
    keys = np.clip(0 - values, -1.5, 1.5).view("int32")
    keys ^= (keys >> 31) & 0x7FFFFFFF  # The bits of a negative float descend.
    keys <<= 1
    keys |= right
    keys.sort(axis=1)
    pairs = np.flatnonzero(keys & 1)
    columns = right.shape[1]
    places[pairs // columns, _slots(count)] = 1 + pairs % columns


def _slots(count):
    """Returns 0, 1, ... for the right candidates of each query: `(pairs,)`."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


def unit(x):
    """Scales the vectors to length 1; a zero vector stays zero."""
    with np.errstate(invalid="ignore", over="ignore"):  # Infinite values become NaN.
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(length == 0, 1, length)
