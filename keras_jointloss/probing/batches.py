"""The batches on which a model is probed, and on which it warms up."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import keras
import numpy as np

from keras_jointloss._core.validation import invalid
from keras_jointloss.data._items import count_items, take, to_arrays


class Batches:
    """The batches of arrays, or of a data set that yields batches of its own.

    Args:
        x: Arrays, a `tf.data.Dataset`, a `keras.utils.PyDataset` or another object that yields
            batches each time it is iterated over.
        y: The targets of arrays.
        sample_weight: The weights of arrays.
        batch_size: The number of items of a batch of arrays.
        seed: Determines which items or batches are taken, where there is a choice.
    """

    def __init__(self, x: Any, y: Any, sample_weight: Any, batch_size: int, seed: int):
        self._batch_size, self._seed = batch_size, seed
        self._arrays: Any = None
        self._source = x
        if isinstance(x, keras.utils.PyDataset) or _yields_batches(x):
            for name, value in (("y", y), ("sample_weight", sample_weight)):
                if value is not None:
                    expected = "None, since `x` yields batches with targets and weights"
                    raise invalid(name, expected, received=f"{name} of {type(value).__name__}")
            return
        given = {"x": x, "y": y, "sample_weight": sample_weight}
        arrays = {k: None if v is None else _arrays(v, k) for k, v in given.items()}
        self._count = count_items(**arrays)
        self._arrays = tuple(arrays.values())

    def __call__(self, count: int) -> Iterator[tuple]:
        """Yields at most `count` batches `(x, y, sample_weight)`, without a smaller last one.

        Only if there is no other batch, it may be smaller.
        """
        if self._arrays is not None:
            whole = max(self._count // self._batch_size, 1)
            yield from map(self.of_rows, self.rows_of_epoch(0)[: min(count, whole)])
            return
        if isinstance(self._source, keras.utils.PyDataset):
            number = self._source.num_batches
            order: Any = range(count)
            if number is not None:
                order = np.random.default_rng(self._seed).permutation(number)[:count]
            found: Any = (self._source[int(i)] for i in order)
        else:
            found = islice(iter(self._source), count)
        for batch in found:
            yield keras.utils.unpack_x_y_sample_weight(batch)

    def for_fit(self) -> Any:
        """Returns what `fit` receives as `x`."""
        if self._arrays is not None:
            return _Shuffled(self)
        is_indexed = isinstance(self._source, keras.utils.PyDataset)
        return _Read(self._source) if is_indexed else self._source

    def rows_of_epoch(self, epoch: int) -> list[np.ndarray]:
        """Returns the rows of the arrays in each batch of an epoch."""
        order = np.random.default_rng((self._seed, epoch)).permutation(self._count)
        return [order[i : i + self._batch_size] for i in range(0, self._count, self._batch_size)]

    def of_rows(self, rows: np.ndarray) -> tuple:
        """Returns a batch of arrays."""
        return tuple(None if x is None else take(x, rows) for x in self._arrays)


class _Shuffled(keras.utils.PyDataset):
    """Batches of arrays, in an order of their own in each epoch, whatever the global seed is."""

    def __init__(self, batches: Batches):
        super().__init__()
        self._batches, self._epoch = batches, 1
        self._begin()

    def _begin(self):
        self._rows = self._batches.rows_of_epoch(self._epoch)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index):
        return keras.utils.pack_x_y_sample_weight(*self._batches.of_rows(self._rows[index]))

    def on_epoch_end(self):
        self._epoch += 1
        self._begin()


class _Read(keras.utils.PyDataset):
    """The batches of another data set, which learns of no end of an epoch and does not change."""

    def __init__(self, source: keras.utils.PyDataset):
        super().__init__()
        self._source = source

    @property
    def num_batches(self):
        return self._source.num_batches

    def __getitem__(self, index):
        return self._source[index]


def _arrays(values: Any, name: str) -> Any:
    """Returns arrays, of floats in `keras.config.floatx()` as in `fit`."""

    def cast(x):
        is_float = x.dtype.kind == "f" and x.dtype != keras.config.floatx()
        return x.astype(keras.config.floatx()) if is_float else x

    return keras.tree.map_structure(cast, to_arrays(values, name))


def _yields_batches(x: Any) -> bool:
    """Returns whether an object yields batches, each time it is iterated over."""
    is_data = hasattr(x, "__iter__") and not hasattr(x, "__array__") and not hasattr(x, "dtype")
    if not is_data or isinstance(x, list | tuple | dict):
        return False
    if iter(x) is x:
        expected = (
            "arrays, or a data set that can be iterated over several times, such as a "
            "`tf.data.Dataset` or a `keras.utils.PyDataset`"
        )
        raise invalid("x", expected, received=f"x of {type(x).__name__}, which can be read once")
    return True
