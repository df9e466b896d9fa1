"""What is wrong with the terms of a model, as far as a probe shows it."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from keras_jointloss.probing.facts import Facts
from keras_jointloss.probing.statistics import State

#: The share of the summed gradient below which a term hardly takes part.
SMALL_SHARE = 0.01
#: The number of standard errors below which gradients of batches do not agree: by chance one in 40
#: does that is no noise at all.
AGREEMENT = 2.0
#: With fewer batches, not even equal gradients would agree by so much and to spare.
_LEAST_BATCHES = 8
#: The mean cosine below which a balancer changes anything that matters.
MATERIAL_COSINE = -0.1


class Fault(NamedTuple):
    """Something that is wrong with a term.

    Attributes:
        term: The name of the term; `None` for a fault of the model.
        kind: What is wrong, one of `KINDS`.
        text: A sentence about it.
    """

    term: str | None
    kind: str
    text: str


#: The kinds of faults.
KINDS = (
    "not_finite",
    "constant",
    "unreached",
    "zero_gradient",
    "detached",
    "shares_nothing",
    "same_output",
    "reads_other_output",
    "unread_input",
    "untrained_layers",
    "noise",
    "below_one_percent",
    "balancer_without_conflict",
)
#: Those of a term that no weight mends.
BROKEN = frozenset(KINDS[:6])


def find_faults(state: State, untrained: State, facts: Facts) -> list[Fault]:
    """Returns the faults of a model, those that have to be mended first at the beginning.

    Args:
        state: The state to judge.
        untrained: The state before the warm-up, which may be the same.
        facts: What the model says.
    """
    faults = [x for term in state.terms if (x := _of_gradient(term, state, untrained, facts))]
    without = {x.term for x in faults}
    faults += _of_sharing(state, facts, without)
    faults += _of_wiring(state, facts)
    broken = {x.term for x in faults if x.kind in BROKEN}
    sound = [x for x in facts.used if x not in broken]
    faults += [x for term in state.terms if term not in without for x in _of_noise(term, state)]
    faults += [x for term in sound for x in _of_share(term, state, facts)]
    faults += _of_balancers(state, facts)
    return faults


def _of_gradient(term: str, state: State, untrained: State, facts: Facts) -> Fault | None:
    count = max(state.nonfinite[term], untrained.nonfinite[term])
    if count:
        what = f"Loss or gradient of {term!r} is not finite in {count} of {state.batches} batches."
        return Fault(term, "not_finite", what)
    if state.norm[term] > 0:
        return None
    is_constant = state.is_constant[term] and untrained.loss[term] == state.loss[term]
    if is_constant and state.batches > 1 and term not in facts.may_be_constant:
        what = f"The loss of {term!r} is {state.loss[term]:.4g} in each batch, without a gradient."
        return Fault(term, "constant", what)
    if not state.layers[term]:
        what = f"{term!r} reaches no parameter: nothing that it depends on is trained."
        return Fault(term, "unreached", what)
    if term in facts.may_be_constant:
        return None
    reached = ", ".join(state.layers[term])
    return Fault(term, "zero_gradient", f"The gradient of {term!r} is 0 in all of {reached}.")


def _of_sharing(state: State, facts: Facts, without: set[str | None]) -> Iterator[Fault]:
    others = [x for x in state.terms if x not in without]
    alone = [x for x in others if not any(y in others for y in state.shared_layers[x])]
    if len(others) < 2:
        return
    reached = {x: {layer for y in others if y != x for layer in state.layers[y]} for x in alone}
    detached = {
        x: sorted((facts.upstream.get(x, frozenset()) & reached[x]) - {*state.layers[x]})
        for x in alone
    }
    for term in alone:
        if detached[term]:
            what = (
                f"{term!r} depends on {', '.join(detached[term])}, but its gradient does not reach "
                "them, while that of others does: something stops it."
            )
            yield Fault(term, "detached", what)
        elif not any(detached.values()):
            what = (
                f"{term!r} shares no parameter with another term: its weight only changes the "
                f"steps of {', '.join(state.layers[term])}."
            )
            yield Fault(term, "shares_nothing", what)


def _of_wiring(state: State, facts: Facts) -> Iterator[Fault]:
    same = state.same_outputs if facts.same_outputs is None else facts.same_outputs
    for a, b in same:
        terms = [*facts.of_outputs.get(a, ()), *facts.of_outputs.get(b, ())]
        what = (
            f"The outputs {a!r} and {b!r} are the same tensor. For two losses of one output, give "
            "`joint_loss` a dict of them for it."
        )
        if len(terms) > 1:
            yield Fault(terms[-1], "same_output", what)
    for term, own in facts.heads.items():
        for other, head in facts.heads.items():
            if own != head and head in state.layers[term]:
                what = (
                    f"{term!r} trains {head}, which computes the output of {other!r}: its head "
                    "reads that output. This is right only if it is meant to build on it."
                )
                yield Fault(term, "reads_other_output", what)
    for name in facts.unread:
        yield Fault(None, "unread_input", f"No output depends on the input {name!r}.")
    reached = {layer for layers in state.layers.values() for layer in layers}
    idle = [x for x in facts.layers if x not in reached]
    if idle and not facts.has_other_losses:
        what = f"No term reaches {', '.join(idle)}: these layers are not trained."
        yield Fault(None, "untrained_layers", what)


def _of_noise(term: str, state: State) -> Iterator[Fault]:
    signal = state.signal[term]
    if state.batches >= _LEAST_BATCHES and signal < AGREEMENT:
        what = (
            f"The gradient of {term!r} is noise at this batch size: it differs from batch to batch "
            f"by {state.noise[term]:.2g} times its mean, which is {signal:.1f} standard errors "
            f"from 0 over {state.batches} batches."
        )
        yield Fault(term, "noise", what)


def _of_share(term: str, state: State, facts: Facts) -> Iterator[Fault]:
    share = state.share[term]
    if len(facts.used) > 1 and facts.weights[term] > 0 and share < SMALL_SHARE:
        what = (
            f"With the weight {facts.weights[term]:.4g}, {term!r} has {share:.2g} of the summed "
            f"gradient, less than {SMALL_SHARE:.0%}."
        )
        yield Fault(term, "below_one_percent", what)


def _of_balancers(state: State, facts: Facts) -> Iterator[Fault]:
    for name, terms, aggregator in facts.balancers:
        pairs = [x for x in state.cosine if x[0] in terms and x[1] in terms]
        if pairs and not any(x in state.conflicts for x in pairs):
            least = min(pairs, key=lambda x: _or_infinity(state.cosine[x]))
            what = (
                f"The layer {name!r} combines gradients by {aggregator}, but none conflict: the "
                f"smallest mean cosine is {state.cosine[least]:.2f} ± "
                f"{state.cosine_error[least]:.2f}, of {least[0]!r} and {least[1]!r}."
            )
            yield Fault(None, "balancer_without_conflict", what)


def _or_infinity(x: float) -> float:
    return math.inf if math.isnan(x) else x
