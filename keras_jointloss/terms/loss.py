"""The loss of an output term: the user's loss, which also records its value in the weight."""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_jointloss._backend import replica_count
from keras_jointloss.terms.output_weight import LossWeight, deserialize_term_weight

# For these names Keras chooses the loss by the shapes in the first step.
_CROSSENTROPY = ("crossentropy", "ce")


@keras.saving.register_keras_serializable(package="keras_jointloss")
class TermLoss(keras.losses.Loss):
    """A term's loss, which also records its value in the term's `LossWeight`.

    Value, gradient, reduction, mask and sample weights are those of `loss`.

    Args:
        loss: A loss as Keras accepts it for an output: a name, a function or a
            `keras.losses.Loss`.
        weight: The `LossWeight` of the term.
        name: The name of the term.
    """

    def __init__(self, loss: Any, weight: LossWeight, name: str | None = None):
        # Keras opens a name scope with the name of a loss, which must not contain a slash.
        super().__init__(name=name and name.replace("/", "_"))
        self.term = name
        self.loss = loss
        self.weight = weight
        self._resolved = None if loss in _CROSSENTROPY else keras.losses.get(loss)

    def __call__(self, y_true, y_pred, sample_weight=None):
        if isinstance(self._resolved, keras.losses.Loss):
            value = self._resolved(y_true, y_pred, sample_weight)
        else:
            value = super().__call__(y_true, y_pred, sample_weight)
        batch_size = ops.shape(keras.tree.flatten(y_pred)[0])[0]
        # Under `tf.distribute` Keras divides a replica's loss by the number of replicas.
        mean = ops.mean(value) if len(value.shape) else value
        replicas = replica_count()
        counts = None
        if sample_weight is not None and self.weight.observer is not None:
            counts = ops.any(ops.not_equal(ops.convert_to_tensor(sample_weight), 0))
        self.weight.record(mean * replicas if replicas > 1 else mean, batch_size, counts)
        return value

    def call(self, y_true, y_pred):
        """Computes a loss that was given as a function."""
        function = self._resolved or _crossentropy_for(y_true, y_pred)
        pairs = keras.tree.map_structure(match_ranks, y_true, y_pred)
        y_true = keras.tree.map_structure_up_to(y_true, lambda pair: pair[0], pairs)
        y_pred = keras.tree.map_structure_up_to(y_pred, lambda pair: pair[1], pairs)
        return function(y_true, y_pred)

    def get_config(self) -> dict:
        # The objects themselves: Keras then saves a weight that is used in several places once.
        return {"loss": self.loss, "weight": self.weight, "name": self.term}

    @classmethod
    def from_config(cls, config: dict) -> "TermLoss":
        loss = config["loss"]
        if isinstance(loss, dict):
            # Not `keras.losses.deserialize`, which does not support lambdas.
            loss = keras.saving.deserialize_keras_object(loss)
        weight = deserialize_term_weight(config["weight"])
        return cls(**{**config, "loss": loss, "weight": weight})


def match_ranks(y_true, y_pred):
    """Gives targets and predictions the same rank if one has an extra last axis of size 1."""
    true_rank, pred_rank = len(y_true.shape), len(y_pred.shape)
    if true_rank == pred_rank + 1 and y_true.shape[-1] == 1:
        if pred_rank == 1:
            return y_true, ops.expand_dims(y_pred, -1)
        return ops.squeeze(y_true, -1), y_pred
    if pred_rank == true_rank + 1 and y_pred.shape[-1] == 1:
        if true_rank == 1:
            return ops.expand_dims(y_true, -1), y_pred
        return y_true, ops.squeeze(y_pred, -1)
    return y_true, y_pred


def _crossentropy_for(y_true, y_pred) -> Callable:
    """Chooses the cross-entropy by shapes, as Keras does for the loss `"crossentropy"`."""
    if y_pred.shape[-1] == 1:
        return keras.losses.binary_crossentropy
    if len(y_true.shape) < len(y_pred.shape) or y_true.shape[-1] == 1:
        return keras.losses.sparse_categorical_crossentropy
    return keras.losses.categorical_crossentropy
