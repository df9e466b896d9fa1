"""Finds a term that practically nothing of the training reaches, under a weighting."""

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from keras_jointloss._core.math import to_numpy
from keras_jointloss.callbacks.joint._term_readings import Readings
from keras_jointloss.terms.weight import TermWeight
from keras_jointloss.weighting import Weighting


class Part(NamedTuple):
    """What a term contributed to an epoch of training, as absolute values of means.

    Attributes:
        name: The name of the term.
        loss: Its loss.
        factor: The weight that the rule gives it at the end of the epoch.
        of_rule: Its loss times the weight that the rule gives it.
        contribution: The length of its weighted gradient where a layer reports it, or else its
            weighted loss: with the weight that the user gives it, too.
    """

    name: str
    loss: float
    factor: float
    of_rule: float
    contribution: float

    def exceeds(self, other: "Part", ratio: float) -> bool:
        """Returns whether a term contributes more than `ratio` times as much as another.

        With the weights of the rule alone as well, since the user may choose other ones.
        """
        is_contribution = self.contribution > ratio * other.contribution
        return is_contribution and self.of_rule > ratio * other.of_rule


def untrained_term(
    rule: Weighting,
    terms: Mapping[str, TermWeight],
    readings: Readings,
    lengths: Mapping[str, float],
) -> str | None:
    """Returns a sentence on a term that contributes practically nothing; `None` if there is none.

    Args:
        rule: The rule of the model.
        terms: The terms by name.
        readings: The readings of the epoch in training, of the terms that have a finite loss.
        lengths: The mean lengths of the gradients of the weighted terms; empty if no layer reports
            those of all terms.
    """
    parts = sorted(_parts(rule, terms, readings, lengths), key=lambda part: part.contribution)
    if not parts or rule.step <= rule.warmup_steps:
        return None
    *others, most = parts
    for part in others:
        remedy = _remedy(rule, part, most) if most.exceeds(part, rule.widest_ratio) else None
        if remedy is not None:
            share = part.contribution / most.contribution
            what = "the length of the gradient" if lengths else "the loss"
            return (
                f"{type(rule).__name__} weights the term {most.name!r} with {most.factor:.3g} at a "
                f"loss of {most.loss:.3g} and the term {part.name!r} with {part.factor:.3g} at a "
                f"loss of {part.loss:.3g}: {part.name!r} is hardly trained any more. It "
                f"contributes {share:.1g} times as much to {what} as {most.name!r}. {remedy}"
            )
    return None


def _parts(rule, terms, readings, lengths) -> Iterator[Part]:
    for name, factor in rule.factors.items():
        if name not in readings or factor < rule.intended_below:
            continue
        loss, weighted = (abs(readings[name][key]) for key in ("loss", "weighted"))
        given = float(to_numpy(terms[name].next_value()))
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
