"""Writes hyperparameters and results for TensorBoard's HParams dashboard."""

import os
import time
from collections.abc import Mapping
from typing import Any

from keras_jointloss.tensorboard.writer import SummaryWriter

#: The run of the hyperparameters, below the folder of a training. Its own, so that HParams shows
#: as metrics what is written there, and not all values of all terms.
RUN = "hparams"


def write_hparams(
    log_dir: str | os.PathLike[str],
    hparams: Mapping[str, Any],
    metrics: Mapping[str, float],
    step: int = 0,
    start_time: float | None = None,
) -> None:
    """Writes a training for TensorBoard's HParams dashboard, to the run `hparams` of a folder.

    It needs no TensorFlow. Trainings in different folders are different trials.

    Args:
        log_dir: The folder of the training.
        hparams: The hyperparameters by name: strings, numbers or booleans.
        metrics: The results by name.
        step: The training step of the results.
        start_time: When the training started, in seconds since 1970; `None` for now.

    Raises:
        TypeError: If a hyperparameter is of another type.
        OSError: If the folder cannot be written.

    Example:

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as log_dir:
    ...     write_hparams(log_dir, {"weighting": "none", "weight/pair": 0.5}, {"val_loss": 1.2})
    """
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata

    # Not `api`, which imports TensorFlow.
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2, summary_v2

    log_dir = os.fspath(log_dir)
    start = summary_v2.hparams_pb(dict(hparams), trial_id=log_dir, start_time_secs=start_time)
    end = plugin_data_pb2.HParamsPluginData(
        version=metadata.PLUGIN_DATA_VERSION,
        session_end_info=plugin_data_pb2.SessionEndInfo(
            status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time()
        ),
    )
    plugin = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=end.SerializeToString()
    )
    value = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG,
        metadata=SummaryMetadata(plugin_data=plugin),
        tensor=metadata.NULL_TENSOR,
    )
    writer = SummaryWriter(os.path.join(log_dir, RUN))
    writer.summary(start, step=0)
    writer.scalars(metrics, step)
    writer.summary(Summary(value=[value]), step=0)
    writer.close()
