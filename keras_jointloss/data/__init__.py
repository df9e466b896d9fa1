"""Data sets for `fit` that choose which items form a batch, and the search for hard negatives."""

from keras_jointloss.data.class_batches import ClassBatches
from keras_jointloss.data.mining import hard_negatives
from keras_jointloss.data.task_batches import TaskBatches
from keras_jointloss.data.unique_batches import UniqueBatches

__all__ = ["ClassBatches", "TaskBatches", "UniqueBatches", "hard_negatives"]
