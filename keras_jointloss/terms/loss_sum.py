"""Several losses of one output, each of which is a term."""

from collections.abc import Mapping

import keras

from keras_jointloss._core.registry import deserialized
from keras_jointloss._core.validation import invalid, validate_mapping, validate_name
from keras_jointloss.terms.loss import TermLoss


@keras.saving.register_keras_serializable(package="keras_jointloss")
class LossSum(keras.losses.Loss):
    """The weighted sum of several losses of one output, each of which is a term.

        loss = sum_i weight_i * loss_i(y_true, y_pred)

    Each part records its loss in its own `LossWeight` and has its own reduction. Keras multiplies
    the sum by 1.

    Args:
        parts: The `TermLoss` of each part, by name.
        name: Name of the loss.

    Raises:
        ValueError: If `parts` is empty or holds anything but a `TermLoss`, or if an output has
            several losses and is not a tensor.

    Example:

    >>> import keras_jointloss as kj
    >>> joint = kj.joint_loss({"mask": {"dice": keras.losses.Dice(), "bce": "binary_crossentropy"}})
    >>> float(joint["loss"]["mask"].parts["dice"].weight)
    1.0
    """

    def __init__(self, parts: Mapping[str, TermLoss], name: str = "loss_sum"):
        super().__init__(name=validate_name(name))
        is_dict = isinstance(parts, Mapping) and bool(parts)
        if not is_dict or not all(isinstance(part, TermLoss) for part in parts.values()):
            raise invalid("parts", "a non-empty dict of name to `TermLoss`", parts)
        self.parts = dict(parts)

    def validate_output(self, y_pred) -> None:
        """Raises `ValueError` if an output is nested."""
        if keras.tree.is_nested(y_pred):
            raise ValueError(
                "Expected one tensor as an output that has several losses. A nested output needs a "
                f"top-level name of its own. Received: losses named {list(self.parts)} for the "
                f"output {keras.tree.map_structure(lambda x: tuple(x.shape), y_pred)}"
            )

    def __call__(self, y_true, y_pred, sample_weight=None):
        self.validate_output(y_pred)
        return sum(part.weighted(y_true, y_pred, sample_weight) for part in self.parts.values())

    def get_config(self) -> dict:
        # The objects themselves, as in `TermLoss`.
        return {"parts": self.parts, "name": self.name}

    @classmethod
    def from_config(cls, config: dict) -> "LossSum":
        parts = {
            name: deserialized(part, f"parts[{name!r}]")
            for name, part in validate_mapping(config.get("parts"), "parts", "a config").items()
        }
        return cls(**{**config, "parts": parts})
