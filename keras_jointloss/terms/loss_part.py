"""The metric that logs a part of an output term's loss."""

from typing import Any

import keras
from keras import ops

from keras_jointloss._core.backend import current_replicas
from keras_jointloss._core.batch import (
    Batch,
    as_labels,
    item_weights,
    label_tensor,
    rows_of,
    stacked,
    valid_items,
)
from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.replicas import global_batch, is_after_call
from keras_jointloss._core.validation import invalid, validate_name


@keras.saving.register_keras_serializable(package="keras_jointloss")
class LossPart(keras.metrics.Mean):
    """The mean of an unweighted part of a loss, such as `keras_jointloss.losses.VICReg`.

    Args:
        loss: A `keras_jointloss.losses.ViewsLoss`.
        part: One of its `part_names`.
        name: Name of the metric, by default the name of the part.
        dtype: As in `keras.metrics.Metric`.
        weight: The `LossWeight` of the term, which moves arguments of the loss that follow a
            schedule; it must be among the metrics of the model, too. `None` if none do.
    """

    def __init__(
        self, loss: Any, part: str, name: str | None = None, dtype=None, weight: Any = None
    ):
        names = getattr(loss, "part_names", ())
        if not isinstance(part, str) or part not in names:
            raise invalid("part", f"a name of a part of the loss, among {names}", part)
        super().__init__(name=validate_name(name) or part, dtype=dtype)
        self.loss = loss
        self.part = part
        # A function, as Keras would track the weight as a part of this metric, a second time.
        self._get_weight = lambda: weight
        self._moved = loss if weight is None else loss.moved_by(weight.annealed_values)

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Adds the items of a batch; under `tf.distribute`, of the batch of all replicas."""
        views = stacked(ops.convert_to_tensor(y_pred))
        weight = item_weights(1.0 if sample_weight is None else sample_weight, views)
        labels = as_labels(label_tensor(y_true)) if self.loss.has_labels else None
        batch, items = Batch(views, labels, valid_items(y_pred, sample_weight), weight), None
        if is_after_call():
            batch, items = global_batch(batch)
            # Keras adds up the states of the replicas, but each process of PyTorch keeps them all.
            items = items if current_replicas().takes_turns else None
        values = self._moved.part_values(batch.views, batch.labels, batch.mask)[self.part]
        counts = batch.sample_weight
        if batch.mask is not None:
            counts = ops.where(batch.mask, counts, 0)
        super().update_state(rows_of(values, items), rows_of(counts, items))

    def get_config(self) -> dict:
        config = {"loss": self.loss, "part": self.part, "weight": self._get_weight()}
        return {**super().get_config(), **config}

    @classmethod
    def from_config(cls, config: dict) -> "LossPart":
        objects = {name: deserialized(config.get(name), name) for name in ("loss", "weight")}
        return cls(**{**config, **objects})
