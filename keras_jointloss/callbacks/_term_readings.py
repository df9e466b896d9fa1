"""The logged values of the terms of a model: losses, weights and shares."""

import math
from collections.abc import Iterator

from keras_jointloss.model_terms import ModelTerms
from keras_jointloss.terms.layer_weight import LayerWeight

#: The values to log, by term and by name.
Readings = dict[str, dict[str, float]]


class TermReadings:
    """Reads the terms of a model and keeps the readings of an epoch by run.

    Args:
        terms: The terms of the model.
    """

    def __init__(self, terms: ModelTerms):
        self._terms = terms
        #: The readings at the end of the epoch for the runs `"train"` and `"validation"`.
        self.kept: dict[str, Readings] = {}

    def start_epoch(self) -> None:
        """Drops the readings of the previous epoch and resets the means of layer terms."""
        self.kept = {}
        self.reset_layer_terms()

    def reset_layer_terms(self) -> None:
        """Resets the means of layer terms."""
        # Keras does so through the metrics of the layer, but not on JAX or in a model with a custom
        # `metrics` property.
        for term in self._terms.values():
            if isinstance(term, LayerWeight):
                term.reset()

    def read(self) -> Readings:
        """Returns the current values."""
        rule = self._terms.weighting
        others = {} if rule is None else rule.read()
        return {name: {**term.read(), **others.get(name, {})} for name, term in self._terms.items()}

    def keep_train(self, has_means: bool) -> None:
        """Keeps the readings of training before an evaluation resets the means.

        Args:
            has_means: Whether the means are those of training and not of an evaluation.
        """
        self.kept["train"] = self.read()
        if not has_means:
            for reading in self.kept["train"].values():
                reading.pop("loss", None)
                reading.pop("weighted", None)

    def to_logs(self) -> dict[str, float]:
        """Returns the kept readings by their names in the Keras logs."""
        return {
            f"{prefix}{name}_{key}": value
            for run, prefix in (("train", ""), ("validation", "val_"))
            for name, reading in self.kept.get(run, {}).items()
            for key, value in reading.items()
            if key != "weighted"
        }

    def nonfinite_losses(self) -> Iterator[tuple[str, float, str]]:
        """Yields the losses in the kept readings that are not finite: term, loss and run."""
        for run, readings in self.kept.items():
            for name, reading in readings.items():
                if not math.isfinite(reading.get("loss", 0.0)):
                    yield name, reading["loss"], run


def to_tags(readings: Readings, total: float) -> dict[str, float]:
    """Returns readings by TensorBoard tag.

    Args:
        readings: As `TermReadings.read` returns them.
        total: The loss of the model.
    """
    values = {"joint_loss/total": total}
    for name, reading in readings.items():
        for key, value in reading.items():
            values[f"joint_loss/{name}/{'raw' if key == 'loss' else key}"] = value
        if "weighted" in reading:
            share = reading["weighted"] / total if total else math.nan
            values[f"joint_loss/{name}/share"] = share
    return values
