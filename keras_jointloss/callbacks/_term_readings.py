"""The logged values of the terms of a model: losses, weights and shares."""

import math
from collections.abc import Callable, Iterator

import keras

from keras_jointloss.callbacks._fixed_total import FixedTotal
from keras_jointloss.model_terms import ModelTerms
from keras_jointloss.reports import Contribution, Report, RunReport, is_rounding, rest, share
from keras_jointloss.terms.layer_weight import LayerWeight

#: The values to log, by term and by name.
Readings = dict[str, dict[str, float]]
#: The prefixes of the Keras logs by run.
_PREFIXES = {"train": "", "validation": "val_"}


class TermReadings:
    """Reads the terms of a model and keeps the readings of an epoch by run.

    Args:
        terms: The terms of the model.
        has_regularizers: Returns whether the model has regularizers.
        fixed_total: The total at fixed weights, or `None`.
    """

    def __init__(
        self,
        terms: ModelTerms,
        has_regularizers: Callable[[], bool],
        fixed_total: FixedTotal | None = None,
    ):
        self._terms = terms
        self._has_regularizers = has_regularizers
        self._fixed_total = fixed_total
        # Once seen, it is always logged, so that its curve has no gaps.
        self._has_other = False
        #: The readings at the end of the epoch for the runs `"train"` and `"validation"`, and the
        #: loss of the model.
        self.kept: dict[str, Readings] = {}
        self.totals: dict[str, float] = {}
        #: The table of the latest epoch or evaluation that has ended, if any.
        self.report: Report | None = None

    def start_epoch(self) -> None:
        """Drops the readings of the previous epoch and resets the means of layer terms."""
        self.kept, self.totals = {}, {}
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
        readings = {
            name: {**term.read(), **others.get(name, {})} for name, term in self._terms.items()
        }
        # Keras averages the total over all batches, and a layer may be called in some only.
        sizes = {name: term.means.size for name, term in self._terms.items()}
        for name, reading in readings.items():
            if "weighted" in reading:
                reading["weighted"] *= sizes[name] / max(sizes.values())
        return readings

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
        logs = {}
        for run, readings in self.kept.items():
            for name, reading in readings.items():
                values = {key: value for key, value in reading.items() if key != "weighted"}
                if "weighted" in reading and run in self.totals:
                    values["share"] = share(reading["weighted"], self.totals[run])
                logs.update({f"{_PREFIXES[run]}{name}_{key}": x for key, x in values.items()})
            fixed = self.fixed_total(readings)
            if fixed is not None:
                logs[f"{_PREFIXES[run]}joint_loss"] = fixed
        return logs

    def fixed_total(self, readings: Readings) -> float | None:
        """Returns the total of readings at fixed weights, or `None` if there is none."""
        return None if self._fixed_total is None else self._fixed_total.of(readings)

    def to_tags(self, readings: Readings, total: float) -> dict[str, float]:
        """Returns readings by TensorBoard tag.

        Args:
            readings: As `read` returns them.
            total: The loss of the model.
        """
        values = {"joint_loss/total": total}
        for name, reading in readings.items():
            for key, value in reading.items():
                values[f"joint_loss/{name}/{'raw' if key == 'loss' else key}"] = value
            if "weighted" in reading:
                values[f"joint_loss/{name}/share"] = share(reading["weighted"], total)
        other = self._other(readings, total)
        if other is not None:
            values["joint_loss/other"] = other
            values.setdefault("joint_loss/other/share", share(other, total))
        fixed = self.fixed_total(readings)
        if fixed is not None:
            values["joint_loss/fixed_total"] = fixed
        return values

    def _other(self, readings: Readings, total: float) -> float | None:
        """Returns the loss that is part of no term, or `None` if there is none."""
        weighted = [x["weighted"] for x in readings.values() if "weighted" in x]
        if not weighted:
            return None  # Another callback has evaluated the model, which reset the means.
        other = rest(total, weighted)
        if not self._has_other and math.isfinite(other):
            self._has_other = self._has_regularizers() or not is_rounding(other, total, weighted)
        return other if self._has_other else None

    def keep_report(self) -> None:
        """Makes the kept readings the `report`."""
        runs = {}
        for run in (run for run in _PREFIXES if run in self.totals):
            total = self.totals[run]
            terms = {name: _contribution(x, total) for name, x in self.kept[run].items()}
            runs[run] = RunReport(terms, total)
        self.report = Report(runs)

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


def has_regularizers(model: keras.Model) -> bool:
    """Returns whether a trainable variable of the model has a regularizer."""
    variables = model.trainable_variables
    return any(getattr(variable, "regularizer", None) is not None for variable in variables)


def _contribution(reading: dict[str, float], total: float) -> Contribution:
    weighted = reading.get("weighted", math.nan)
    raw = reading.get("loss", math.nan)
    return Contribution(raw, reading["weight"], weighted, share(weighted, total))
