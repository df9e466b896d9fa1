"""Writes scalars, the layout of their charts, and images for TensorBoard."""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

#: The name of the plugin, of its data and in the address of its tab.
PLUGIN = "joint_loss"
#: The tag of the number of finished epochs.
EPOCHS_TAG = "joint_loss/epochs"
#: The tag of the facts about a training.
TRAINING_TAG = "joint_loss/training"
#: What has been written is on disk after this time at the latest, even if the process is killed.
FLUSH_SECONDS = 10


class SummaryWriter:
    """Writes the summaries of one run.

    Args:
        log_dir: The directory of the run. It is created if it does not exist.

    Raises:
        OSError: If the directory cannot be created or written. Methods raise it, too, the first
            of them after it has happened: a thread writes the file.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as log_dir:
    ...     writer = SummaryWriter(log_dir)
    ...     writer.scalars({"joint_loss/total": 0.5}, step=10)
    ...     writer.close()
    """

    def __init__(self, log_dir: str | os.PathLike[str]):
        from keras_jointloss.tensorboard._event_file import EventFile

        self.log_dir = os.fspath(log_dir)
        if "://" not in self.log_dir:
            os.makedirs(self.log_dir, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.log_dir):
                pass
        self._file = EventFile(self.log_dir, FLUSH_SECONDS)
        # The tags whose metadata is in the file: it need not follow with every value.
        self._known: set[str] = set()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes scalars by tag, all at the same step."""
        from tensorboard.plugins.scalar import metadata

        scalar = metadata.create_summary_metadata(display_name="", description="")
        self._write_numbers(values, scalar, step)

    def image(self, tag: str, image: np.ndarray, step: int, description: str = "") -> None:
        """Writes an image.

        Args:
            tag: The tag of the image.
            image: `(height, width, 3)`, uint8.
            step: The training step.
            description: A description of the image, in Markdown.
        """
        from tensorboard.plugins.image import metadata

        from keras_jointloss.tensorboard.projector import encode_png

        height, width, _ = image.shape
        content = [str(width).encode(), str(height).encode(), encode_png(image)]
        summary = metadata.create_summary_metadata("", description)
        self._write({tag: np.array(content, dtype=object)}, summary, step)

    def chart_layout(self, category: str, charts: Mapping[str, Sequence[str]]) -> None:
        """Writes which tags share a chart in the custom scalars dashboard.

        Args:
            category: The heading above the charts.
            charts: By title, the regular expressions of the tags in the chart.
        """
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata

        layout = layout_pb2.Layout(
            category=[
                layout_pb2.Category(
                    title=category,
                    chart=[
                        layout_pb2.Chart(
                            title=title, multiline=layout_pb2.MultilineChartContent(tag=tags)
                        )
                        for title, tags in charts.items()
                    ],
                )
            ]
        )
        values = {metadata.CONFIG_SUMMARY_TAG: layout.SerializeToString()}
        self._write(values, metadata.create_summary_metadata(), step=0)

    def training(
        self, schedules: Mapping[str, tuple[Sequence[int], Sequence[float]]], step: int, end: int
    ) -> None:
        """Writes facts about the training for the "Joint loss" dashboard.

        Args:
            schedules: By term, the steps and the weights of its schedule.
            step: The training step.
            end: The step at which training is to end.
        """
        points = {term: [[*x], [*y]] for term, (x, y) in schedules.items()}
        facts = json.dumps({"end": end, "schedules": points})
        self._write({TRAINING_TAG: facts}, _own_metadata(), step)

    def epochs(self, count: float, step: int) -> None:
        """Writes for the "Joint loss" dashboard how many epochs have ended at a step."""
        self._write_numbers({EPOCHS_TAG: count}, _own_metadata(), step)

    def _write_numbers(self, values: Mapping[str, float], metadata, step: int) -> None:
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
        from tensorboard.compat.proto.types_pb2 import DT_FLOAT

        # What `make_tensor_proto` returns, ten times as fast: each step may wait for it.
        shape = TensorShapeProto()
        self._write_tensors(
            {
                tag: TensorProto(dtype=DT_FLOAT, tensor_shape=shape, float_val=[float(value)])
                for tag, value in values.items()
            },
            metadata,
            step,
        )

    def _write(self, values: Mapping[str, Any], metadata, step: int) -> None:
        from tensorboard.util.tensor_util import make_tensor_proto

        tensors = {tag: make_tensor_proto(value) for tag, value in values.items()}
        self._write_tensors(tensors, metadata, step)

    def _write_tensors(self, tensors: Mapping[str, Any], metadata, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        parts = []
        for tag, tensor in tensors.items():
            known = None if tag in self._known else metadata
            parts.append(Summary.Value(tag=tag, metadata=known, tensor=tensor))
        self._known.update(tensors)
        self.summary(Summary(value=parts), step)

    def summary(self, summary: Any, step: int) -> None:
        """Writes a `Summary` message of TensorBoard."""
        from tensorboard.compat.proto.event_pb2 import Event

        self._file.write(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Flushes everything written so far to disk."""
        self._file.flush()

    def close(self) -> None:
        """Flushes everything to disk and closes the file."""
        self._file.close()


def _own_metadata() -> Any:
    """Returns the metadata of our own plugin, whose tab TensorBoard then shows."""
    from tensorboard.compat.proto.summary_pb2 import DATA_CLASS_TENSOR, SummaryMetadata

    # Without the class, TensorBoard's default loader does not show the data to the plugin.
    return SummaryMetadata(
        plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN), data_class=DATA_CLASS_TENSOR
    )


def parse_training(text: Any) -> dict[str, Any]:
    """Returns the facts that `SummaryWriter.training` has written, without what is not valid."""
    try:
        facts = json.loads(text)
        schedules = {
            str(term): (np.array(steps, "int64").tolist(), np.array(weights, "float64").tolist())
            for term, (steps, weights) in facts["schedules"].items()
        }
        return {
            "end": int(np.int64(facts["end"])),
            "schedules": {
                term: (steps, weights)
                for term, (steps, weights) in schedules.items()
                if np.ndim(steps) == 1 == np.ndim(weights) and len(steps) == len(weights)
            },
        }
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {}
