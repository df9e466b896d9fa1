"""Reads the event files of TensorBoard into arrays."""

import math
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from keras_jointloss._core.validation import invalid
from keras_jointloss.tensorboard.runs import SPLITS, Run, Series
from keras_jointloss.tensorboard.writer import EPOCHS_TAG, TRAINING_TAG, parse_training


def read(log_dir: str | os.PathLike[str]) -> dict[str, dict[str, Series]]:
    """Reads all scalars of all runs below a folder, every point of them.

    Args:
        log_dir: A folder of TensorBoard's event files, with runs at any depth.

    Returns:
        By run and tag, a `Series` with the arrays `steps`, `wall_times` and `values`, in the order
        in which they were written. A run is named by its path below `log_dir`, or `"."`, as in
        TensorBoard. A file that ends in the middle of a record, or is damaged there, counts up to
        that point. A logged value that is not one number is NaN.

    Raises:
        ValueError: If `log_dir` has no event file.

    Example:

    >>> import tempfile
    >>> from keras_jointloss.tensorboard import SummaryWriter
    >>> with tempfile.TemporaryDirectory() as log_dir:
    ...     writer = SummaryWriter(f"{log_dir}/train")
    ...     writer.scalars({"joint_loss/total": 0.5}, step=10)
    ...     writer.close()
    ...     read(log_dir)["train"]["joint_loss/total"].steps
    array([10])
    """
    scalars, _ = read_events(os.fspath(log_dir))
    return scalars


def read_runs(log_dir: str | os.PathLike[str]) -> list[Run]:
    """Returns the trainings below a folder, by name."""
    log_dir = os.fspath(log_dir)
    scalars, markers = read_events(log_dir)
    root = os.path.basename(os.path.normpath(log_dir)) or log_dir
    return group(scalars, markers, root)


def group(
    scalars: Mapping[str, Mapping[str, Series]], markers: Mapping[str, Mapping[str, Any]], root: str
) -> list[Run]:
    """Returns the trainings that runs named `train` and `validation` belong to, by name.

    Series are given by the name of the run in TensorBoard and tag, and markers, `epochs` and
    `training`, by run. A training whose runs are not in a folder of their own is named `root`.
    """
    parts: dict[str, dict[str, str]] = {}
    for run in scalars:
        name, split = split_name(run)
        parts.setdefault(name, {})[split] = run
    runs = []
    for name in sorted(parts):
        splits = {split: scalars[parts[name][split]] for split in SPLITS if split in parts[name]}
        found = [markers[parts[name][s]] for s in SPLITS if markers.get(parts[name].get(s, ""))]
        epochs = next((x["epochs"] for x in found if "epochs" in x), None)
        training: dict[str, Any] = next((x["training"] for x in found if "training" in x), {})
        schedules = {
            term: Series(np.array(steps), np.full(len(steps), np.nan), np.array(values))
            for term, (steps, values) in training.get("schedules", {}).items()
        }
        runs.append(
            Run(name or root, **splits, epochs=epochs, schedules=schedules, end=training.get("end"))
        )
    return runs


def split_name(run: str) -> tuple[str, str]:
    """Returns the name of the training that a run of TensorBoard belongs to, and its split."""
    head, _, tail = run.rpartition("/")
    if tail in SPLITS:
        return head, tail
    return ("" if run == "." else run), "train"


def read_events(log_dir: str) -> tuple[dict[str, dict[str, Series]], dict[str, dict[str, Any]]]:
    """Returns the scalars by run and tag, and what our own plugin logged by run."""
    from tensorboard.plugins.scalar import metadata

    scalars: dict[str, dict[str, Series]] = {}
    markers: dict[str, dict[str, Any]] = {}
    runs = dict(_event_files(log_dir))
    if not runs:
        raise invalid("log_dir", "a folder with event files of TensorBoard, at any depth", log_dir)
    for run, files in runs.items():
        points: dict[str, list[tuple[int, float, float]]] = {}
        plugins: dict[str, str] = {}
        for event in (event for path in files for event in _events(path)):
            for value in event.summary.value:
                tag, plugin = value.tag, value.metadata.plugin_data.plugin_name
                # Only the first value of a tag has to have metadata.
                plugin = plugins.setdefault(tag, plugin)
                if tag == TRAINING_TAG:
                    markers.setdefault(run, {})["training"] = parse_training(_content(value))
                    continue
                if value.HasField("simple_value"):
                    number = value.simple_value
                elif plugin == metadata.PLUGIN_NAME or tag == EPOCHS_TAG:
                    floats = value.tensor.float_val
                    number = floats[0] if len(floats) == 1 else to_number(_content(value))
                else:
                    continue
                points.setdefault(tag, []).append((event.step, event.wall_time, number))
        series = {tag: to_series(rows) for tag, rows in points.items()}
        if EPOCHS_TAG in series:
            markers.setdefault(run, {})["epochs"] = epochs_of(series.pop(EPOCHS_TAG))
        if series:
            scalars[run] = series
    return scalars, markers


def _content(value: Any) -> Any:
    """Returns what a logged value holds if that is one item, or `None`."""
    from tensorboard.util.tensor_util import make_ndarray

    try:
        return make_ndarray(value.tensor).item()
    except (ValueError, TypeError):
        return None


def to_number(value: Any) -> float:
    """Returns what others have logged as a number, or NaN if it is none."""
    is_number = isinstance(value, int | float | np.number) and not np.iscomplexobj(value)
    return float(value) if is_number else math.nan


def epochs_of(series: Series) -> Series:
    """Returns the logged numbers of finished epochs over the step, each step once."""
    return series.at(np.isfinite(series.values)).without_restarts()


def to_series(rows: list[tuple[int, float, float]]) -> Series:
    """Returns a series from rows of step, wall time and value."""
    steps, wall_times, values = zip(*rows, strict=True) if rows else ((), (), ())
    return Series(
        np.array(steps, "int64"), np.array(wall_times, "float64"), np.array(values, "float64")
    )


def _event_files(log_dir: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the runs below a folder and their files, the oldest first."""
    # Not through what looks for TensorFlow first, which takes seconds to import.
    from tensorboard.compat.tensorflow_stub.io import gfile

    for folder, _, names in gfile.walk(log_dir):
        paths = (os.path.join(folder, name) for name in sorted(names) if "tfevents" in name)
        events = [path for path in paths if _is_file(path)]
        if events:
            yield os.path.relpath(folder, log_dir).replace(os.sep, "/"), events


def _is_file(path: str) -> bool:
    """Returns whether a path is not that of a pipe or a device, which would never end."""
    return "://" in path or os.path.isfile(path)


def _events(path: str) -> Iterator[Any]:
    """Yields the events of a file up to the first record that is cut off or damaged.

    The checksum of the content is not compared: TensorBoard's own in Python takes minutes for a
    long training. No more is read than the file has, whatever length a record claims.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.io import gfile
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    size = gfile.stat(path).length
    with gfile.GFile(path, "rb") as file:
        while True:
            # Length, its checksum, content, checksum of the content.
            header = file.read(12)
            if len(header) < 12 or masked_crc32c(header[:8]) != int.from_bytes(
                header[8:], "little"
            ):
                return
            length = int.from_bytes(header[:8], "little")
            if length > size:
                return
            record = file.read(length + 4)
            if len(record) < length + 4:
                return
            try:
                yield Event.FromString(record[:length])
            except DecodeError:
                return
