"""Smooths series and leaves out points that a screen cannot show."""

import math

import numpy as np


def smooth(values: np.ndarray, factor: float) -> np.ndarray:
    """Returns the exponential moving average `m_t = factor * m_{t-1} + (1 - factor) * v_t`.

    As in TensorBoard, it is divided by `1 - factor^t`, so that it does not start at 0. NaN stays
    NaN and does not count.

    Args:
        values: `(points,)`.
        factor: At least 0, which changes nothing, and less than 1.

    Example:

    >>> smooth(np.array([1.0, 3.0]), 0.5).round(3)
    array([1.   , 2.333])
    """
    known = np.isfinite(values)
    finite = values[known]
    if not factor or not len(finite):
        return values
    # What is older counts less than 1e-12.
    length = min(len(finite), 1 + math.ceil(math.log(1e-12) / math.log(factor)))
    weights = factor ** np.arange(length)
    sums, totals = (np.convolve(x, weights)[: len(x)] for x in (finite, np.ones(len(finite))))
    result = np.array(values, "float64")
    result[known] = sums / totals
    return result


def thin(values: np.ndarray, limit: int) -> np.ndarray:
    """Returns the indices of at most about `limit` points that keep the extremes of every row.

    The points are divided into equal parts. Of each part the highest and the lowest point stay,
    over all rows, each measured from its mean in the part and by its range; and of the whole the
    first and the last point and the extremes of each row.

    Args:
        values: `(rows, points)`; NaN does not count.
        limit: The number of points to keep in the parts.

    Example:

    >>> thin(np.array([[0.0, 1, 0, 0, 0, 9, 0, 0]]), limit=4)
    array([0, 1, 4, 5, 7])
    """
    rows, points = values.shape
    if points <= limit:
        return np.arange(points)
    values = np.where(np.isfinite(values), values, np.nan)
    known = ~np.isnan(values)
    parts = max(1, limit // 2)
    size = -(-points // parts)
    padding = ((0, 0), (0, parts * size - points))
    filled = np.where(known, values, 0)
    count = np.pad(known, padding).reshape(rows, parts, size).sum(axis=2)
    total = np.pad(filled, padding).reshape(rows, parts, size).sum(axis=2)
    mean = np.repeat(total / np.maximum(count, 1), size, axis=1)[:, :points]
    lowest = np.where(known, values, np.inf)
    highest = np.where(known, values, -np.inf)
    spread = highest.max(axis=1, keepdims=True) - lowest.min(axis=1, keepdims=True)
    spread = np.where((spread > 0) & np.isfinite(spread), spread, 1)
    distance = np.where(known, (filled - mean) / spread, 0)
    starts = np.arange(parts) * size
    high = np.pad(distance.max(axis=0), padding[1], constant_values=-np.inf)
    low = np.pad(distance.min(axis=0), padding[1], constant_values=np.inf)
    indices = [
        starts + high.reshape(parts, size).argmax(axis=1),
        starts + low.reshape(parts, size).argmin(axis=1),
        [0, points - 1],
        lowest.argmin(axis=1),
        highest.argmax(axis=1),
    ]
    kept = np.unique(np.concatenate(indices).astype("int64"))
    return kept[kept < points]
