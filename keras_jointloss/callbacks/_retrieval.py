"""Searches between two sets of embeddings: where the right candidates rank."""

import numpy as np

#: Up to this number of right candidates, one comparison with all candidates for each is cheaper
#: than to sort the candidates.
MAX_COMPARISONS = 16

#: The number of similarities to sort at once: 16 MiB of keys stay near the processor.
SORTED_AT_ONCE = 2**21


def retrieval_figures(a, b, relevance, k, tile_size, has_several) -> dict[str, float]:
    """Returns what searches in both directions find.

    Args:
        a: `(queries, dim)`, float32.
        b: `(candidates, dim)`, float32.
        relevance: Which `b` are right for which `a`.
        k: The numbers of candidates to consider.
        tile_size: The number of queries to compare with all candidates at once.
        has_several: Whether a query can have several right candidates: only then are nDCG and the
            mean average precision among the figures, which otherwise follow from the rank.
    """
    a, b = _unit(a), _unit(b)
    results: dict[str, float] = {}
    searches = {"a_to_b": (a, b, relevance), "b_to_a": (b, a, relevance.transposed())}
    for way, search in searches.items():
        figures = _search(*search, k, tile_size)
        for key, values in figures.items():
            if has_several or not key.startswith(("ndcg", "mean_average")):
                mean = np.median if key == "median_rank" else np.mean
                results[f"{way}_{key}"] = float(mean(values))
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

    Args:
        places: `(queries, most)`, as `positions` returns them.
        count: `(queries,)`, the numbers of right candidates.
        k: The numbers of candidates to consider.
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
    are at least as similar, up to rounding. A right candidate whose similarity is NaN comes last, a
    wrong one first, so that a model that has diverged finds nothing.

    Args:
        similarity: `(queries, candidates)`, float32, of vectors of length 1.
        right: `(queries, candidates)`, bool: at least one for each query.

    Returns:
        `(queries, most)`, float64, ascending, where `most` is the largest number of right
        candidates; infinity where a query has fewer.
    """
    # Similarities of equal unit vectors differed by up to 2.5 roundings at dim 4,096.
    rounding = 8 * np.finfo("float32").eps
    count = np.count_nonzero(right, axis=1)
    places = np.full((len(right), count.max()), np.inf)
    if count.max() > MAX_COMPARISONS:
        step = max(1, SORTED_AT_ONCE // right.shape[1])
        for start in range(0, len(right), step):
            part = slice(start, start + step)
            values = np.where(right[part], similarity[part] - rounding, similarity[part])
            is_nan = np.isnan(values)
            if is_nan.any():
                values[is_nan] = np.where(right[part][is_nan], -np.inf, np.inf)
            in_order = _right_in_order(values, right[part])
            rows, columns = np.nonzero(in_order)
            places[part][rows, _slots(count[part])] = 1 + columns
        return places
    rows, columns = np.nonzero(right)
    values = np.full(places.shape, -np.inf, similarity.dtype)
    values[rows, _slots(count)] = np.nan_to_num(similarity[rows, columns], nan=-np.inf)
    values = -np.sort(-values, axis=1)
    wrong = ~right
    for j in range(places.shape[1]):
        is_behind = similarity < values[:, j, None] - rounding  # False for NaN
        ahead = np.count_nonzero(~is_behind & wrong, axis=1)
        places[:, j] = np.where(j < count, j + 1 + ahead, np.inf)
    return places


def _slots(count):
    """Returns 0, 1, ... for the right candidates of each query: `(pairs,)`."""
    return np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)


def _right_in_order(similarity, right):
    """Returns `right` in descending order of the similarity, in ties the wrong candidates first.

    One sort of whole numbers does it: the upper bits hold a number that descends with the
    similarity, the lowest one tells whether the candidate is right.
    """
    bits = (similarity + np.float32(0)).view("uint32")  # Adding 0 gives -0 the bits of 0.
    keys = np.where(bits >> 31, bits, bits ^ 0x7FFFFFFF).astype("uint64")  # descending
    keys <<= np.uint64(1)
    keys |= right
    keys.sort(axis=1)
    return (keys & np.uint64(1)).astype("bool")


def _unit(x):
    """Scales the vectors to length 1; a zero vector stays zero."""
    with np.errstate(invalid="ignore", over="ignore"):  # Infinite values become NaN.
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(length == 0, 1, length)
