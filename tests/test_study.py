"""What compares weights, rules and aggregators on real data: `make study`, and its page."""

import json
from concurrent.futures import Future

import numpy as np
import pytest

import keras_jointloss as kj
from tests.study import run, tables, training
from tests.study.base import Setup, explained, ranking
from tests.study.setups import SETUPS
from tests.study.ways import DRAWS, RATES, WAYS, Trial, chosen, count, drawn_weights, stages

pytestmark = pytest.mark.backend("jax")

FIRST = Trial("digits", "adam", "equal", 0, 1.0, 0, SETUPS["digits"].epochs)
TUNED = FIRST._replace(way="tuned")


class Now:
    """An executor in the process of the test."""

    def __init__(self):
        self.calls = []

    def submit(self, function, first, *arguments):
        self.calls.append(first)
        future = Future()
        future.set_result(function(first, *arguments))
        return future


def results_of(first, scores, seeds=3):
    """Returns the results of all trials of a way; those of `scores` have these scores, by trial."""
    results = {}
    for stage in stages(first, seeds, results):
        for trial in stage:
            score = scores(trial)
            line = {"score": score, "scores": {"digit": score, "right half": score}}
            results[trial] = {**line, "epoch": 32, "seconds": 2.0}
    return results


def test_every_rule_and_aggregator_takes_part():
    names = {*kj.weighting.__all__} - {"Weighting", "Constraint", "get"}
    assert names <= WAYS.keys()
    assert {*kj.aggregators.__all__} - {"Aggregator", "PreferenceAggregator", "Sum", "get"} <= {
        name.removesuffix(" of gradients") for name in WAYS
    }
    for way in WAYS.values():
        for make, base in (
            (way.weighting, kj.weighting.Weighting),
            (way.aggregator, kj.aggregators.Aggregator),
        ):
            assert make is None or isinstance(make(("a", "b")), base)


@pytest.mark.parametrize("terms", ["ab", "abc"])
def test_constants_of_the_trials_begin_equal_and_cover_the_ratios(terms):
    equal = dict.fromkeys(terms, 2.0)
    drawn = [drawn_weights(equal, draw) for draw in range(DRAWS)]
    assert drawn[0] == pytest.approx(equal)
    for weights in drawn:
        assert np.mean([*weights.values()]) == pytest.approx(2)
    ratios = np.log10([[weights[x] / weights["a"] for x in terms[1:]] for weights in drawn])
    assert np.abs(ratios).max() <= 3
    gaps = np.diff(np.sort(ratios, axis=0), axis=0)
    assert gaps.max() < 2 * 6 / DRAWS  # Of the range, 6 decades.


def test_best_weights_get_the_search_for_the_rate_and_the_best_rate_the_seeds():
    # The third weights are best, and with them the third rate.
    results = results_of(TUNED, lambda trial: (trial.draw == 2) + (trial.rate == RATES[2]) + 0.5)
    assert len(results) == count("tuned", 3) == DRAWS + 2 + 2
    assert {trial.draw for trial in results if trial.rate != 1 or trial.seed} == {2}
    assert {trial.rate for trial in results if trial.seed} == {RATES[2]}
    best = TUNED._replace(draw=2, rate=RATES[2])
    assert chosen(TUNED, results) == [best._replace(seed=seed) for seed in range(3)]


def test_failed_trials_are_never_the_best():
    results = results_of(FIRST, lambda trial: None if trial.rate == 1 else trial.rate)
    assert chosen(FIRST, results)[0].rate == RATES[2]


def test_constants_run_first_and_then_first_seeds_of_all_ways():
    firsts = run.firsts(["digits"], None, ["FAMO", "tuned"])
    results = {}
    order = []
    while found := next(run.jobs_of(firsts, 3, RATES, results), None):
        first, seeds, own = found
        order.append((first.way, first.optimizer, seeds))
        results |= results_of(first, lambda trial: 0.5, seeds)
        assert own.items() <= results.items()
    assert order == [
        (way, optimizer, seeds)
        for way in ("tuned", "FAMO")
        for seeds in (1, 3)
        for optimizer in ("adam", "momentum")
    ]


def test_study_goes_on_where_it_was_and_errors_are_results(tmp_path, monkeypatch):
    path, pool = tmp_path / "folder" / "results.jsonl", Now()
    firsts = run.firsts(["digits"], ["adam"], ["equal", "Uncertainty"], 1 / 24)
    run.run(firsts, 1, RATES[:1], path, {}, pool)
    assert pool.calls == firsts
    results = run.read(path)
    assert [*results] == firsts
    for line in results.values():
        assert 0 < line["scores"]["digit"] < 1
        assert line["seconds"] > 0
        assert line["weights"].keys() == SETUPS["digits"].weights.keys()

    # The compiled model is used again, and is as a new one.
    training.train(firsts[1]._replace(seed=1, rate=3.0))
    again = training.train(firsts[1])
    assert again | {"seconds": 0} == results[firsts[1]] | {"seconds": 0}

    path.write_text(path.read_text()[:-20])  # As if it had been stopped while it wrote.

    def fail(*arguments):
        raise ValueError("no such digit\nand more")

    monkeypatch.setattr(Setup, "optimizer", fail)
    run.run(firsts, 1, RATES[:1], path, run.read(path), pool)
    assert pool.calls == [*firsts, firsts[-1]]
    failed = json.loads(path.read_text().splitlines()[-1])
    assert failed["error"] == "ValueError: no such digit"
    assert failed["score"] is None


def test_page_says_what_is_within_the_noise_and_what_has_not_run(tmp_path):
    results = results_of(TUNED, lambda trial: 0.8 + 0.01 * trial.seed)
    results |= results_of(FIRST, lambda trial: 0.7 + 0.01 * trial.seed)
    results |= results_of(FIRST._replace(way="FAMO"), lambda trial: 0.805 + 0.01 * trial.seed)
    results |= results_of(FIRST._replace(way="MGDA"), lambda trial: 0.9, seeds=1)
    lines = tables.page(results, tmp_path).splitlines()
    ways = len(WAYS)
    assert f"| digits | `adam` | 3 of {ways} | 1 | 25 of {12 + 5 * (ways - 1)} |" in lines
    assert "| `FAMO` | 0 | 1 | 0 | 1 | 1 |" in lines
    assert "| equal | 0 | 0 | 1 | 1 | 1 |" in lines
    assert "| `MGDA` | 1 | 0 | 0 | 1 | 0 |" in lines
    proposals = "| digits | `adam` | 0.810 ± 0.010 | -10.0 |  |  |"
    assert f"{proposals} +10.0 `MGDA`, 2 tried, seeds: 1 |" in lines
    scores = "0.815 ± 0.010 | " * 3
    assert f"| `FAMO` | {scores}within one deviation | 1 | 32 of 48 | 1.00 | 5 of 5 |" in lines
    assert "| `MGDA` | 0.900 | 0.900 | 0.900 | better | 1 | 32 of 48 | 1.00 | 3 of 5 |" in lines
    assert "## Poisson" not in lines
    assert (tmp_path / "digits.png").stat().st_size > 1000


def test_page_is_that_of_the_results(tmp_path):
    assert tables.page(run.read(run.KEPT), tmp_path) == tables.PAGE.read_text()


def test_scores():
    target = np.array([0.0, 1.0, 2.0, 5.0])
    assert explained(target, target) == 1
    assert explained(np.full(4, 2.0), target) == pytest.approx(0)
    positive = np.array([True, False, True, False])
    assert ranking(np.array([3.0, 1.0, 2.0, 2.0]), positive) == (1 + 1 + 1 + 0.5) / 4
