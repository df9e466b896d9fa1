"""Naive float64 references: loops over items, straight from the formulas."""

import math

import numpy as np


def unit(vector):
    length = math.sqrt(sum(x * x for x in vector))
    return vector / length if length > 0 else vector * 0.0


def log_sum_exp(values):
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))


def info_nce(views, labels=None, temperature=0.07, symmetric=True, normalize=True):
    a, b = ([unit(v) if normalize else v for v in views[:, i]] for i in (0, 1))
    losses = []
    for i in range(len(a)):
        positive = a[i] @ b[i] / temperature
        loss = log_sum_exp([a[i] @ other / temperature for other in b]) - positive
        if symmetric:
            back = log_sum_exp([other @ b[i] / temperature for other in a]) - positive
            loss = (loss + back) / 2
        losses.append(loss)
    return np.array(losses)


def margin_contrastive(views, labels, margin=1.0, normalize=False):
    losses = []
    for (a, b), label in zip(views, labels, strict=True):
        similarity = unit(a) @ unit(b) if normalize else a @ b
        attraction, repulsion = max(margin - similarity, 0.0), max(similarity, 0.0)
        losses.append(label * attraction + (1 - label) * repulsion)
    return np.array(losses)


def central_differences(function, x, step=1e-6):
    """Returns the gradient of a scalar function of a float64 array."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][index] += step
        moved[1][index] -= step
        gradient[index] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return gradient
