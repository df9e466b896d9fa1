"""Naive float64 references of the metrics: loops over items that follow the definitions.

Each returns the value and the count of every item; `mean` combines them.
"""

import math
import statistics

import numpy as np

from tests.reference import unit


def mean(values, counts, weight=None):
    weight = [1.0] * len(values) if weight is None else weight
    total = sum(v * c * w for v, c, w in zip(values, counts, weight, strict=True))
    divisor = sum(c * w for c, w in zip(counts, weight, strict=True))
    return total / divisor if divisor else 0.0


def nearness(x, y, kind="cosine"):
    """Returns the similarity, rounded so that ties compare equal."""
    if kind == "euclidean":
        return round(-math.dist(x, y), 12)
    if kind == "cosine":
        x, y = unit(x), unit(y)
    return round(math.fsum(p * q for p, q in zip(x, y, strict=True)), 12)


def _valid(views, valid):
    return [True] * len(views) if valid is None else list(valid)


def _is_same(labels, i, j):
    return labels is not None and labels[i] == labels[j]


def rank(query, candidates, right, wrong, kind="cosine"):
    """Returns the rank of the best `right` candidate among the `wrong` candidates."""
    best = max(nearness(query, candidates[j], kind) for j in right)
    return 1 + sum(nearness(query, candidates[j], kind) >= best for j in wrong)


def ranks(queries, candidates, labels=None, valid=None, kind="cosine", same_label=None, find=rank):
    valid = _valid(queries, valid)
    labels = labels if same_label else None
    result = []
    for i, query in enumerate(queries):
        others = [j for j in range(len(candidates)) if j != i and valid[j]]
        wrong = [j for j in others if not _is_same(labels, i, j)]
        right = [i]
        if same_label == "positive":
            right += [j for j in others if _is_same(labels, i, j)]
        result.append(find(query, candidates, right, wrong, kind))
    return result


def retrieval(
    gain,
    views,
    labels,
    valid,
    direction="both",
    similarity="cosine",
    same_label=None,
    dim=None,
    find=rank,
):
    a, b = views[:, 0, :dim], views[:, 1, :dim]
    searches = {"a_to_b": [(a, b)], "b_to_a": [(b, a)], "both": [(a, b), (b, a)]}[direction]
    found = [ranks(*search, labels, valid, similarity, same_label, find) for search in searches]
    values = [sum(gain(r) for r in item) / len(item) for item in zip(*found, strict=True)]
    return values, [float(v) for v in _valid(views, valid)]


def recall_at_k(views, labels=None, valid=None, k=1, **arguments):
    return retrieval(lambda r: float(r <= k), views, labels, valid, **arguments)


def mean_reciprocal_rank(views, labels=None, valid=None, **arguments):
    return retrieval(lambda r: 1 / r, views, labels, valid, **arguments)


def positions(query, candidates, right, wrong, kind="cosine"):
    """Returns the positions of the `right` candidates, after the `wrong` ones in a tie."""
    found = sorted((nearness(query, candidates[j], kind) for j in right), reverse=True)
    return [
        number + sum(nearness(query, candidates[j], kind) >= nearest for j in wrong)
        for number, nearest in enumerate(found, start=1)
    ]


def average_precision(places):
    return sum(number / place for number, place in enumerate(places, start=1)) / len(places)


def ndcg(places, k):
    gain = sum(1 / math.log2(1 + place) for place in places if place <= k)
    return gain / sum(1 / math.log2(1 + i) for i in range(1, min(k, len(places)) + 1))


def mean_average_precision(views, labels=None, valid=None, same_label="positive", **arguments):
    return retrieval(
        average_precision, views, labels, valid, same_label=same_label, find=positions, **arguments
    )


def ndcg_at_k(views, labels=None, valid=None, k=10, same_label="positive", **arguments):
    return retrieval(
        lambda places: ndcg(places, k),
        views,
        labels,
        valid,
        same_label=same_label,
        find=positions,
        **arguments,
    )


def retrieval_figures(a, b, right, k, name, has_several=True):
    """Returns the figures of searches in both directions; `right[i][j]` tells if b_j is right."""
    figures, both = {}, {}
    for way, x, y, relevant in (("a_to_b", a, b, right), ("b_to_a", b, a, np.transpose(right))):
        places = []
        for query, row in zip(x, relevant, strict=True):
            hits = [j for j, is_right in enumerate(row) if is_right]
            misses = [j for j, is_right in enumerate(row) if not is_right]
            if hits:
                places.append(positions(query, y, hits, misses))
        ranks = [found[0] for found in places]
        found = {f"recall_at_{n}": [rank <= n for rank in ranks] for n in k}
        found["mean_reciprocal_rank"] = [1 / rank for rank in ranks]
        if has_several:
            found |= {f"ndcg_at_{n}": [ndcg(place, n) for place in places] for n in k}
            found["mean_average_precision"] = [average_precision(place) for place in places]
        values = {key: sum(each) / len(each) for key, each in found.items()}
        for key, value in {**values, "median_rank": statistics.median(ranks)}.items():
            figures[f"{name}_{way}_{key}"] = value
            both[f"{name}_{key}"] = both.get(f"{name}_{key}", 0) + value / 2
    return {**figures, **both}


def average_precision_at_r(query, candidates, is_right, kind):
    """Returns the average precision over the R nearest candidates, and whether R > 0."""
    number = sum(is_right)
    # In a tie, wrong candidates come first.
    order = sorted(
        range(len(candidates)), key=lambda j: (-nearness(query, candidates[j], kind), is_right[j])
    )
    found, total = 0, 0.0
    for position, j in enumerate(order[:number], start=1):
        if is_right[j]:
            found += 1
            total += found / position
    return (total / number, 1.0) if number else (0.0, 0.0)


def mean_average_precision_at_r(views, labels, valid=None, similarity="cosine", dim=None):
    views, valid = views[..., :dim], _valid(views, valid)
    values, counts = [], []
    for i in range(len(views)):
        results = []
        for v in range(views.shape[1]):
            others = [
                (j, w)
                for j in range(len(views))
                for w in range(views.shape[1])
                if valid[j] and valid[i] and (j, w) != (i, v)
            ]
            is_right = [bool(labels[j] == labels[i]) for j, _ in others]
            candidates = [views[other] for other in others]
            results.append(average_precision_at_r(views[i, v], candidates, is_right, similarity))
        values.append(sum(value for value, _ in results) / len(results))
        counts.append(results[0][1])
    return values, counts


def pair_accuracy(views, labels, valid=None, threshold=0.5, similarity="cosine"):
    values = [
        float((nearness(a, b, similarity) >= threshold) == bool(label))
        for (a, b), label in zip(views, labels, strict=True)
    ]
    return values, [float(v) for v in _valid(views, valid)]


def alignment(views, labels=None, valid=None, alpha=2.0):
    values = [math.dist(unit(a), unit(b)) ** alpha for a, b in views]
    return values, [float(v) for v in _valid(views, valid)]


def uniformity(views, labels=None, valid=None, t=2.0):
    """Returns the values before the logarithm, which follows the mean."""
    valid = _valid(views, valid)
    values, counts = [], []
    for i in range(len(views)):
        others = [j for j in range(len(views)) if valid[i] and valid[j] and j != i]
        terms = [
            math.exp(-t * math.dist(unit(views[i, v]), unit(views[j, v])) ** 2)
            for j in others
            for v in range(views.shape[1])
        ]
        values.append(sum(terms) / len(terms) if terms else 0.0)
        counts.append(float(bool(terms)))
    return values, counts


def positive_similarity(views, labels=None, valid=None, similarity="cosine"):
    return [nearness(a, b, similarity) for a, b in views], [float(v) for v in _valid(views, valid)]


def negative_similarity(views, labels=None, valid=None, similarity="cosine", same_label=None):
    valid = _valid(views, valid)
    labels = labels if same_label else None
    values, counts = [], []
    for i, (a, b) in enumerate(views):
        terms = []
        for j, (other_a, other_b) in enumerate(views):
            if valid[i] and valid[j] and j != i and not _is_same(labels, i, j):
                terms += [nearness(a, other_b, similarity), nearness(other_a, b, similarity)]
        values.append(sum(terms) / len(terms) if terms else 0.0)
        counts.append(float(bool(terms)))
    return values, counts


def similarity_gap(views, labels=None, valid=None, similarity="cosine", same_label=None):
    positive, _ = positive_similarity(views, labels, valid, similarity)
    negative, counts = negative_similarity(views, labels, valid, similarity, same_label)
    return [p - n for p, n in zip(positive, negative, strict=True)], counts
