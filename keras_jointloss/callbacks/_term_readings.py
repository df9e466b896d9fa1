"""The logged values of the terms of a model: losses, weights and shares."""

import math
from collections.abc import Iterator, Mapping

from keras_jointloss.terms.layer_weight import LayerWeight
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting import Weighting

#: The values to log, by term and by name.
Readings = dict[str, dict[str, float]]


class TermReadings:
    """Reads the terms of a model and keeps the readings of an epoch by run.

    Args:
        terms: The weights of the terms by name.
        weighting: The rule that adapts them, or `None`.
    """

    def __init__(self, terms: Mapping[str, TermWeight], weighting: Weighting | None):
        self._terms = terms
        self._weighting = weighting
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
        others = {} if self._weighting is None else self._weighting.read()
        return {name: {**term.read(), **others.get(name, {})} for name, term in self._terms.items()}

    def keep_train(self, has_means: bool) -> None:
        """Keeps the readings of training before an evaluation resets the means.

        Args:
            has_means: Whether the means are those of training and not of an evaluation.
        """
        self.kept["train"] = self.read()
        if not has_means:
            for reading in self.kept["train"].values():
                for key in ("loss", "weighted", "labelled"):
                    reading.pop(key, None)

    def to_logs(self) -> dict[str, float]:
        """Returns the kept readings by their names in the Keras logs."""
        return {
            f"{prefix}{name}_{key}": value
            for run, prefix in (("train", ""), ("validation", "val_"))
            for name, reading in self.kept.get(run, {}).items()
            for key, value in reading.items()
            if key != "weighted"
        }

    def labelled_losses(self) -> dict[str, float]:
        """Returns the kept losses of terms with missing targets by their names in the Keras logs.

        Keras weights the mean of a batch by the size of the batch, not by its labelled items.
        """
        names = {f"{name}_loss" for name, term in self._terms.items() if term.has_missing_targets}
        logs = self.to_logs()
        return {key: logs[key] for key in logs if key.removeprefix("val_") in names}

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
