"""Finds the terms that do not train although they should, as measured over an epoch."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import keras

from keras_jointloss._core.math import to_numpy
from keras_jointloss.callbacks.joint._term_readings import Readings
from keras_jointloss.joint.model_terms import ModelTerms
from keras_jointloss.tensorboard.judgement.contributions import Part, hardly_trained
from keras_jointloss.tensorboard.judgement.finding import Finding
from keras_jointloss.tensorboard.judgement.standstill import constant_loss, no_gradient
from keras_jointloss.terms.clock import learning_rate, optimizer_updates
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting import Weighting

#: A weighted loss whose gradient may be too small to measure: single precision holds no square of a
#: number below 1e-19.
_UNMEASURABLE = 1e-15


class StuckTerm(NamedTuple):
    """A term that does not train."""

    name: str  # The name of the term, or of the copy that its head should read
    loss: float  # Its mean loss
    #: The layer at which its gradient was 0 in every step, although its loss changed. `None` if its
    #: loss was exactly the same in every step.
    layer: str | None = None

    def in_epoch(self, epoch: int) -> Finding:
        """Returns the finding of an epoch, counted from 0."""
        when, since = f"epoch {epoch}", epoch + 1
        if self.layer is None:
            return constant_loss(self.name, self.loss, when, since, is_of_steps=True)
        return no_gradient(self.name, self.layer, when, since)


def stuck_terms(
    losses: Mapping[str, float],
    constant: Collection[str],
    without_gradient: Iterable[tuple[str, str]],
    losses_of: Mapping[str, Collection[str]],
) -> list[StuckTerm]:
    """Returns the terms that do not train, of those that should, whose mean losses are given.

    The loss of the `constant` ones was exactly the same in every step. The copies
    `without_gradient`, by layer and name, had a gradient of 0 in every step; `losses_of` has the
    terms whose gradients add up in a copy, by its name.
    """
    finite = {name: loss for name, loss in losses.items() if math.isfinite(loss)}
    found = [StuckTerm(name, loss) for name, loss in finite.items() if name in constant]
    for layer, name in without_gradient:
        # A loss that has reached 0 has no gradient, nor does one that is constant.
        own = [finite[x] for x in losses_of.get(name, ()) if x in finite and x not in constant]
        if any(own):
            found.append(StuckTerm(name, sum(own), layer))
    return found


class TermProgress:
    """Measures which terms of a model train in an epoch."""

    def __init__(self, model: keras.Model, terms: ModelTerms):
        self.model = model
        self._terms = terms
        # How often the optimizer had updated the model before the training and before the epoch.
        self._updates_before: int | None = None
        self._updates_at_begin = 0
        self._weighted: set[str] = set()
        self._constant: set[str] = set()
        self._is_interrupted = False
        #: The terms of which any item counted in the epoch.
        self.counted: set[str] = set()

    def start_epoch(self) -> None:
        """Starts to measure, once the weights are those of the first step."""
        self._updates_at_begin = optimizer_updates(self.model)
        if self._updates_before is None:
            self._updates_before = self._updates_at_begin
        self._weighted, self._is_interrupted = self._names_with_weight(), False

    def resume(self) -> None:
        """Measures the rest of an epoch, after an evaluation in the middle of it."""
        self._is_interrupted = True
        for term in self._terms.values():
            term.recorded.reset_comparison()

    def _names_with_weight(self) -> set[str]:
        return {name for name, term in self._terms.items() if float(term)}

    def end(self) -> None:
        """Ends the measurement at the end of the epoch or before an evaluation, which resets it."""
        found = {name: term.recorded for name, term in self._terms.items()}
        self.counted = {name for name, x in found.items() if x.has_counted}
        still = () if self._is_interrupted else found.items()
        self._constant = {name for name, x in still if x.stands_still}

    def stuck(
        self,
        readings: Readings,
        logs: Mapping[str, Any],
        without_gradient: Iterable[tuple[str, str]],
    ) -> list[StuckTerm]:
        """Returns the terms that did not train in the epoch that has ended.

        None after an epoch that ends with a learning rate of 0. The logs have the losses that are
        no terms. For `without_gradient` see `stuck_terms`.
        """
        if learning_rate(self.model) == 0:
            return []
        updates = optimizer_updates(self.model)
        # No step has seen the last update: if it is the only one, any loss may stand still.
        unjudged = self._constant if updates - self._updates_at_begin < 2 else set()
        # Before the first update there may be no gradient, as below a head that starts with zeros.
        copies = list(without_gradient) if updates - (self._updates_before or 0) > 1 else []
        weighted = (self._weighted & self._names_with_weight()) - unjudged
        losses = {
            name: reading["loss"]
            for name, reading in readings.items()
            if "loss" in reading and name in weighted and not self._terms[name].may_be_constant
        }
        tiny = {name for name, x in readings.items() if abs(x.get("weighted", 1.0)) < _UNMEASURABLE}
        losses_of = {
            name: [x for x in found if x not in tiny]
            for name, found in self._terms.wiring.losses_of.items()
        }
        plain = {x for _, name in copies for x in losses_of.get(name, ()) if x not in self._terms}
        losses |= self._plain_losses(plain, logs) if plain else {}
        return stuck_terms(losses, self._constant, copies, losses_of)

    def _plain_losses(self, names: Iterable[str], logs: Mapping[str, Any]) -> dict[str, float]:
        """Returns the losses of outputs with a weight that are compiled without `joint_loss`."""
        wiring = self._terms.wiring
        only = len(wiring.outputs) == 1
        found = {name: logs.get("loss" if only else f"{name}_loss") for name in names}
        return {
            name: float(loss)
            for name, loss in found.items()
            if loss is not None and wiring.has_weight(name)
        }


# Under a weighting.


def untrained_term(
    rule: Weighting,
    terms: Mapping[str, TermWeight],
    readings: Readings,
    lengths: Mapping[str, float],
) -> Finding | None:
    """Returns a term that contributes practically nothing; `None` if there is none.

    The readings are those of the epoch in training, of the terms that have a finite loss, and
    `lengths` the mean lengths of the gradients of the weighted terms; empty if no layer reports
    those of all terms.
    """
    parts = sorted(_parts(rule, terms, readings, lengths), key=lambda part: part.contribution)
    if not parts or rule.step <= rule.warmup_steps:
        return None
    *others, most = parts
    for part in others:
        remedy = _remedy(rule, part, most) if most.exceeds(part, rule.widest_ratio) else None
        if remedy is not None:
            name, epoch = type(rule).__name__, int(to_numpy(rule.epoch)) - 1
            return hardly_trained(name, part, most, bool(lengths), remedy, max(0, epoch))
    return None


def _parts(rule, terms, readings, lengths) -> Iterator[Part]:
    for name, factor in rule.factors.items():
        if name not in readings or factor < rule.intended_below:
            continue
        loss, weighted = (abs(readings[name][key]) for key in ("loss", "weighted"))
        given = terms[name].next_number()
        # The mean over the epoch, but for a user weight that has just left 0.
        of_rule = max(weighted / given if given else 0.0, factor * loss)
        part = Part(name, loss, factor, of_rule, lengths.get(name, weighted))
        if all(map(math.isfinite, part[1:])):
            yield part


def _remedy(rule, part, most) -> str | None:
    """Returns what to do about the cause, the weight or the loss itself."""
    if most.factor > rule.widest_ratio * part.factor and rule.small_weight_remedy is not None:
        return rule.small_weight_remedy
    # Later, a loss may be small because the term has been learned.
    is_small = part.loss < most.loss and int(to_numpy(rule.epoch)) <= 1
    return rule.small_loss_remedy if is_small else None
