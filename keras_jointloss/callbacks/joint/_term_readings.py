"""The logged values of the terms of a model: losses, weights and shares."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_jointloss._core.validation import invalid, validate_number
from keras_jointloss.joint.model_terms import ModelTerms
from keras_jointloss.joint.report import Contribution, Report, RunReport
from keras_jointloss.tensorboard.runs import is_rounding, rest, share
from keras_jointloss.terms.layer_weight import LayerWeight
from keras_jointloss.terms.record import Totals
from keras_jointloss.terms.weight import TermWeight

#: The values to log, by term and by name.
Readings = dict[str, dict[str, float]]
#: The runs, with the prefixes of their values in the Keras logs.
RUNS = {"train": "", "validation": "val_"}
_NAMED = ("initial", "equal")
_EXPECTED = "None, 'initial', 'equal', or a dict with a finite number >= 0 for each term, not all 0"


def validate_fixed_weights(weights: Any, name: str) -> Any:
    """Returns weights that some model may have: `None`, a name, or numbers by term."""
    if weights is None or (isinstance(weights, str) and weights in _NAMED):
        return weights
    if not isinstance(weights, Mapping):
        raise invalid(name, _EXPECTED, weights)
    return {term: validate_number(x, f"{name}[{term!r}]", 0) for term, x in weights.items()}


class FixedTotal:
    """Adds up the raw losses of the terms with weights that do not move.

    These are what `validate_fixed_weights` has returned, not `None`. Raises `ValueError` if they
    are not those of all terms, or all are 0, or if a term is named `"joint"`.
    """

    def __init__(self, weights: Any, terms: Mapping[str, TermWeight], name: str):
        if weights == "equal":
            self.weights = dict.fromkeys(terms, 1.0)
        elif weights == "initial":
            self.weights = {term: weight.given.number_at(0) for term, weight in terms.items()}
        else:
            self.weights = dict(weights)
        if set(self.weights) != set(terms):
            raise invalid(name, f"a number for each term of the model, {list(terms)}", weights)
        if "joint" in terms:
            raise invalid(
                name,
                "None, since the model has a term named 'joint': 'joint_loss' in the logs is its "
                "loss",
                weights,
            )
        if self.weights and not any(self.weights.values()):
            raise invalid(
                name, "a weight > 0 for one term at least", weights, f", the weights {self.weights}"
            )

    def of(self, readings: Mapping[str, Mapping[str, float]]) -> float | None:
        """Returns the total, or `None` if no term was computed.

        The readings have the mean raw `loss` of the terms that were computed. The others count 0,
        as in the loss of the model.
        """
        found = {name: x["loss"] for name, x in readings.items() if "loss" in x}
        if not found:
            return None
        # A term of weight 0 does not count, even if its loss is not finite.
        return sum(self.weights[x] * loss for x, loss in found.items() if self.weights[x])


class TermReadings:
    """Reads the terms of a model and keeps the readings of an epoch by run.

    With `validation_weights` it also adds up a total at fixed weights.
    """

    def __init__(
        self,
        model: keras.Model,
        terms: ModelTerms,
        validation_weights: Mapping[str, float] | str | None = None,
    ):
        self._read_model = model
        self._terms = terms
        self._fixed_total = None
        if validation_weights is not None:
            self._fixed_total = FixedTotal(validation_weights, terms, "validation_weights")
        # Once seen, they are always logged, so that their curves have no gaps.
        self._has_other = False
        self._adding: set[str] = set()
        #: The readings at the end of the epoch for the runs `"train"` and `"validation"`, and the
        #: loss of the model.
        self.kept: dict[str, Readings] = {}
        self.totals: dict[str, float] = {}
        #: The table of the latest epoch or evaluation that has ended, if any.
        self.report: Report | None = None

    def start_epoch(self) -> None:
        """Drops the readings of the previous epoch and resets the means of layers."""
        self.kept, self.totals = {}, {}
        self.reset_layers()

    def reset_layers(self) -> None:
        """Resets the means of layer terms and of what layers add without being a term."""
        self._terms.other.reset()
        # Keras does so through the metrics of the layer, but not on JAX or in a model with a custom
        # `metrics` property.
        for term in self._terms.values():
            if isinstance(term, LayerWeight):
                term.reset()
        for scale in self._terms.scales.values():
            scale.reset()

    def sums(self) -> dict[str, Totals]:
        """Returns the current sums of the terms and other losses, to read differences of them."""
        others = self._terms.other.totals(self._terms)
        return {**{name: term.totals() for name, term in self._terms.items()}, **others}

    def read(
        self, now: Mapping[str, Totals] | None = None, since: Mapping[str, Totals] | None = None
    ) -> Readings:
        """Returns the current values, with means since the last reset, or between two times.

        The sums `now` are by default the current ones, and `since` are earlier ones. Of what a
        layer adds without being a term, there is only the mean, `weighted`.
        """
        now, since = self.sums() if now is None else now, since or {}
        totals = {name: x.since(since.get(name)) for name, x in now.items()}
        rule = self._terms.weighting
        of_rule = {} if rule is None else rule.read()
        readings = {
            name: {**term.read(totals[name]), **of_rule.get(name, {})}
            for name, term in self._terms.items()
        }
        # Keras averages the total over all batches, and a layer may be called in some only.
        size = max((totals[name].size for name in readings), default=0)
        for name, reading in readings.items():
            if "weighted" in reading:
                reading["weighted"] *= totals[name].size / size
        others = {name: x.read() for name, x in totals.items() if name not in self._terms}
        parts = {name: {"weighted": x["weighted"]} for name, x in others.items() if x}
        # A layer that has added nothing is not named.
        self._adding |= {name for name, x in parts.items() if x["weighted"]}
        return {**readings, **{name: x for name, x in parts.items() if name in self._adding}}

    def keep_train(self, has_means: bool) -> None:
        """Keeps the readings of training before an evaluation resets the means.

        It `has_means` unless these are already those of an evaluation.
        """
        self.kept["train"] = self.read()
        if not has_means:
            for reading in self.kept["train"].values():
                for key in ("loss", "weighted", "labelled"):
                    reading.pop(key, None)

    def to_logs(self) -> dict[str, float]:
        """Returns the kept readings by their names in the Keras logs, NaN for those of no item."""
        logs = {}
        for run, readings in self.kept.items():
            prefix = RUNS[run]
            for name, reading in readings.items():
                weighted = reading.get("weighted", math.nan)
                if name not in self._terms:
                    logs[f"{prefix}{name}_loss"] = weighted
                    continue
                values = {"loss": math.nan, **reading, "share": share(weighted, self.totals[run])}
                if self._terms[name].has_missing_targets:
                    values.setdefault("labelled", math.nan)
                if run == "train" and self._terms[name].on_nonfinite == "skip":
                    values.setdefault("skipped", math.nan)
                values.pop("weighted", None)
                logs.update({f"{prefix}{name}_{key}": x for key, x in values.items()})
            if self._fixed_total is not None:
                fixed = self.fixed_total(readings)
                logs[f"{prefix}joint_loss"] = math.nan if fixed is None else fixed
        # An evaluation does not move them.
        logs.update({name: float(scale) for name, scale in self._terms.scales.items()})
        return logs

    def complete(self, logs: dict[str, Any], readings: Mapping[str, float]) -> None:
        """Adds the readings by their names to the logs of an epoch, and mends its losses."""
        logs.update({key: x for key, x in readings.items() if key not in logs})
        for run in self.kept:
            self._mend(logs, run, RUNS[run])

    def end_evaluation(self, logs: dict[str, Any], returned: dict[str, Any]) -> dict[str, float]:
        """Keeps the readings of an evaluation and returns them by TensorBoard tag.

        Adds the total at fixed weights to its logs, and mends the losses in these and in what the
        evaluation returns.
        """
        self.kept["validation"] = readings = self.read()
        self.totals["validation"] = total = float(logs.get("loss", math.nan))
        fixed_total = self.fixed_total(readings)
        if fixed_total is not None:
            logs["joint_loss"] = fixed_total
        for values in (logs, returned):
            self._mend(values, "validation")
        return self.to_tags(readings, total)

    def _mend(self, logs: dict[str, float], run: str, prefix: str = "") -> None:
        """Replaces the losses of terms in the Keras logs by those of the kept readings of a run.

        Keras' own may count a smaller last batch fully, or count missing targets. For an output
        with several losses, Keras logs their weighted sum. The values of the run have a prefix.
        """
        readings = self.kept[run]
        losses = {name: readings[name].get("loss", math.nan) for name in self._terms}
        losses.update({f"{name}_labelled": loss for name, loss in losses.items()})
        for output, terms in self._terms.output_sums.items():
            losses[output] = sum(readings[name].get("weighted", math.nan) for name in terms)
        named = {f"{prefix}{name}_loss": loss for name, loss in losses.items()}
        logs.update({key: loss for key, loss in named.items() if key in logs})

    def fixed_total(self, readings: Readings) -> float | None:
        """Returns the total of readings at fixed weights, or `None` if there is none."""
        return None if self._fixed_total is None else self._fixed_total.of(readings)

    def to_tags(
        self, readings: Readings, total: float, epoch: tuple[Readings, float] | None = None
    ) -> dict[str, float]:
        """Returns readings by TensorBoard tag, where the loss of the model is the total.

        The rounding of readings and loss since the start of the epoch, by default the same, is
        smaller than that of a few batches.
        """
        values = {"joint_loss/total": total}
        for name, reading in readings.items():
            for key, value in reading.items():
                values[f"joint_loss/{name}/{'raw' if key == 'loss' else key}"] = value
            if "weighted" in reading:
                values[f"joint_loss/{name}/share"] = share(reading["weighted"], total)
        self._find_other(*((readings, total) if epoch is None else epoch))
        weighted = weighted_terms(readings)
        # Without any, another callback has evaluated the model, which reset the means.
        if self._has_other and weighted:
            other = rest(total, weighted)
            values["joint_loss/other"] = other
            values.setdefault("joint_loss/other/share", share(other, total))
        fixed = self.fixed_total(readings)
        if fixed is not None:
            values["joint_loss/fixed_total"] = fixed
        return values

    def _find_other(self, readings: Readings, total: float) -> None:
        """Finds out whether any loss is part of no term."""
        weighted = weighted_terms(readings)
        other = rest(total, weighted)
        if not self._has_other and weighted and math.isfinite(other):
            variables = self._read_model.trainable_variables
            has_regularizers = any(getattr(x, "regularizer", None) is not None for x in variables)
            self._has_other = has_regularizers or not is_rounding(other, total, weighted)

    def keep_report(self) -> None:
        """Makes the kept readings the `report`."""
        runs = {}
        for run in (run for run in RUNS if run in self.totals):
            total = self.totals[run]
            kept = self.kept[run]
            terms = {name: _contribution(kept[name], total) for name in self._terms}
            parts = {name: x for name, x in kept.items() if name not in terms}
            others = {name: x["weighted"] for name, x in parts.items() if "weighted" in x}
            runs[run] = RunReport(terms, total, others)
        self.report = Report(runs)

    def nonfinite_losses(self) -> Iterator[tuple[str, float, str]]:
        """Yields the losses in the kept readings that are not finite: term, loss and run."""
        for run, readings in self.kept.items():
            for name, reading in readings.items():
                loss = reading.get("loss", reading.get("weighted", 0.0))
                if not math.isfinite(loss):
                    yield name, loss, run


def report_of(readings: TermReadings | None) -> Report:
    """Returns the table of the latest epoch or evaluation, or raises `ValueError`."""
    report = None if readings is None else readings.report
    if report is None:
        raise ValueError(
            "Expected `summary` to be called after the first epoch of `fit`, or after "
            "`evaluate`, with this callback. Received: a callback without any values"
        )
    return report


def weighted_terms(readings: Readings) -> list[float]:
    """Returns the weighted losses of the terms that were computed."""
    return [x["weighted"] for x in readings.values() if "weighted" in x and "weight" in x]


def _contribution(reading: dict[str, float], total: float) -> Contribution:
    weighted = reading.get("weighted", math.nan)
    raw = reading.get("loss", math.nan)
    return Contribution(raw, reading["weight"], weighted, share(weighted, total))
