"""Writes summaries and embeddings for TensorBoard. Importing it loads no Keras or TensorFlow."""

from keras_jointloss.tensorboard.heat_map import heat_map
from keras_jointloss.tensorboard.projector import write_projector
from keras_jointloss.tensorboard.writer import SummaryWriter

__all__ = ["SummaryWriter", "heat_map", "write_projector"]
