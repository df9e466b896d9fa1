"""The losses with proxies as naive loops in float64.

Each is called as `loss(embeddings, proxies, labels, valid, **arguments)`, of the shapes
`(batch, dim)`, `(classes, dim)` and `(batch,)` or `(batch, classes)`, and returns `(batch,)`.
"""

import math

import numpy as np

from tests.reference import cross_entropy, log_sum_exp, mean, softplus, unit


def _cosines(embeddings, proxies):
    return [[float(unit(x) @ unit(p)) for p in proxies] for x in embeddings]


def _rows(labels, classes):
    """Returns the entry of each class in the row of each item."""
    if np.ndim(labels) == 2:
        return [[float(y) for y in row] for row in labels]
    return [[float(c == label) for c in range(classes)] for label in labels]


def _valid(labels, valid):
    return [i for i in range(len(labels)) if valid is None or valid[i]]


def _softmax(embeddings, proxies, labels, valid, logit):
    """Returns the cross-entropy of the logits, functions of the cosine and the entry in the row."""
    cosines, rows = _cosines(embeddings, proxies), _rows(labels, len(proxies))
    values = np.zeros(len(embeddings))
    for i in _valid(labels, valid):
        if sum(rows[i]) > 0:
            logits = [logit(s, y) for s, y in zip(cosines[i], rows[i], strict=True)]
            values[i] = cross_entropy(logits, rows[i])
    return values


def arc_face(embeddings, proxies, labels, valid=None, margin=0.5, scale=64.0):
    def logit(cosine, y):
        angle, added = math.acos(max(-1.0, min(1.0, cosine))), margin * y
        if angle + added <= math.pi:
            return scale * math.cos(angle + added)
        return scale * (cosine - added * math.sin(added))

    return _softmax(embeddings, proxies, labels, valid, logit)


def cos_face(embeddings, proxies, labels, valid=None, margin=0.35, scale=64.0):
    return _softmax(embeddings, proxies, labels, valid, lambda s, y: scale * (s - margin * y))


def norm_softmax(embeddings, proxies, labels, valid=None, temperature=0.05):
    return _softmax(embeddings, proxies, labels, valid, lambda s, y: s / temperature)


def proxy_nca(embeddings, proxies, labels, valid=None, scale=1.0):
    values, rows = np.zeros(len(embeddings)), _rows(labels, len(proxies))
    for i in _valid(labels, valid):
        to = [sum((unit(embeddings[i]) - unit(p)) ** 2) for p in proxies]
        if sum(rows[i]) > 0:
            values[i] = cross_entropy([-scale * d for d in to], rows[i])
    return values


def proxy_anchor(embeddings, proxies, labels, valid=None, margin=0.1, alpha=32.0):
    cosines, rows = _cosines(embeddings, proxies), _rows(labels, len(proxies))
    items, pulls, pushes = _valid(labels, valid), [], []
    for c in range(len(proxies)):
        own = [cosines[i][c] for i in items if rows[i][c] > 0.5]
        others = [cosines[i][c] for i in items if rows[i][c] <= 0.5]
        if own:
            pulls.append(softplus(log_sum_exp([-alpha * (s - margin) for s in own])))
        pushes.append(
            softplus(log_sum_exp([alpha * (s + margin) for s in others])) if others else 0
        )
    values = np.zeros(len(embeddings))
    values[items] = (mean(pulls) if pulls else 0) + mean(pushes)
    return values
