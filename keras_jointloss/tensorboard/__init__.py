"""TensorBoard: the writer of summaries. Importing it imports neither Keras nor TensorFlow."""

from keras_jointloss.tensorboard.writer import SummaryWriter

__all__ = ["SummaryWriter"]
