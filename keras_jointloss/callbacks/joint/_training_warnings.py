"""What the callback warns of during training, each once."""

import math
import warnings
from collections.abc import Collection, Container, Iterable, Mapping
from typing import Any, NamedTuple

import keras

from keras_jointloss._core.keras_calls import running_callbacks
from keras_jointloss._core.keras_models import forget_best
from keras_jointloss.callbacks.joint._gradient_readings import GradientReadings, Statistics
from keras_jointloss.callbacks.joint._judged_epochs import JudgedEpochs
from keras_jointloss.callbacks.joint._stuck_terms import StuckTerm, TermProgress, untrained_term
from keras_jointloss.callbacks.joint._term_readings import Readings, TermReadings, weighted_terms
from keras_jointloss.joint.model_terms import ModelTerms
from keras_jointloss.tensorboard.judgement.losses import loss_is_not_finite
from keras_jointloss.tensorboard.judgement.weights import missed_steps
from keras_jointloss.tensorboard.runs import is_rounding, rest
from keras_jointloss.terms.clock import learning_rate

# They compare a value of one epoch with that of another.
_COMPARING = (
    keras.callbacks.EarlyStopping,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.ReduceLROnPlateau,
)


class EpochEnd(NamedTuple):
    """What is known of an epoch at its end."""

    epoch: int  # Its number, from 0
    step: int  # The training step
    batches: int  # How many batches it had
    logs: Mapping[str, Any]
    statistics: Statistics  # The statistics of its gradients


class TrainingWarnings:
    """Warns once in a training of each thing that goes wrong with the terms of a model."""

    def __init__(self, terms: ModelTerms):
        self._terms = terms
        self._warned: set[str] = set()
        self._weights_at_begin: dict[str, float] | None = None
        self._epochs = JudgedEpochs(terms)

    def _once(self, about: str, what: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(what, stacklevel=4)

    def leave_out(self, names: Iterable[str]) -> None:
        """Leaves out the warning of the losses of terms, of which something else warns."""
        self._warned |= {f"loss of {name}" for name in names}

    def start_epoch(self) -> None:
        """Records the weights with which the training begins, if this is its first epoch."""
        if self._weights_at_begin is None:
            self._weights_at_begin = self._weights()

    def _weights(self) -> dict[str, float]:
        return {name: float(weight) for name, weight in self._terms.items()}

    def of_epoch(
        self,
        end: EpochEnd,
        readings: TermReadings,
        gradients: GradientReadings,
        progress: TermProgress,
        is_driven: bool,
    ) -> None:
        """Warns of all that went wrong in an epoch.

        It `is_driven` if the callback that warns moves the weights, and `fit` runs.
        """
        optimizer, statistics = progress.model.optimizer, end.statistics
        if is_driven:
            self.of_standstill(end.batches, end.epoch)
        self.of_losses(readings, end.step)
        # Loss scaling deliberately tries scales that are too large and skips these steps.
        if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            self.of_gradients(gradients, statistics)
            self.of_unrecorded(gradients, statistics, end.batches, end.epoch)
        lengths = gradients.lengths(statistics, self._terms)
        train, copies = readings.kept["train"], gradients.without_gradient(statistics)
        self.of_factors(train, progress.counted, lengths, forgets_large_gradients(optimizer))
        self.of_stuck_terms(progress.stuck(train, end.logs, copies), end.epoch)
        if learning_rate(progress.model):
            self.of_epochs(readings, end)
        self.of_names(train, readings.totals["train"])
        self.of_monitors(running_callbacks(), end.logs)

    def of_losses(self, readings: TermReadings, step: int) -> None:
        """Warns of each term whose mean loss is not finite."""
        for name, loss, run in readings.nonfinite_losses():
            what = "term" if name in self._terms else "layer"
            finding = loss_is_not_finite(name, loss, f"{run}, step {step}", 1, what)
            self._once(f"loss of {name}", finding.text)

    def of_standstill(self, batches: int, epoch: int) -> None:
        """Warns if the weights did not move in all batches of an epoch."""
        if self._terms.clock.has_missed(batches):
            self._once("standstill", missed_steps(batches, epoch).text)

    def of_gradients(self, readings: GradientReadings, statistics: Statistics) -> None:
        """Warns of the terms whose gradients were the first to be non-finite."""
        for prefix, what in readings.nonfinite_gradients(statistics):
            self._once(prefix, what)

    def of_unrecorded(
        self, readings: GradientReadings, statistics: Statistics, batches: int, epoch: int
    ) -> None:
        """Warns of each layer that has combined no gradients in an epoch."""
        for name in readings.unrecorded(statistics, batches):
            self._once(
                f"record of {name}",
                f"The layer {name!r} has recorded no gradients in the {batches} batches of epoch "
                f"{epoch}: it has no statistics, and a `SharedTrunk` balances nothing. The trunk "
                "or, on JAX, the layer itself or a model around it may be frozen with `trainable = "
                "False`, or no loss depends on its outputs.",
            )

    def of_factors(
        self,
        readings: Readings,
        counted: Collection[str],
        lengths: Mapping[str, float],
        forgets: bool,
    ) -> None:
        """Warns of a term that contributes practically nothing, or cannot be weighed.

        Any item of the `counted` terms counted. For `lengths` see `untrained_term`, and for
        `forgets` `keras_jointloss.weighting.Weighting.describe_limit`.
        """
        rule = self._terms.weighting
        if rule is None:
            return
        trained = {
            name: reading
            for name, reading in readings.items()
            # The loss of no items is 0, and moves no rule.
            if name in counted
            and not self._terms[name].is_off
            and math.isfinite(reading.get("loss", math.nan))
        }
        untrained = untrained_term(rule, self._terms, trained, lengths)
        if untrained is not None:
            self._once("factors", untrained.text)
        losses = {name: reading["loss"] for name, reading in trained.items()}
        limit = rule.describe_limit(losses, forgets)
        if limit is not None:
            self._once("limit", f"{type(rule).__name__}: {limit}")

    def of_stuck_terms(self, stuck: Iterable[StuckTerm], epoch: int) -> None:
        """Warns of each term that does not train."""
        for term in stuck:
            self._once(f"stuck {term.name} {term.layer}", term.in_epoch(epoch).text)

    def of_epochs(self, readings: TermReadings, end: EpochEnd) -> None:
        """Warns of what the epochs so far show: losses that never fall, weights that run away."""
        self._epochs.add(end.epoch, end.step, end.batches, readings)
        for finding in self._epochs.faults():
            if not any(x.startswith(f"stuck {finding.term} ") for x in self._warned):
                self._once(f"{finding.kind} {finding.term}", finding.text)

    def of_names(self, readings: Readings, total: float) -> None:
        """Warns of names of copies that belong to nothing in the model, which has a total loss."""
        wiring = self._terms.wiring
        weighted = weighted_terms(readings)
        is_all = bool(weighted) and is_rounding(rest(total, weighted), total, weighted)
        has_other_losses = wiring.may_have_other_losses and not is_all
        for layer, unknown, unread, unnamed in wiring.misnamed(has_other_losses):
            given = f"The layer {layer.name!r} has the `terms` {list(layer.terms)}"
            expected = f"the terms and outputs of the model, {list(wiring.losses_of)}"
            if unknown:
                self._once(
                    f"names {layer.name}",
                    f"{given}, of which {unknown} are not among {expected}. The terms {unnamed} "
                    "have no copy of their name. Name each copy by the term or the output whose "
                    "head reads it.",
                )
            if unread:
                self._once(
                    f"unread {layer.name}",
                    f"{given}, of which nothing reads {unread}, which are not among {expected}. "
                    "Leave them out, or let the head of the term read its copy, by its name.",
                )

    def of_monitors(self, callbacks: Iterable[Any], logs: Mapping[str, Any]) -> None:
        """Warns of callbacks that compare a total from different weights."""
        if self._weights() == self._weights_at_begin:
            return
        for callback in callbacks:
            compares = isinstance(callback, _COMPARING)
            compares &= getattr(callback, "save_best_only", True)
            monitor = getattr(callback, "monitor", None)
            if compares and monitor in ("loss", "val_loss") and monitor in logs:
                name = type(callback).__name__
                self._once(
                    f"monitor {name}",
                    f"{name} monitors {monitor!r} while the weights of the terms move: it compares "
                    "different sums. Monitor 'val_joint_loss' (or 'joint_loss') with "
                    "`mode='min'`, which `JointLossCallback(validation_weights=...)` logs at fixed "
                    "weights.",
                )


def forgets_large_gradients(optimizer: keras.optimizers.Optimizer) -> bool:
    """Returns whether an optimizer clips gradients, skips steps with large ones, or keeps none."""
    clips = (
        getattr(optimizer, name, None) for name in ("clipnorm", "global_clipnorm", "clipvalue")
    )
    is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    is_plain = isinstance(optimizer, keras.optimizers.SGD) and not optimizer.momentum
    return is_scaled or is_plain or any(clip is not None for clip in clips)


def forget_unknown(callbacks: Iterable[Any], names: Container[str]) -> None:
    """Lets callbacks that monitor one of the names compare with the first value that is known.

    The values with these names were NaN in the last epoch.
    """
    for callback in callbacks:
        if isinstance(callback, _COMPARING) and callback.monitor in names:
            forget_best(callback)
