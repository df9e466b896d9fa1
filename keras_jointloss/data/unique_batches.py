"""Batches in which no two items have the same id."""

from typing import Unpack

from keras_jointloss._core.types import Nested, Tensor
from keras_jointloss._core.validation import invalid, validate_count
from keras_jointloss.data._epochs import Options
from keras_jointloss.data._items import class_numbers, named_or_given
from keras_jointloss.data.class_batches import SpreadBatches


class UniqueBatches(SpreadBatches):
    """Batches in which no id comes twice, for `fit`.

    A contrastive loss takes the other items of the batch for wrong: the other captions of the same
    image, the other queries for the same product. If they have an id in common, it learns to push
    what belongs together apart. Here no batch has two items with the same id::

        model.fit(UniqueBatches(x, y, ids="product", batch_size=256), shuffle=False)

    In an epoch, no item comes twice. All batches have `batch_size` items, so that a model is
    compiled once, and a contrastive loss always compares as many. Each epoch draws anew which items
    meet, and which are left over: less than a batch, and, of an id that more items have than there
    are batches, the rest. The number of batches is the largest possible, and that of every epoch.

    (Where such items may meet but should not count as wrong, as in batches that are almost the
    whole data set, give ids as labels to a loss with `same_label="ignore"`.)

    See `ClassBatches` on epochs, `initial_epoch`, `fit(shuffle=False)` and workers.

    Args:
        x: The inputs of the model: an array, or a list or dict of arrays, with a row for each item.
        y: The targets, likewise, or `None`.
        ids: The name of an array in `y` or `x`, or an array `(items,)` of numbers or strings, or
            `(items, size)`, whose rows are equal if the id is. An item whose id is NaN is in no
            batch.
        batch_size: The number of items in a batch.
        sample_weight: The weights of the items, as `fit` takes them, or `None`.
        **options: `shuffle`: whether the epochs differ, by default `True`. `seed`: an integer
            >= 0 and < 2**31, by default 0. `workers`, `use_multiprocessing`, `max_queue_size`: as
            in `keras.utils.PyDataset`.

    Raises:
        ValueError: If an argument is invalid, the arrays differ in their number of rows, or there
            are fewer ids than `batch_size`.

    Example:

    >>> import numpy as np
    >>> image = np.repeat(np.arange(4), 3)  # Three captions for each of four images.
    >>> x = {"image": image, "caption": np.arange(12)}
    >>> batches = UniqueBatches(x, None, ids="image", batch_size=4)
    >>> [sorted(inputs["image"].tolist()) for (inputs,) in batches]
    [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    """

    def __init__(
        self,
        x: Nested,
        y: Nested,
        ids: str | Tensor,
        batch_size: int = 32,
        sample_weight: Nested = None,
        **options: Unpack[Options],
    ):
        self.batch_size = validate_count(batch_size, "batch_size")
        classes = class_numbers(named_or_given(ids, "ids", x, y))
        super().__init__(x, y, sample_weight, classes, self.batch_size, 1, **options)
        if self.batch_size > classes.max() + 1:
            raise invalid("batch_size", f"at most the {classes.max() + 1} ids", batch_size)
