"""The metric that logs the mean loss of an output term."""

from typing import Any

import keras

from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.validation import invalid, validate_choice
from keras_jointloss.terms.output_weight import LossWeight


@keras.saving.register_keras_serializable(package="keras_jointloss")
class TermReading(keras.metrics.Metric):
    """Logs the mean loss that the weight of an output term records, where Keras does not log it.

    It has no state: its name follows that of the weight, so `mask_dice_weight` is logged beside
    `mask_dice_loss`.

    Args:
        weight: The `LossWeight` of the term, which must be among the metrics of the model, too.
        value: What the name ends in: `"loss"`, or `"labelled_loss"` where Keras logs a `loss` of
            its own, which counts missing targets.
        name: Ignored.
        dtype: As in `keras.metrics.Metric`.

    Raises:
        ValueError: If `weight` is no `LossWeight`, or `value` does not exist.
    """

    def __init__(self, weight: LossWeight, value: str = "loss", name: Any = None, dtype=None):
        if not isinstance(weight, LossWeight):
            raise invalid("weight", "a `LossWeight`", weight)
        # A function, as Keras would track the weight as a part of this metric, a second time.
        self._get_weight = lambda: weight
        self.value = validate_choice(value, "value", ("loss", "labelled_loss"))
        super().__init__(name=name, dtype=dtype)

    @property
    def name(self) -> str:
        """The name of the weight with the value in place of `weight`."""
        name = self._get_weight().name
        is_usual = name == "weight" or name.endswith("_weight")
        return f"{name.removesuffix('weight') if is_usual else f'{name}_'}{self.value}"

    @name.setter
    def name(self, name: Any) -> None:
        """Does nothing: the callback may rename the weight later."""

    def update_state(self, y_true=None, y_pred=None, sample_weight=None) -> None:
        """Does nothing: the loss of the term updates the weight."""

    def result(self):
        """Returns the mean loss, a scalar tensor, or as `LossWeight.result` with its name."""
        weight = self._get_weight()
        loss = weight.recorded.loss()
        return {f"{weight.term}_{self.value}": loss} if weight.is_across else loss

    def reset_state(self) -> None:
        """Does nothing: Keras resets the weight, too."""

    def get_config(self) -> dict:
        return {"weight": self._get_weight(), "value": self.value, "dtype": self.dtype}

    @classmethod
    def from_config(cls, config: dict) -> "TermReading":
        return cls(**{**config, "weight": deserialized(config.get("weight"), "weight")})
