"""What to do about the weights of a model, from what a probe has measured."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from keras_jointloss.probing.facts import Facts
from keras_jointloss.probing.faults import AGREEMENT, BROKEN, MATERIAL_COSINE, Fault
from keras_jointloss.probing.statistics import State

#: The ratio of the lengths of weighted gradients up to which equal weights are good enough.
_SIMILAR = 3.0
#: By how much the ratio of two lengths has to change in the warm-up for a rule to be worth it.
_DRIFT = 3.0


class Advice(NamedTuple):
    """A piece of advice.

    Attributes:
        text: What to do, and the numbers it rests on.
        guide: The guide that says more, by the name of its file.
    """

    text: str
    guide: str


def advise(
    state: State,
    untrained: State,
    facts: Facts,
    faults: list[Fault],
    proposed: Callable[[list[str]], Mapping[str, float]],
) -> list[Advice]:
    """Returns the advice, what comes first at the beginning.

    Args:
        state: The state to judge.
        untrained: The state before the warm-up, which may be the same.
        facts: What the model says.
        faults: The faults that were found.
        proposed: Returns the weights with which the gradients of some terms are equally long.
    """
    found = []
    if mend := [x for x in faults if x.kind not in ("noise", "below_one_percent", _NO_CONFLICT)]:
        what = " ".join(x.text for x in mend)
        found.append(Advice(f"Mend this first, since no weight does. {what}", "pitfalls"))
    broken = {x.term for x in faults if x.kind in BROKEN}
    noisy = {str(x.term): untrained.signal[str(x.term)] for x in faults if x.kind == "noise"}
    found += [_of_noise(term, signal, state) for term, signal in noisy.items()]
    hopeless = {term for term, signal in noisy.items() if not signal >= AGREEMENT}
    sound = [x for x in facts.used if x not in broken and x not in hopeless]
    if len(sound) > 1:
        found.append(_of_lengths(sound, state, untrained, facts, proposed))
    # After lengths, which mattered more in the study of the documentation.
    return [*found, *_of_conflicts(state, facts, faults)]


_NO_CONFLICT = "balancer_without_conflict"


def _of_noise(term: str, before: float, state: State) -> Advice:
    deviation = f"deviates from its mean by {state.noise[term]:.2g} times the mean"
    if before >= AGREEMENT:
        text = (
            f"After the warm-up the gradient of {term!r} {deviation}; before, batches agreed. "
            "Either it has learned what batches of this size show, or the rest of its targets is "
            "noise: its metric on validation data tells which, or a probe with larger batches or "
            "more of them."
        )
    else:
        text = (
            f"No weight helps {term!r}: its gradient {deviation}. Take larger batches or more "
            "data, or leave the term out."
        )
    return Advice(text, "weighting")


def _of_conflicts(state: State, facts: Facts, faults: list[Fault]) -> list[Advice]:
    found = []
    needless = [x for x in faults if x.kind == _NO_CONFLICT]
    found += [Advice(f"{x.text} Without it the model is simpler.", "conflicts") for x in needless]
    for a, b in state.conflicts:
        cosine, share = state.cosine[a, b], state.conflict[a, b]
        if cosine > MATERIAL_COSINE:
            continue
        numbers = (
            f"the mean cosine of their gradients is {cosine:.2f} ± {state.cosine_error[a, b]:.2f}, "
            f"and negative in {share:.0%} of the batches"
        )
        names = [x.name for x in facts.balancers if a in x.terms and b in x.terms]
        if names:
            text = f"Keep the layer {names[0]!r}: {a!r} and {b!r} conflict; {numbers}."
        else:
            text = (
                f"{a!r} and {b!r} conflict: {numbers}. Beyond constants that fit, try a "
                "`GradientBalancer` or `SharedTrunk` with an aggregator that makes up for lengths, "
                "too, such as `FairGrad`, or more parameters of their own for each."
            )
        found.append(Advice(text, "conflicts"))
    return found


def _of_lengths(
    sound: list[str],
    state: State,
    untrained: State,
    facts: Facts,
    proposed: Callable[[list[str]], Mapping[str, float]],
) -> Advice:
    lengths = {x: facts.weights[x] * state.lengths()[x] for x in sound}
    lengths = {x: y for x, y in lengths.items() if y > 0}
    if len(lengths) < 2:
        off = [x for x in sound if x not in lengths]
        return Advice(f"The weight of {', '.join(map(repr, off))} is still 0.", "weighting")
    longest, shortest = max(lengths, key=lengths.__getitem__), min(lengths, key=lengths.__getitem__)
    ratio = lengths[longest] / lengths[shortest]
    numbers = (
        f"the weighted gradient of {longest!r} is {ratio:.3g} times as long as that of {shortest!r}"
    )
    drift = _drift(list(lengths), state, untrained)
    constants = ", ".join(f"{x!r}: {y:.3g}" for x, y in proposed(sound).items())
    if ratio <= _SIMILAR:
        return Advice(f"Keep the weights: {numbers} at most.", "weighting")
    if drift > _DRIFT:
        text = (
            f"Sizes drift: {numbers}, and ratios have changed by up to {drift:.2g} in the warm-up. "
            f"Begin with constants of equal lengths, weights={{{constants}}}, and compare them "
            "with what follows sizes: the aggregator `FairGrad` in a `GradientBalancer`, or a rule "
            "such as `IMTLL`."
        )
    else:
        text = f"Take constants: {numbers}. Equal lengths need weights={{{constants}}}."
    return Advice(text, "weighting")


def _drift(terms: list[str], state: State, untrained: State) -> float:
    """Returns by which factor the ratio of two lengths has changed most in the warm-up."""
    changes = [
        state.lengths()[x] / y if (y := untrained.lengths()[x]) > 0 else math.nan for x in terms
    ]
    changes = [x for x in changes if math.isfinite(x)]
    return max(changes) / min(changes) if changes and min(changes) > 0 else 1.0
