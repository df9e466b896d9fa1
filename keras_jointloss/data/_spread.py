"""Distributes groups of items over batches."""

from typing import Any

import numpy as np


def count_batches(groups: np.ndarray, per_batch: int) -> int:
    """Returns the largest number of batches with groups of `per_batch` classes each.

    From the number of groups of each class, `(classes,)`. As many batches as `n` are possible if
    `sum_c min(groups_c, n) >= n * per_batch`.
    """
    low, high = 0, int(groups.sum()) // per_batch
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(groups, middle).sum() >= middle * per_batch:
            low = middle
        else:
            high = middle - 1
    return low


def spread(
    classes: np.ndarray, classes_per_batch: int, per_class: int, random: Any
) -> list[np.ndarray]:
    """Returns the items of each batch: `per_class` of each of `classes_per_batch` classes.

    No item is in two batches. A class has at most one group in a batch, since its groups go to
    consecutive batches, and has no more groups than there are batches.

    Args:
        classes: The class of each item, from 0, or -1 for an item that is in no batch.
        classes_per_batch: The number of classes in a batch.
        per_class: The number of items of each.
        random: A generator, or `None` to take items and classes in their order.
    """
    items = np.flatnonzero(classes >= 0)
    items = items if random is None else random.permutation(items)
    items = items[np.argsort(classes[items], kind="stable")]
    sizes = np.bincount(classes[items])
    groups = sizes // per_class
    count = count_batches(groups, classes_per_batch)
    groups = np.minimum(groups, count)
    # The position of each item within its class.
    positions = np.arange(len(items)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    chosen = items[positions < per_class * np.repeat(groups, sizes)].reshape(-1, per_class)
    number = classes_per_batch * count
    if random is None:
        chosen = chosen[:number]
    else:
        chosen = chosen[np.sort(random.choice(len(chosen), number, replace=False))]
        # Classes in an order of their own, so that other ones meet in each epoch.
        order = random.permutation(len(groups))[classes[chosen[:, 0]]]
        chosen = chosen[np.argsort(order, kind="stable")]
    batches = chosen.reshape(classes_per_batch, count, per_class).swapaxes(0, 1)
    batches = batches.reshape(count, classes_per_batch * per_class)
    return list(batches if random is None else random.permutation(batches))
