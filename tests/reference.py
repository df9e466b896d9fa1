"""Naive float64 references: loops over items that follow the formulas directly.

Every loss is called as `loss(views, labels, valid, **arguments)`, where `views` has the shape
`(batch, views, dim)`, and returns values of shape `(batch,)`. Invalid items are removed first.
"""

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from keras import ops

from keras_jointloss.losses.sigreg import directions


class Sample(NamedTuple):
    """One view of one item."""

    item: int
    view: int


# Vectors


def unit(vector):
    length = math.sqrt(sum(x * x for x in vector))
    return vector / length if length > 0 else vector * 0.0


def euclidean(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


class Similarities(dict):
    """The similarity of each pair of samples."""

    def __init__(self, views, kind):
        self.kind = kind
        change = unit if kind == "cosine" else np.asarray
        self.vectors = {
            Sample(*index): change(views[index]).tolist() for index in np.ndindex(views.shape[:2])
        }

    def __missing__(self, pair):
        a, b = (self.vectors[sample] for sample in pair)
        if self.kind == "euclidean":
            value = -euclidean(a, b)
        else:
            value = sum(x * y for x, y in zip(a, b, strict=True))
        self[pair] = self[pair[::-1]] = value
        return value


def distances(views, kind):
    similarity = Similarities(views, kind)
    offset = 1.0 if kind == "cosine" else 0.0
    return lambda a, b: offset - similarity[a, b]


# Numbers


def log_sum_exp(values):
    if not values:
        return -math.inf
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))


def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def relu(x):
    return max(x, 0.0)


def mean(values):
    return math.fsum(values) / len(values)


# Items


def valid_items(views, valid):
    return [i for i in range(len(views)) if valid is None or valid[i]]


def valid_samples(views, valid):
    return [Sample(i, v) for i in valid_items(views, valid) for v in range(views.shape[1])]


def shared(labels, i, j):
    """Returns the number of shared labels; without labels, each item is its own class."""
    if labels is None:
        return int(i == j)
    a, b = np.ravel(labels[i]), np.ravel(labels[j])
    if len(a) == 1:
        return int(a[0] == b[0])
    return sum(int(x != 0 and y != 0) for x, y in zip(a, b, strict=True))


def mean_over_views(views, values):
    """Returns the mean value of the samples of each item; 0 for an item without samples."""
    of_item = defaultdict(list)
    for sample, value in values.items():
        of_item[sample.item].append(value)
    return np.array([mean(of_item[i]) if of_item[i] else 0.0 for i in range(len(views))])


def sides(views, labels, valid):
    """Returns each anchor with its positives and negatives."""
    samples = valid_samples(views, valid)
    return [
        (
            anchor,
            [x for x in samples if x != anchor and shared(labels, anchor.item, x.item)],
            [x for x in samples if not shared(labels, anchor.item, x.item)],
        )
        for anchor in samples
    ]


def sides_of_pairs(views, labels, valid, same_label):
    """Returns the same as `sides`, with the other views of the item as positives."""
    samples = valid_samples(views, valid)
    result = []
    for anchor in samples:
        positives, negatives = [], []
        for x in samples:
            if x.item == anchor.item:
                if x != anchor:
                    positives.append(x)
            elif same_label is None or not shared(labels, anchor.item, x.item):
                negatives.append(x)
            elif same_label == "positive":
                positives.append(x)
        result.append((anchor, positives, negatives))
    return result


# Pairs


def of_pairs(views, valid, value):
    result = np.zeros(len(views))
    for i in valid_items(views, valid):
        result[i] = value(i, views[i, 0], views[i, 1])
    return result


def contrastive(views, labels, valid=None, margin=1.0):
    def value(i, a, b):
        y, distance = float(np.ravel(labels)[i]), euclidean(a, b)
        return 0.5 * (y * distance**2 + (1 - y) * relu(margin - distance) ** 2)

    return of_pairs(views, valid, value)


def cosine_embedding(views, labels, valid=None, margin=0.0):
    def value(i, a, b):
        y, similarity = float(np.ravel(labels)[i]), unit(a) @ unit(b)
        return y * (1 - similarity) + (1 - y) * relu(similarity - margin)

    return of_pairs(views, valid, value)


def margin_contrastive(views, labels, valid=None, margin=1.0, normalize=False):
    def value(i, a, b):
        y, similarity = float(np.ravel(labels)[i]), unit(a) @ unit(b) if normalize else a @ b
        return y * relu(margin - similarity) + (1 - y) * relu(similarity)

    return of_pairs(views, valid, value)


# Scores


def of_ranking(labels, valid, similarity, scale):
    """Returns the loss of the ranking of all items by their similarity, for each item."""
    values = np.zeros(len(similarity))
    items = [i for i in range(len(values)) if valid is None or valid[i]]
    exponents = [
        scale * (similarity[j] - similarity[i])
        for i in items
        for j in items
        if np.ravel(labels)[i] > np.ravel(labels)[j]
    ]
    values[items] = log_sum_exp([0.0, *exponents])
    return values


def cosent(views, labels, valid=None, scale=20.0):
    similarity = of_pairs(views, valid, lambda i, a, b: unit(a) @ unit(b))
    return of_ranking(labels, valid, similarity, scale)


def angle(views, labels, valid=None, scale=20.0):
    def value(i, a, b):
        a, b = (np.append(unit(x), [0.0] * (len(x) % 2)) for x in (a, b))
        half = len(a) // 2
        z, w = (x[:half] + 1j * x[half:] for x in (a, b))
        return abs(sum(p.real + p.imag for p in z * np.conj(w)))

    return of_ranking(labels, valid, of_pairs(views, valid, value), scale)


def margin_mse(views, labels, valid=None, similarity="dot"):
    similarities = Similarities(views, similarity)
    values = np.zeros(len(views))
    for i in valid_items(views, valid):
        anchor, positive, negative = (Sample(i, v) for v in range(3))
        margin = similarities[anchor, positive] - similarities[anchor, negative]
        values[i] = (margin - np.ravel(labels)[i]) ** 2
    return values


# Triplets


def triplet(views, labels, valid=None, margin=1.0, mining="semi_hard", similarity="euclidean"):
    distance = distances(views, similarity)
    values = {}
    for anchor, positives, negatives in sides(views, labels, valid):
        to_positives = [distance(anchor, p) for p in positives]
        to_negatives = [distance(anchor, n) for n in negatives]
        if not positives or not negatives:
            pairs = []
        elif mining == "all":
            pairs = [(ap, an) for ap in to_positives for an in to_negatives]
        elif mining == "hard":
            pairs = [(max(to_positives), min(to_negatives))]
        else:
            pairs = [
                (ap, min([an for an in to_negatives if an > ap], default=max(to_negatives)))
                for ap in to_positives
            ]
        losses = [
            softplus(ap - an) if margin == "soft" else relu(ap - an + margin) for ap, an in pairs
        ]
        values[anchor] = mean(losses) if losses else 0.0
    return mean_over_views(views, values)


def triplet_margin(views, labels=None, valid=None, margin=1.0, similarity="euclidean", swap=False):
    distance = distances(views, similarity)
    values = np.zeros(len(views))
    for i in valid_items(views, valid):
        anchor, positive, negative = (Sample(i, v) for v in range(3))
        to_negative = distance(anchor, negative)
        if swap:
            to_negative = min(to_negative, distance(positive, negative))
        difference = distance(anchor, positive) - to_negative
        values[i] = softplus(difference) if margin == "soft" else relu(difference + margin)
    return values


# Softmax


def cross_entropy(logits, weights, label_smoothing=0.0):
    """Returns the cross-entropy between `softmax(logits)` and the normalized `weights`."""
    total, uniform = math.fsum(weights), 1 / len(logits)
    targets = [(1 - label_smoothing) * w / total + label_smoothing * uniform for w in weights]
    normaliser = log_sum_exp(logits)
    return math.fsum(t * (normaliser - z) for t, z in zip(targets, logits, strict=True))


class _Candidate(NamedTuple):
    sample: Sample
    is_positive: bool
    logit: float


def info_nce(
    views,
    labels=None,
    valid=None,
    temperature=0.07,
    similarity="cosine",
    symmetric=True,
    same_label=None,
    label_smoothing=0.0,
    num_hard_negatives=None,
    false_negative_margin=None,
    false_negative_margin_strategy="absolute",
    hardness=0.0,
    directions=None,
    partition="per_direction",
    sampling_probability=None,
    guide=None,
    fixed_at=None,
):
    """Returns the InfoNCE loss.

    The gradient treats the weights of `hardness` as constants. For central differences,
    `fixed_at` gives the views that determine them.
    """
    similarities = Similarities(views, similarity)
    fixed = similarities if fixed_at is None else Similarities(fixed_at, similarity)
    guided = similarities if guide is None else Similarities(guide, "cosine")
    items = valid_items(views, valid)
    hard = [Sample(j, v) for j in items for v in range(2, views.shape[1])]
    directions = directions or ("both" if symmetric else "first")
    anchor_views = (0,) if directions == "first" else (0, 1)

    def logit(anchor, x):
        correction = (
            math.log(sampling_probability[x.item]) if sampling_probability is not None else 0
        )
        return similarities[anchor, x] / temperature - correction

    def chosen(anchor, samples):
        """Returns the candidates among samples, each with whether it is a positive."""
        i = anchor.item
        candidates = [_Candidate(x, is_positive, logit(anchor, x)) for x, is_positive in samples]
        negatives = [x for x in candidates if not x.is_positive]
        if false_negative_margin is not None:
            own, margin = guided[Sample(i, 0), Sample(i, 1)], false_negative_margin
            is_relative = false_negative_margin_strategy == "relative"
            limit = own - margin * (abs(own) if is_relative else 1)
            negatives = [x for x in negatives if guided[anchor, x.sample] <= limit]
        if num_hard_negatives is not None:
            negatives = sorted(negatives, key=lambda x: -x.logit)[:num_hard_negatives]
        # The logarithms of the weights, whose mean is 1.
        weights = [hardness * fixed[anchor, x.sample] for x in negatives]
        total = log_sum_exp(weights) - math.log(len(weights)) if weights else 0.0
        negatives = [
            _Candidate(x.sample, False, x.logit + weight - total)
            for x, weight in zip(negatives, weights, strict=True)
        ]
        return [x for x in candidates if x.is_positive] + negatives

    def candidates_of(i, view):
        samples = []
        for other in (0, 1) if directions == "within" else (1 - view,):
            for j in items:
                same = i != j and same_label is not None and bool(shared(labels, i, j))
                is_self = i == j and other == view
                if not is_self and (not same or same_label == "positive"):
                    samples.append((Sample(j, other), i == j or same))
        samples += [(x, False) for x in hard] if view == 0 else []
        return chosen(Sample(i, view), samples)

    def of_item(i):
        found = [candidates_of(i, view) for view in anchor_views]
        positive = [mean([x.logit for x in each if x.is_positive]) for each in found]
        logits = [[x.logit for x in each] for each in found]
        targets = [
            (1 - label_smoothing) * own + label_smoothing * mean(each)
            for own, each in zip(positive, logits, strict=True)
        ]
        sums = [log_sum_exp(each) for each in logits]
        return (log_sum_exp(sums) if partition == "joint" else mean(sums)) - mean(targets)

    values = np.zeros(len(views))
    for i in items:
        values[i] = of_item(i)
    return values


def softmax_over_samples(views, all_sides, temperature, similarity, label_smoothing):
    similarities = Similarities(views, similarity)
    values = {}
    for anchor, positives, negatives in all_sides:
        logits = [similarities[anchor, x] / temperature for x in positives + negatives]
        weights = [1.0] * len(positives) + [0.0] * len(negatives)
        values[anchor] = cross_entropy(logits, weights, label_smoothing) if positives else 0.0
    return mean_over_views(views, values)


def nt_xent(
    views,
    labels=None,
    valid=None,
    temperature=0.1,
    similarity="cosine",
    same_label=None,
    label_smoothing=0.0,
):
    all_sides = sides_of_pairs(views, labels, valid, same_label)
    return softmax_over_samples(views, all_sides, temperature, similarity, label_smoothing)


def sup_con(views, labels, valid=None, temperature=0.07, similarity="cosine", label_smoothing=0.0):
    all_sides = sides(views, labels, valid)
    return softmax_over_samples(views, all_sides, temperature, similarity, label_smoothing)


def decoupled_contrastive(
    views, labels=None, valid=None, temperature=0.1, similarity="cosine", same_label=None
):
    similarities = Similarities(views, similarity)
    values = {}
    for anchor, positives, negatives in sides_of_pairs(views, labels, valid, same_label):
        attraction = [similarities[anchor, p] / temperature for p in positives]
        repulsion = [similarities[anchor, n] / temperature for n in negatives]
        is_whole = attraction and repulsion
        values[anchor] = log_sum_exp(repulsion) - mean(attraction) if is_whole else 0.0
    return mean_over_views(views, values)


def n_pairs(views, labels, valid=None, similarity="dot", label_smoothing=0.0):
    similarities = Similarities(views, similarity)
    items = valid_items(views, valid)
    values = np.zeros(len(views))
    for i in items:
        logits = [similarities[Sample(i, 0), Sample(j, 1)] for j in items]
        weights = [float(shared(labels, i, j) > 0) for j in items]
        values[i] = cross_entropy(logits, weights, label_smoothing)
    return values


# Sigmoid


def siglip(
    views,
    labels=None,
    valid=None,
    temperature=0.1,
    bias=-10.0,
    similarity="cosine",
    same_label=None,
):
    similarities = Similarities(views, similarity)
    items = valid_items(views, valid)
    values = np.zeros(len(views))
    for i in items:
        for j in items:
            same = same_label is not None and bool(shared(labels, i, j))
            if i != j and same and same_label == "ignore":
                continue
            sign = 1.0 if i == j or same else -1.0
            logit = similarities[Sample(i, 0), Sample(j, 1)] / temperature + bias
            values[i] += softplus(-sign * logit)
    return values


# Weighted pairs


def multi_similarity(views, labels, valid=None, alpha=2.0, beta=50.0, base=0.5, mining_margin=None):
    similarities = Similarities(views, "cosine")
    values = {}
    for anchor, positives, negatives in sides(views, labels, valid):
        near = [similarities[anchor, p] for p in positives]
        far = [similarities[anchor, n] for n in negatives]
        if mining_margin is not None and near and far:
            near, far = (
                [s for s in near if s < max(far) + mining_margin],
                [s for s in far if s > min(near) - mining_margin],
            )
        values[anchor] = (
            log_sum_exp([0.0] + [-alpha * (s - base) for s in near]) / alpha
            + log_sum_exp([0.0] + [beta * (s - base) for s in far]) / beta
        )
    return mean_over_views(views, values)


def circle(views, labels, valid=None, margin=0.4, gamma=80.0, fixed_at=None):
    """Returns the circle loss.

    The gradient treats its weights as constants. For central differences, `fixed_at` gives the
    views that determine the weights.
    """
    similarities = Similarities(views, "cosine")
    fixed = similarities if fixed_at is None else Similarities(fixed_at, "cosine")
    values = {}
    for anchor, positives, negatives in sides(views, labels, valid):
        pull = [
            -gamma * relu(1 + margin - fixed[anchor, p]) * (similarities[anchor, p] - 1 + margin)
            for p in positives
        ]
        push = [
            gamma * relu(fixed[anchor, n] + margin) * (similarities[anchor, n] - margin)
            for n in negatives
        ]
        is_whole = pull and push
        values[anchor] = softplus(log_sum_exp(push) + log_sum_exp(pull)) if is_whole else 0.0
    return mean_over_views(views, values)


# Embeddings of a teacher, and targets without a gradient. `fixed_at` are the views that give them.


def similarity_distillation(
    views,
    labels=None,
    valid=None,
    temperature=0.07,
    teacher_temperature=0.07,
    similarity="cosine",
    symmetric=True,
    fixed_at=None,
):
    students = Similarities(views, similarity)
    teachers = Similarities(views if fixed_at is None else fixed_at, similarity)
    items = valid_items(views, valid)

    def divergence(i, a, b):
        logits = [students[Sample(i, a), Sample(j, b)] / temperature for j in items]
        targets = [
            teachers[Sample(i, a + 2), Sample(j, b + 2)] / teacher_temperature for j in items
        ]
        p = [math.exp(x - log_sum_exp(targets)) for x in targets]
        entropy = -math.fsum(x * math.log(x) for x in p if x > 0)
        return cross_entropy(logits, p) - entropy

    values = np.zeros(len(views))
    for i in items:
        values[i] = divergence(i, 0, 1)
        if symmetric:
            values[i] = (values[i] + divergence(i, 1, 0)) / 2
    return values


def negative_cosine_similarity(views, labels=None, valid=None, fixed_at=None):
    targets, count = views if fixed_at is None else fixed_at, views.shape[1] // 2
    values = np.zeros(len(views))
    for i in valid_items(views, valid):
        pairs = [(unit(views[i, k]), unit(targets[i, -1 - k])) for k in range(count)]
        values[i] = -mean([p @ z for p, z in pairs])
    return values


# Batch statistics


def koleo(views, labels=None, valid=None, epsilon=1e-8):
    distance = Similarities(views, "euclidean")
    distance.vectors = Similarities(views, "cosine").vectors
    items = valid_items(views, valid)
    values = np.zeros(len(views))
    for i in items if len(items) > 1 else []:
        for v in range(views.shape[1]):
            nearest = min(-distance[Sample(i, v), Sample(j, v)] for j in items if j != i)
            values[i] -= math.log(nearest + epsilon) / views.shape[1]
    return values


def of_pairs_of_items(views, valid, value):
    """Returns the mean over the views of a value of all cosines and distances of two items."""
    items, similarity = valid_items(views, valid), Similarities(views, "cosine")
    found = []
    for v in range(views.shape[1]):
        pairs = [(Sample(i, v), Sample(j, v)) for i in items for j in items if i != j]
        squares = [euclidean(*(similarity.vectors[x] for x in pair)) ** 2 for pair in pairs]
        found.append(value([similarity[pair] for pair in pairs], squares) if pairs else 0.0)
    return mean(found)


def spread_out(views, labels=None, valid=None, mean_weight=1.0, second_moment_weight=1.0):
    def value(cosines, squares):
        excess = relu(mean([s * s for s in cosines]) - 1 / views.shape[2])
        return mean_weight * mean(cosines) ** 2 + second_moment_weight * excess

    values = np.zeros(len(views))
    values[valid_items(views, valid)] = of_pairs_of_items(views, valid, value)
    return values


def alignment_uniformity(views, labels=None, valid=None, uniformity_weight=1.0, alpha=2.0, t=2.0):
    uniformity = of_pairs_of_items(
        views, valid, lambda cosines, squares: math.log(mean([math.exp(-t * x) for x in squares]))
    )
    alignment = of_pairs(views, valid, lambda i, a, b: euclidean(unit(a), unit(b)) ** alpha)
    alignment[valid_items(views, valid)] += uniformity_weight * uniformity
    return alignment


def sigreg(
    views, labels=None, valid=None, num_slices=256, knots=17, t_max=3.0, seed=0, fixed_at=None
):
    """Returns SIGReg with the directions of the package."""
    items = valid_items(views, valid)
    fixed = np.zeros_like(views)
    fixed[items] = (views if fixed_at is None else fixed_at)[items]
    slices = ops.convert_to_numpy(directions(ops.convert_to_tensor(fixed), num_slices, seed))
    values, t = np.zeros(len(views)), np.linspace(0, t_max, knots)
    if items:
        phases = (views[items] @ slices)[..., None] * t  # (items, views, slices, knots)
        normal = np.exp(-(t**2) / 2)
        squares = (np.cos(phases).mean(0) - normal) ** 2 + np.sin(phases).mean(0) ** 2
        values[items] = len(items) * np.trapezoid(2 * squares * normal, t).mean()
    return values


# Features


def _columns(vectors):
    """Returns the centered values of each feature; exact zeros for a constant feature."""
    columns = []
    for column in np.transpose(vectors):
        is_constant = all(x == column[0] for x in column)
        center = column[0] if is_constant else mean(column)
        columns.append([x - center for x in column])
    return columns


def _inner(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def vicreg(
    views,
    labels=None,
    valid=None,
    invariance_weight=25.0,
    variance_weight=25.0,
    covariance_weight=1.0,
    epsilon=1e-4,
):
    items = valid_items(views, valid)
    values = np.zeros(len(views))
    if not items:
        return values
    dim, divisor = views.shape[2], max(len(items) - 1, 1)
    variance = covariance = 0.0
    for v in (0, 1):
        columns = _columns(views[items, v])
        for i, a in enumerate(columns):
            for j, b in enumerate(columns):
                entry = _inner(a, b) / divisor
                if i == j:
                    variance += 0.5 * relu(1 - math.sqrt(entry + epsilon)) / dim
                else:
                    covariance += entry**2 / dim
    for i in items:
        invariance = mean([(x - y) ** 2 for x, y in zip(views[i, 0], views[i, 1], strict=True)])
        values[i] = (
            invariance_weight * invariance
            + variance_weight * variance
            + covariance_weight * covariance
        )
    return values


def barlow_twins(views, labels=None, valid=None, off_diagonal_weight=0.0051):
    items = valid_items(views, valid)
    values = np.zeros(len(views))
    if not items:
        return values
    total = 0.0
    for i, a in enumerate(_columns(views[items, 0])):
        for j, b in enumerate(_columns(views[items, 1])):
            lengths = math.sqrt(_inner(a, a) * _inner(b, b))
            correlation = _inner(a, b) / lengths if lengths > 0 else 0.0
            total += (1 - correlation) ** 2 if i == j else off_diagonal_weight * correlation**2
    values[items] = total
    return values


# Gradients


def central_differences(function, x, step=1e-6):
    """Returns the gradient of a scalar function of a float64 array."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        gradient[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return gradient
