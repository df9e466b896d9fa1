"""Reads TensorBoard event files."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.util.tensor_util import make_ndarray


def accumulated(run) -> EventAccumulator:
    """Returns what a run holds."""
    accumulator = EventAccumulator(str(run), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


def read_scalars(run) -> dict[str, dict[int, float]]:
    """Returns the scalars of a run by tag and step."""
    accumulator = accumulated(run)
    return {
        tag: {
            event.step: float(make_ndarray(event.tensor_proto))
            for event in accumulator.Tensors(tag)
        }
        for tag in accumulator.Tags()["tensors"]
        if accumulator.SummaryMetadata(tag).plugin_data.plugin_name == "scalars"
    }


def read_images(run, tag) -> dict[int, list[bytes]]:
    """Returns the images of a tag, by step: width, height and content."""
    return {
        event.step: list(event.tensor_proto.string_val) for event in accumulated(run).Tensors(tag)
    }


def read_layout(run):
    """Returns the layout of the custom scalars dashboard."""
    (event,) = accumulated(run).Tensors(metadata.CONFIG_SUMMARY_TAG)
    return layout_pb2.Layout.FromString(make_ndarray(event.tensor_proto).item())
