"""Writes scalars, the layout of their charts, and images for TensorBoard."""

import os
import tempfile
import time
from collections.abc import Mapping, Sequence

import numpy as np


class SummaryWriter:
    """Writes the summaries of one run.

    Args:
        log_dir: The directory of the run. It is created if it does not exist.

    Raises:
        OSError: If the directory cannot be created or written.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as log_dir:
    ...     writer = SummaryWriter(log_dir)
    ...     writer.scalars({"joint_loss/total": 0.5}, step=10)
    ...     writer.close()
    """

    def __init__(self, log_dir: str | os.PathLike):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.log_dir = os.fspath(log_dir)
        if "://" not in self.log_dir:
            os.makedirs(self.log_dir, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.log_dir):
                pass
        self._writer = EventFileWriter(self.log_dir)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes scalars by tag, all at the same step."""
        from tensorboard.plugins.scalar import metadata

        scalar = metadata.create_summary_metadata(display_name="", description="")
        self._write({tag: np.float32(value) for tag, value in values.items()}, scalar, step)

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

    def _write(self, values, metadata, step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.util.tensor_util import make_tensor_proto

        summary = Summary(
            value=[
                Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(value))
                for tag, value in values.items()
            ]
        )
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Flushes everything written so far to disk."""
        self._writer.flush()

    def close(self) -> None:
        """Flushes everything to disk and closes the file."""
        self._writer.close()
