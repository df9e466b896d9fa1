"""The metric that logs a part of an output term's loss."""

from typing import Any

import keras

from keras_jointloss._masks import valid_items


@keras.saving.register_keras_serializable(package="keras_jointloss")
class LossPart(keras.metrics.Mean):
    """The mean of an unweighted part of a loss, such as `keras_jointloss.losses.VICReg`.

    Args:
        loss: A `keras_jointloss.losses.ViewsLoss`.
        part: One of its `part_names`.
        name: Name of the metric, by default the name of the part.
        dtype: As in `keras.metrics.Metric`.
    """

    def __init__(self, loss: Any, part: str, name: str | None = None, dtype=None):
        super().__init__(name=name or part, dtype=dtype)
        self.loss = loss
        self.part = part

    def update_state(self, y_true, y_pred, sample_weight=None) -> None:
        """Adds the items of a batch."""
        valid = valid_items(y_pred, sample_weight)
        super().update_state(self.loss.part_values(y_pred, None, valid)[self.part], sample_weight)

    def get_config(self) -> dict:
        return {**super().get_config(), "loss": self.loss, "part": self.part}

    @classmethod
    def from_config(cls, config: dict) -> "LossPart":
        loss = config["loss"]
        loss = keras.losses.deserialize(loss) if isinstance(loss, dict) else loss
        return cls(**{**config, "loss": loss})
