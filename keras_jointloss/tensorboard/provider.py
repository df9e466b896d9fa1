"""Reads runs through TensorBoard's data provider, each series when it is needed."""

import math
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_jointloss.tensorboard.read import epochs_of, group, to_number, to_series
from keras_jointloss.tensorboard.runs import Run, Series
from keras_jointloss.tensorboard.writer import EPOCHS_TAG, PLUGIN, TRAINING_TAG, parse_training

#: The prefixes of the tags of the callbacks.
PREFIXES = ("joint_loss/", "gradients/", "retrieval/")
#: The number of points of a tag that TensorBoard keeps by default.
_DEFAULT_SAMPLES = 1000
#: More points of a tag are not asked for, so that a figure takes a second: TensorBoard picks them
#: at random, and the last one.
MOST_POINTS = 5_000
#: The number of points that are kept for the next request, about 100 MB.
_MOST_CACHED = 4_000_000
#: The number of points to read at once.
_READ_AT_ONCE = 500_000
#: More runs are not listed, and of each run no more tags that end alike, of so many endings.
MOST_RUNS, MOST_ALIKE, _MOST_ENDINGS = 2_000, 300, 100
#: The number of values of other kinds than scalars that TensorBoard keeps by default, at random.
_KEPT = 10
#: Longer tags are not shown.
_LONGEST_TAG = 500


class Logs:
    """The runs of a TensorBoard server, through its data provider.

    The number of `samples` is the value of `--samples_per_plugin` for scalars; 0 for all, `None` if
    not given. A training whose runs are not in a folder of their own is named `root`.
    """

    def __init__(self, provider: Any, samples: int | None = None, root: str = "run"):
        self._provider = provider
        self._root = root
        kept = _DEFAULT_SAMPLES if samples is None else samples
        #: Whether TensorBoard keeps more points of a tag than a figure uses.
        self.keeps_more = kept == 0 or kept > MOST_POINTS
        #: The number of points of a tag that a figure uses at most.
        self.limit = MOST_POINTS if self.keeps_more else kept
        self._cache: OrderedDict[tuple[str, str, str], tuple[Any, Series]] = OrderedDict()
        self._cache_lock = threading.Lock()
        self._cached_points = 0
        #: The number of runs that the last call of `runs` has left out.
        self.left_out_runs = 0

    def runs(self, context: Any, experiment: str) -> list[Run]:
        """Returns the runs that the callbacks wrote, by name; their series are read when used."""
        from tensorboard.plugins.scalar import metadata

        scalars = self._provider.list_scalars(
            context, experiment_id=experiment, plugin_name=metadata.PLUGIN_NAME
        )
        names = [run for run, tags in scalars.items() if any(map(_is_own, tags))]
        self.left_out_runs = max(0, len(names) - MOST_RUNS)
        found = {
            run: _Tags(self, context, experiment, run, scalars[run])
            for run in sorted(names)[-MOST_RUNS:]
        }
        return group(found, self._markers(context, experiment), self._root)

    def _markers(self, context: Any, experiment: str) -> dict[str, dict[str, Any]]:
        read = self._provider.read_tensors(
            context, experiment_id=experiment, plugin_name=PLUGIN, downsample=1000
        )
        markers: dict[str, dict[str, Any]] = {}
        for run, tags in (read or {}).items():
            found = markers.setdefault(run, {})
            if tags.get(TRAINING_TAG):
                found["training"] = parse_training(_item(tags[TRAINING_TAG][-1]))
            if tags.get(EPOCHS_TAG):
                found["epochs"] = without_gaps(epochs_of(_series(tags[EPOCHS_TAG], _item)))
        return markers

    def read(
        self, context: Any, experiment: str, run: str, versions: Mapping[str, Any]
    ) -> dict[str, Series]:
        """Returns series of a run of TensorBoard by tag.

        The versions, by tag, change when there are new points.
        """
        result: dict[str, Series] = {}
        with self._cache_lock:
            for tag, version in versions.items():
                key = experiment, run, tag
                if key in self._cache and self._cache[key][0] == version:
                    result[tag] = self._cache[key][1]
                    self._cache.move_to_end(key)
        missing = [tag for tag in versions if tag not in result]
        size = max(1, _READ_AT_ONCE // self.limit)
        for start in range(0, len(missing), size):
            part = {tag: versions[tag] for tag in missing[start : start + size]}
            new = self._fetch(context, experiment, run, part)
            result.update(new)
            with self._cache_lock:
                for tag, series in new.items():
                    self._keep((experiment, run, tag), versions[tag], series)
        return result

    def _fetch(self, context, experiment, run, ends) -> dict[str, Series]:
        """Returns the series of tags, given with the step and wall time of their last points."""
        from tensorboard.data.provider import RunTagFilter
        from tensorboard.plugins.scalar import metadata

        try:
            read = self._provider.read_scalars(
                context,
                experiment_id=experiment,
                plugin_name=metadata.PLUGIN_NAME,
                downsample=self.limit,
                run_tag_filter=RunTagFilter(runs=[run], tags=list(ends)),
            ).get(run, {})
        except (ValueError, TypeError):  # Values that others have logged are not numbers.
            if len(ends) > 1:
                parts = [self._fetch(context, experiment, run, {tag: ends[tag]}) for tag in ends]
                return {tag: series for part in parts for tag, series in part.items()}
            read = {}
        # A tag whose values cannot be read has one that is unknown.
        return {
            tag: _series(read[tag], _value) if read.get(tag) else to_series([(*end, math.nan)])
            for tag, end in ends.items()
        }

    def _keep(self, key: tuple[str, str, str], version: Any, series: Series) -> None:
        """Keeps a series for the next request, and drops those not used for longest."""
        old = self._cache.pop(key, None)
        if old is not None:
            self._cached_points -= len(old[1].steps)
        self._cache[key] = version, series
        self._cached_points += len(series.steps)
        while self._cached_points > _MOST_CACHED:
            _, (_, dropped) = self._cache.popitem(last=False)
            self._cached_points -= len(dropped.steps)

    def is_complete(self, run: Run) -> bool:
        """Returns whether no point is left out of the series of a run that have been used."""
        parts = [part for part in (run.train, run.validation) if isinstance(part, _Tags)]
        return all(len(x.steps) < self.limit for part in parts for x in part.used.values())


class _Tags(Mapping[str, Series]):
    """The series of a run by tag, which are read when they are used."""

    def __init__(self, logs: Logs, context: Any, experiment: str, run: str, found: Mapping):
        self._read = lambda versions: logs.read(context, experiment, run, versions)
        kept = _kept(found)
        self._versions = {tag: (found[tag].max_step, found[tag].max_wall_time) for tag in kept}
        #: The number of tags that are not shown.
        self.left_out = len(found) - len(kept)
        #: What has been read.
        self.used: dict[str, Series] = {}

    def __getitem__(self, tag: str) -> Series:
        if tag not in self.used:
            if tag not in self._versions:
                raise KeyError(tag)
            # A figure shows the same value of all terms: they come in one request.
            key = tag.rpartition("/")[2]
            same = {t: v for t, v in self._versions.items() if t.rpartition("/")[2] == key}
            self.used.update(self._read(same))
        return self.used[tag]

    def __iter__(self) -> Iterator[str]:
        return iter(self._versions)

    def __len__(self) -> int:
        return len(self._versions)

    def __contains__(self, tag: object) -> bool:
        return tag in self._versions

    def last_point(self) -> tuple[int, float]:
        """Returns the latest step and wall time of all series."""
        return max(step for step, _ in self._versions.values()), max(
            time for _, time in self._versions.values()
        )


def without_gaps(epochs: Series) -> Series:
    """Returns the ends of all epochs from the ten or more of them that TensorBoard has kept.

    The epochs between two of them have the same length, and so have those before the first.
    """
    steps, _, numbers = epochs = epochs.without_restarts()
    moves = np.diff(numbers)
    if len(numbers) < _KEPT or (moves < 1).any() or ((moves == 1).all() and numbers[0] <= 1):
        return epochs
    size = (steps[1] - steps[0]) / moves[0]
    before = max(0.0, numbers[0] - steps[0] // size)
    all_numbers = np.arange(before, numbers[-1] + 1)
    start = steps[0] - size * (numbers[0] - before)
    points = np.interp(all_numbers, np.append(before, numbers), np.append(start, steps))
    times = np.interp(all_numbers, numbers, epochs.wall_times)
    return Series(points.round().astype("int64"), times, all_numbers)


def _kept(tags: Iterable[str]) -> list[str]:
    """Returns the tags to show: ours first, a limited number of each ending, no very long ones."""
    counts: defaultdict[str, int] = defaultdict(int)
    kept = []
    own = sorted(filter(_is_own, tags))
    for tag in [*own, *sorted(set(tags).difference(own))]:
        ending = tag.rpartition("/")[2]
        is_known = ending in counts or len(counts) < _MOST_ENDINGS
        if len(tag) <= _LONGEST_TAG and is_known and counts[ending] < MOST_ALIKE:
            counts[ending] += 1
            kept.append(tag)
    return kept


def _is_own(tag: str) -> bool:
    return tag.startswith(PREFIXES)


def _item(point: Any) -> Any:
    """Returns what a point of a tensor holds if that is one item, or `None`."""
    return point.numpy.item() if point.numpy.size == 1 else None


def _value(point: Any) -> Any:
    return point.value


def _series(points: Sequence[Any], value: Callable[[Any], Any]) -> Series:
    size = len(points)
    return Series(
        np.fromiter((x.step for x in points), "int64", size),
        np.fromiter((x.wall_time for x in points), "float64", size),
        np.fromiter((to_number(value(x)) for x in points), "float64", size),
    )
