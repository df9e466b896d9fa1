"""Batches of several data sets in turn, each with targets of its own."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack

import keras
import numpy as np

from keras_jointloss._core.validation import (
    invalid,
    validate_bool,
    validate_by_name,
    validate_choice,
    validate_count,
    validate_names,
    validate_number,
)
from keras_jointloss.data._epochs import EpochBatches, Options
from keras_jointloss.data._items import take
from keras_jointloss.data._sources import (
    dtype_with_missing,
    inputs_by_name,
    merges_inputs,
    parse_source,
    shapes_by_name,
)
from keras_jointloss.terms.missing.targets import validate_missing


class TaskBatches(EpochBatches):
    """Batches of several data sets, one at a time, for a `fit` with several terms.

    The tasks may have data of their own, of different sizes: pairs to contrast, and a few labelled
    items to classify. Each batch comes from one data set, the *source*. It has targets for the
    outputs of this source. For all other outputs it has `missing` targets and sample weights of 0,
    so that their terms are 0 in this step, with gradient 0, and rules leave them out::

        data = TaskBatches(
            {"pair": (pairs,), "label": (images, label)}, batch_size={"pair": 512, "label": 32}
        )
        losses = {"pair": "info_nce", "label": "sparse_categorical_crossentropy"}
        missing = {"label": float("nan")}  # Not of "pair", which compares items.
        model.compile("adam", **kj.joint_loss(losses, missing=missing))
        model.fit(data, epochs=10, shuffle=False)

    The mean of the loss of a term in the logs includes the zeros; with `missing` targets,
    `<term>_labelled_loss` is the mean over the items that have one. `strategy` determines how many
    of the `B_i` batches of the source `i` are in an epoch, none of them twice, and in which order:

    - `"proportional"`: all batches of all sources, mixed.
    - `"round_robin"`: one of each source in turn, until the smallest source has no more.
    - `"temperature"`: mixed, as many batches as possible, with shares of the epoch that grow with a
      root of the size. Temperature 1 is `"proportional"`; with a high one all sources have the same
      share.

    The share of a source by its temperature is

        share_i = B_i^(1/temperature) / sum_j B_j^(1/temperature)

    Each epoch draws anew from those sources of which it has no room for all batches.

    If the sources have the same inputs, the model gets those of the source. If their inputs are
    dicts with different names, it gets all of them: those that a source does not have are 0 (or
    empty strings). Then a layer that depends on the whole batch sees them, too: batch normalization
    counts them, and a `keras_jointloss.layers.ContrastiveTerm` in the model compares them, unless
    its `sample_weight` is one of these inputs.

    See `ClassBatches` on epochs, `initial_epoch`, `fit(shuffle=False)` and workers. Without
    `shuffle=False`, Keras changes the order of `"round_robin"`.

    Args:
        sources: A dict of data sets `(x,)`, `(x, y)` or `(x, y, sample_weight)`. `y` is the target
            of the output that is called like the source, or a dict of targets by output. Without
            `y`, the output gets a target of 0 for each item, for a loss that needs none. The
            weights, `(items,)`, are those of the outputs of the source.
        batch_size: The number of items in a batch, also as a dict by source.
        strategy: `"proportional"`, `"round_robin"` or `"temperature"`.
        temperature: A number > 0, for `"temperature"`.
        missing: The missing target, NaN or a number, also as a dict by output (NaN for others):
            that of `keras_jointloss.joint_loss`. Whole numbers become floats if it is NaN.
        drop_remainder: Whether to leave out a batch with fewer items, the last of a source.
        **options: `shuffle`: whether the epochs differ, by default `True`. `seed`: an integer
            >= 0 and < 2**31, by default 0. `workers`, `use_multiprocessing`, `max_queue_size`: as
            in `keras.utils.PyDataset`.

    Raises:
        ValueError: If an argument is invalid, or the arrays of a source differ in their number of
            rows, or those of an input or output in the rest of their shape.

    References:
        - Arivazhagan et al., 2019, Massively Multilingual Neural Machine Translation in the Wild
          (temperature)

    Example:

    >>> import numpy as np
    >>> sources = {"a": (np.zeros((6, 2)), np.ones(6)), "b": (np.zeros((2, 2)), np.ones(2))}
    >>> batches = TaskBatches(sources, batch_size=2, strategy="round_robin")
    >>> [y for _, y, _ in batches]
    [{'a': array([1., 1.]), 'b': array([nan, nan])}, {'a': array([nan, nan]), 'b': array([1., 1.])}]
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence[Any]],
        batch_size: int | Mapping[str, int] = 32,
        strategy: Literal["proportional", "round_robin", "temperature"] = "proportional",
        temperature: float = 5.0,
        missing: float | Mapping[str, float] = float("nan"),
        drop_remainder: bool = False,
        **options: Unpack[Options],
    ):
        super().__init__(**options)
        given = validate_by_name(sources, "sources", lambda value, _: value, "a data set")
        self._sources = {name: parse_source(name, value) for name, value in given.items()}
        self.batch_size = self._by_source(batch_size)
        choices = ("proportional", "round_robin", "temperature")
        self.strategy = validate_choice(strategy, "strategy", choices)
        self.temperature = validate_number(temperature, "temperature", 0, exclusive=True)
        self.drop_remainder = validate_bool(drop_remainder, "drop_remainder")
        outputs = shapes_by_name({name: source.y for name, source in self._sources.items()})
        self.missing = _missing_of(missing, outputs)
        self._outputs = {
            name: (shape, dtype_with_missing(name, dtype, self.missing[name], self._sources))
            for name, (shape, dtype) in outputs.items()
        }
        self._merges_inputs = merges_inputs([source.x for source in self._sources.values()])
        self._inputs = shapes_by_name(
            {name: inputs_by_name(source.x) for name, source in self._sources.items()}
        )
        for name, count in self._counts().items():
            if not count:
                rows = self._sources[name].items
                expected = f"at most the {rows} items of {name!r}, since drop_remainder=True"
                raise invalid("batch_size", expected, batch_size)

    def plan(self, random: np.random.Generator | None) -> list[tuple[str, np.ndarray]]:
        used = self._used()
        batches = {}
        for name, source in self._sources.items():
            size = self.batch_size[name]
            items = np.arange(source.items) if random is None else random.permutation(source.items)
            batches[name] = [items[size * i : size * (i + 1)] for i in range(used[name])]
        # In turn, as long as a source has batches.
        turns = [(i, name) for name in used for i in range(used[name])]
        names = [name for _, name in sorted(turns, key=lambda turn: turn[0])]
        if random is not None and self.strategy != "round_robin":
            names = [names[i] for i in random.permutation(len(names))]
        return [(name, batches[name].pop(0)) for name in names]

    def make(self, planned: tuple[str, np.ndarray]) -> tuple:
        name, indices = planned
        source, size = self._sources[name], len(indices)
        found = take(inputs_by_name(source.x), indices)
        x = {
            key: found[key].astype(dtype, copy=False)
            if key in found
            else np.zeros((size, *shape), dtype)
            for key, (shape, dtype) in self._inputs.items()
        }
        y = {
            key: source.y[key][indices].astype(dtype, copy=False)
            if key in source.y
            else np.full((size, *shape), self.missing[key], dtype)
            for key, (shape, dtype) in self._outputs.items()
        }
        if not self._merges_inputs:
            x = keras.tree.pack_sequence_as(source.x, list(x.values()))
        ones = np.ones(size, "float32")
        own = ones if source.sample_weight is None else source.sample_weight[indices]
        return x, y, {key: own if key in source.y else 0 * ones for key in self._outputs}

    def _by_source(self, batch_size) -> dict[str, int]:
        if not isinstance(batch_size, Mapping):
            return dict.fromkeys(self._sources, validate_count(batch_size, "batch_size"))
        validate_names(batch_size, "batch_size", self._sources, is_complete=True)
        return validate_by_name(batch_size, "batch_size", validate_count)

    def _counts(self) -> dict[str, int]:
        """Returns the number of batches of each source."""
        counts = {}
        for name, source in self._sources.items():
            count, rest = divmod(source.items, self.batch_size[name])
            counts[name] = count + (rest > 0 and not self.drop_remainder)
        return counts

    def _used(self) -> dict[str, int]:
        """Returns the number of batches of each source in an epoch."""
        counts = self._counts()
        if self.strategy == "proportional":
            return counts
        if self.strategy == "round_robin":
            return dict.fromkeys(counts, min(counts.values()))
        logs = np.log(list(counts.values()))
        # The share of each, divided by its number: the largest has no more to give.
        log_shares = logs / self.temperature
        used = np.exp(log_shares - np.max(log_shares - logs))
        return {name: max(1, int(n + 1e-6)) for name, n in zip(counts, used, strict=True)}


def _missing_of(missing: Any, outputs: dict) -> dict[str, float]:
    """Returns the missing target of each output."""
    if not isinstance(missing, Mapping):
        return dict.fromkeys(outputs, validate_missing(missing))
    validate_names(missing, "missing", outputs)
    return {name: validate_missing(missing.get(name, float("nan"))) for name in outputs}
