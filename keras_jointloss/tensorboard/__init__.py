"""Writes summaries and embeddings for TensorBoard, and reads and draws what was written.

Importing it loads no Keras or TensorFlow, and no Plotly.
"""

from keras_jointloss.tensorboard.heat_map import heat_map
from keras_jointloss.tensorboard.hparams import write_hparams
from keras_jointloss.tensorboard.plot import plot
from keras_jointloss.tensorboard.projector import write_projector
from keras_jointloss.tensorboard.read import read
from keras_jointloss.tensorboard.runs import Series
from keras_jointloss.tensorboard.writer import SummaryWriter

__all__ = [
    "Series", "SummaryWriter", "heat_map", "plot", "read", "write_hparams", "write_projector",
]  # fmt: skip
