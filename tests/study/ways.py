"""The ways to weigh the terms that the study compares, and the trials that each one gets.

Every way gets the same search for the learning rate: `RATES` with the first seed, of which the best
on validation data trains the other seeds. Tuned constants first get a search of their own at the
middle rate, `DRAWS` trials of which the first are equal weights.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

import keras_jointloss as kj

#: Factors of the set-up's learning rate, the middle one first.
RATES = (1.0, 1 / 3, 3.0)
DRAWS = 8
#: The weights of the trials lie between equal ones times 10 to the minus and to the plus of this.
DECADES = 3.0


class Way(NamedTuple):
    """A way to weigh the terms; only what it changes is given.

    Attributes:
        group: The kind of way.
        weighting, aggregator: Make a rule or an aggregator from the names of the terms.
        proposal: What a probe is asked for.
        draws: How many weights are tried.
    """

    group: str
    weighting: Callable | None = None
    aggregator: Callable | None = None
    proposal: str | None = None
    draws: int = 1


class Trial(NamedTuple):
    """One training: its place in the study, and what is tried.

    Attributes:
        setup, optimizer, way: Names.
        seed: Of the parameters, the batches and the split of the data.
        rate: The factor of the learning rate.
        draw: Which weights, where several are tried.
        epochs: How long it trains.
    """

    setup: str
    optimizer: str
    way: str
    seed: int
    rate: float
    draw: int
    epochs: int


def _rules():
    """Returns a way for each rule of the package, with its default settings."""
    made = {"Shares": lambda terms: kj.weighting.Shares(dict.fromkeys(terms, 1.0))}
    # A `Constraint` needs a bound that only the user of a problem knows.
    names = sorted({*kj.weighting.__all__} - {"Constraint", "Weighting", "get"}, key=str.lower)
    rules = {name: made.get(name) or _without_terms(kj.weighting, name) for name in names}
    rules["Uncertainty, softmax"] = lambda terms: kj.weighting.Uncertainty(softmax=True)
    return {name: Way("rule", weighting=rule) for name, rule in rules.items()}


def _aggregators():
    """Returns a way for each aggregator of the package, with its default settings."""
    made = {"PCD": lambda terms: kj.aggregators.PCD(main=next(iter(terms)))}
    # A `Sum` is no other way than equal constants.
    other = {"Aggregator", "PreferenceAggregator", "Sum", "get"}
    names = sorted({*kj.aggregators.__all__} - other, key=str.lower)
    return {
        # `Shares` is the name of a rule, too.
        f"{name} of gradients" if name in kj.weighting.__all__ else name: Way(
            "aggregator", aggregator=made.get(name) or _without_terms(kj.aggregators, name)
        )
        for name in names
    }


def _without_terms(family, name):
    return lambda terms: getattr(family, name)()


WAYS = {
    "equal": Way("constants"),
    "tuned": Way("constants", draws=DRAWS),
    "probe, gradient": Way("probe", proposal="gradient"),
    "probe, loss": Way("probe", proposal="loss"),
    **_rules(),
    **_aggregators(),
}


def drawn_weights(equal, draw):
    """Returns the constants of a trial, by term: equal ones times factors with a mean of 1.

    The factors' logarithms are a quasi-random sequence of low discrepancy, so that 8 trials cover
    the cube of `2 * DECADES` evenly (Roberts, 2018, The Unreasonable Effectiveness of Quasirandom
    Sequences). The first trial has equal constants.
    """
    dim = len(equal) - 1
    golden = 2.0
    for _ in range(64):  # The root of golden^(dim + 1) = golden + 1.
        golden = (1 + golden) ** (1 / (dim + 1))
    places = (0.5 + draw * golden ** -np.arange(1.0, dim + 1)) % 1
    factors = 10 ** np.array([0.0, *(2 * DECADES * (places - 0.5))])
    factors *= len(factors) / factors.sum()
    return {
        term: float(x * factor) for (term, x), factor in zip(equal.items(), factors, strict=True)
    }


def best(trials, results):
    """Returns the trial with the best score on validation data; the first if none has one."""
    scores = [results[trial]["score"] for trial in trials]
    return trials[int(np.argmax([-np.inf if score is None else score for score in scores]))]


def stages(first, seeds, results, rates=RATES):
    """Yields the lists of trials of a way, each as soon as the results say which they are.

    Args:
        first: The first trial of the way.
        seeds: How many seeds there are.
        results: The results so far, by trial.
        rates: The factors of the learning rate.
    """
    draws = [first._replace(draw=draw) for draw in range(WAYS[first.way].draws)]
    yield draws
    if not all(trial in results for trial in draws):
        return
    with_rates = [best(draws, results)._replace(rate=rate) for rate in rates]
    yield with_rates[1:]
    if not all(trial in results for trial in with_rates):
        return
    chosen = best(with_rates, results)
    yield [chosen._replace(seed=seed) for seed in range(1, seeds)]


def count(way, seeds, rates=RATES):
    """Returns how many trials a way has."""
    return WAYS[way].draws + len(rates) - 1 + seeds - 1


def chosen(first, results, rates=RATES):
    """Returns the trials that the row of a way shows, one for each seed that has run."""
    draws_and_rates = list(stages(first, 1, results, rates))[:2]
    tried = [trial for stage in draws_and_rates for trial in stage if trial in results]
    if not tried:
        return []
    top = best(tried, results)
    return sorted(trial for trial in results if trial._replace(seed=0) == top)
