"""The rules that judge a training: each on one that has the fault, and on one that has not."""

from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest

from keras_jointloss.tensorboard.judgement.finding import GUIDES, Finding, Kind
from keras_jointloss.tensorboard.judgement.trends import scatter, smoothed, trend, turn
from tests.judged_logs import falling, flat, found, kinds, logs_of, turning

N = 20
A, B = falling(N, 0), falling(N, 1)
ROOT = Path(__file__).parents[1]


def test_every_kind_has_a_guide_that_exists():
    assert set(GUIDES) == set(get_args(Kind))
    for guide in GUIDES.values():
        assert (ROOT / "examples/guides" / f"{guide}.py").exists()


@pytest.mark.parametrize("noise", [1e-4, 0.003, 0.01, 0.05])
def test_healthy_trainings_have_no_finding_but_what_drives(noise):
    generator = np.random.default_rng(7)
    for seed in range(60):
        epochs = int(generator.integers(3, 60))
        rates = generator.uniform(0.5, 40, 3)
        train = {
            name: falling(epochs, 3 * seed + i, noise / 3, time=rate)
            for i, (name, rate) in enumerate(zip("abc", rates, strict=True))
        }
        held_out = {
            name: 1.2 * falling(epochs, 999 + 3 * seed + i, noise, time=rate)
            for i, (name, rate) in enumerate(zip("abc", rates, strict=True))
        }
        assert [x for x in found(logs_of(train, held_out)) if x.is_fault] == [], seed


def test_scatter_is_that_of_the_noise_whatever_the_slope():
    noise = np.random.default_rng(0).normal(size=2000)
    assert scatter(0.1 * noise + np.arange(2000)) == pytest.approx(0.1, rel=0.05)
    assert np.isnan(scatter(noise[:5]))


def test_trend_knows_what_it_cannot_know():
    assert trend(A).verdict == "falls"
    assert trend(A[::-1]).verdict == "rises"
    assert trend(flat(N)).verdict == "flat"
    assert trend(flat(N, noise=0.2)).verdict == "unknown"
    assert trend(A[:5]).verdict == "unknown"
    assert trend(np.zeros(6)).relative == 0.0


def test_turn_needs_three_worse_epochs_that_noise_does_not_explain():
    curve = turning(N, 6)
    assert turn(curve)[0] in (5, 6, 7, 8)
    assert turn(curve[:5]) is None
    assert turn(A) is None
    assert turn(np.append(A, [0.9, 0.9])) is None
    assert turn(flat(N, noise=0.1)) is None
    assert smoothed(np.array([2.0, 1.0])).tolist() == [2.0, 1.0]


def test_term_that_drives_is_named_with_its_share_and_since_when():
    # The first falls faster: the second drives from some epoch on.
    (finding,) = found(logs_of({"a": falling(N, size=9.0, time=1.0), "b": flat(N, level=1.0)}))[-1:]
    assert (finding.term, finding.kind, finding.is_fault) == ("b", "drives", False)
    assert finding.since == 4
    assert "before epoch 4 it was 'a'" in finding.sentence
    norms = {"gradients_a_norm": [1.0] * N, "gradients_b_norm": [0.2] * N}
    (finding,) = [x for x in found(logs_of({"a": A, "b": B}, **norms)) if x.kind == "drives"]
    assert "'a' is the longest, 5 times as long as that of 'b'" in finding.sentence
    assert found(logs_of({"a": A})) == []


def test_term_that_never_falls_beside_one_that_does_stands_still():
    logs = logs_of({"a": A, "b": flat(N)})
    assert kinds(logs) == [("b", "stands_still", 1)]
    assert "has not fallen since epoch 1" in found(logs)[0].sentence
    # In a training that goes on, it may have been learned before.
    resumed = SimpleNamespace(history=logs, epoch=range(9, 9 + N), params=None)
    (_, finding) = found(resumed)
    assert (finding.kind, finding.since, finding.is_fault) == ("stands_still", 10, False)
    # Not before six epochs, nor if the other one does not fall either, nor with too much scatter.
    assert kinds(logs_of({"a": A[:5], "b": flat(5)})) == []
    assert kinds(logs_of({"a": flat(N, 3), "b": flat(N)})) == []
    assert kinds(logs_of({"a": A, "b": flat(N, noise=0.1)})) == []
    # Nor if validation says otherwise, or the term has no weight yet.
    held_out = {"a": A, "b": B}
    assert kinds(logs_of({"a": A, "b": flat(N)}, held_out)) == []
    assert kinds(logs_of({"a": A, "b": flat(N)}, weights={"b": np.zeros(N)})) == []


def test_weight_that_is_still_small_is_not_judged():
    ramp = np.linspace(0.01, 1.0, N)
    late = np.where(np.arange(N) < 12, flat(N), 2.3 * np.exp(-(np.arange(N) - 12) / 9))
    assert kinds(logs_of({"a": A, "b": late}, weights={"b": ramp})) == []


def test_loss_that_fell_while_its_weight_was_small_has_fallen():
    early = np.append(falling(5, size=9.0, time=1.0), flat(15, level=0.3))
    weights = np.append(np.linspace(0.01, 0.04, 5), np.ones(15))
    found_ = found(logs_of({"a": falling(N, time=9.0), "b": early}, weights={"b": weights}))
    assert [x for x in found_ if x.is_fault] == []


def test_judgements_of_a_running_training_agree_that_it_is_healthy():
    for seed in range(8):
        noise = (1e-4, 0.003, 0.01, 0.03)[seed % 4]
        losses = {"a": falling(30, seed, noise), "b": falling(30, seed + 50, noise, time=20.0)}
        for epochs in range(6, 31):
            logs = logs_of({name: loss[:epochs] for name, loss in losses.items()})
            assert [x for x in found(logs) if x.is_fault] == [], (seed, epochs)


def test_loss_that_is_exactly_the_same_stands_still():
    still = np.append(B[:12], np.full(N - 12, 0.5))
    assert kinds(logs_of({"a": A, "b": still})) == [("b", "stands_still", 13)]
    assert kinds(logs_of({"a": A[:3], "b": np.full(3, 2.0)})) == [("b", "stands_still", 1)]
    assert kinds(logs_of({"a": A[:2], "b": np.full(2, 2.0)})) == []
    assert kinds(logs_of({"a": A, "b": still}, learning_rate=[1.0] * 12 + [0.0] * 8)) == []


def test_plateau_beside_a_term_that_falls_is_no_fault():
    plateau = np.append(falling(10, floor=0.3, time=1.0), flat(20, level=0.3))
    slow = falling(30, floor=0.0, time=12.0)
    (finding,) = [x for x in found(logs_of({"a": slow, "b": plateau})) if x.kind != "drives"]
    assert (finding.term, finding.kind, finding.is_fault) == ("b", "stands_still", False)
    assert 4 <= finding.since <= 11
    assert kinds(logs_of({"a": plateau, "b": plateau})) == []


def test_gradient_of_0_stands_still():
    norms = {"gradients_a_norm": [1.0] * N, "gradients_b_norm": [1.0] * 3 + [0.0] * (N - 3)}
    logs = logs_of({"a": A, "b": B}, **norms)
    assert kinds(logs) == [("b", "stands_still", 4)]
    assert "has been 0 since epoch 4" in found(logs)[0].sentence
    norms["gradients_b_norm"] = [1.0] * (N - 1) + [0.0]
    assert kinds(logs_of({"a": A, "b": B}, **norms)) == []
    # A loss that is 0 has none.
    solved = {"gradients_a_norm": [1.0] * 4, "gradients_b_norm": [0.0] * 4}
    assert kinds(logs_of({"a": A[:4], "b": np.zeros(4)}, **solved)) == [("b", "stands_still", 1)]


def test_term_whose_validation_turns_is_overfitted_by_itself():
    held_out = {"a": 1.1 * falling(N, 7, time=6.0), "b": turning(N, 8)}
    logs = logs_of({"a": falling(N, time=6.0), "b": B}, held_out)
    (finding,) = [x for x in found(logs) if x.kind != "drives"]
    assert (finding.term, finding.kind) == ("b", "overfitted")
    assert 7 <= finding.since <= 11
    assert "while that of 'a' still falls" in finding.sentence
    assert "TermStopping({'b': 'val_b_loss'})" in finding.advice
    both = found(logs_of({"a": A, "b": B}, {"a": turning(N, 8, 2), "b": turning(N, 8)}))
    assert [(x.term, x.kind) for x in both if x.is_fault] == [
        ("a", "overfitted"),
        ("b", "overfitted"),
    ]
    assert "EarlyStopping" in both[0].advice
    # Where training rises as well, it diverges.
    assert kinds(logs_of({"a": A, "b": turning(N, 8)}, held_out)) == []


def test_validation_of_some_epochs_only_is_judged_by_these():
    rare = {key: np.where(np.arange(40) % 2, turning(40, 16), np.nan) for key in ("b",)}
    logs = logs_of({"a": falling(40), "b": falling(40, 1)}, rare)
    (finding,) = [x for x in found(logs) if x.kind == "overfitted"]
    assert 14 <= finding.since <= 22


def test_weight_that_takes_everything_has_run_away():
    weights = {"a": np.geomspace(1.0, 1e5, N), "b": np.ones(N)}
    assert ("a", "weight_ran_away", 13) in kinds(logs_of({"a": A, "b": B}, weights=weights))
    (finding,) = [x for x in found(logs_of({"a": A, "b": B}, weights=weights)) if x.term == "a"][:1]
    assert "1e+05 times" in finding.sentence
    assert "100.0% of the weighted losses" in finding.sentence
    # A loss that reaches 0, by which a rule divides.
    spent = np.geomspace(1.0, 1e-6, N)
    logs = logs_of({"a": A, "b": spent}, weights={"b": 1 / spent})
    assert kinds(logs) == [("b", "weight_ran_away", 11)]
    assert "its loss has fallen from 1 to 1e-06" in found(logs)[0].sentence
    # That of a rule whose weights have a constant product.
    weights = {"a": spent**0.25, "b": spent**-0.25}
    assert ("b", "weight_ran_away", 20) in kinds(logs_of({"a": A, "b": spent}, weights=weights))
    # The weight of the other one fades out.
    assert kinds(logs_of({"a": A, "b": B}, weights={"b": np.append(np.ones(15), [1e-4] * 5)})) == []


def test_weight_that_makes_up_for_the_size_of_a_loss_has_not_run_away():
    small = 1e-8 * falling(N)
    assert kinds(logs_of({"a": A, "b": small}, weights={"b": np.geomspace(1e3, 1e8, N)})) in (
        [],
        [("b", "nearly_off", 1)],
    )
    assert kinds(logs_of({"a": A, "b": B}, weights={"b": np.linspace(0.1, 3.0, N)})) == []


def test_rule_that_moves_nothing_is_named_if_it_is_known():
    logs = logs_of({"a": A, "b": B})
    assert kinds(logs, rule="FAMO") == [(None, "weight_never_moved", 1)]
    assert kinds(logs) == []
    assert kinds(logs_of({"a": A[:2], "b": B[:2]}), rule="FAMO") == []
    moved = logs_of({"a": A, "b": B}, weights={"b": np.linspace(1.0, 1.1, N)})
    assert kinds(moved, rule="FAMO") == []


def test_term_of_a_thousandth_is_nearly_off():
    logs = logs_of({"a": A, "b": B}, weights={"b": np.full(N, 1e-3)})
    assert kinds(logs) == [("b", "nearly_off", 1)]
    assert "hardly trained beside 'a'" in found(logs)[0].sentence
    # Its gradient is as long as the other.
    norms = {"gradients_a_norm": [1.0] * N, "gradients_b_norm": [1.0] * N}
    assert kinds(logs_of({"a": A, "b": B}, weights={"b": np.full(N, 1e-3)}, **norms)) == []
    # It is off on purpose, was never so for long, or has been learned.
    assert kinds(logs_of({"a": A, "b": B}, weights={"b": np.zeros(N)})) == []
    weights = np.where(np.arange(N) > N - 5, 1e-3, 1.0)
    assert kinds(logs_of({"a": A, "b": B}, weights={"b": weights})) == []
    learned = falling(N, floor=1e-4, time=1.0)
    assert kinds(logs_of({"a": A, "b": learned})) == []


def test_term_that_fades_out_is_nearly_off_without_fault():
    fades = {"b": np.geomspace(1.0, 1e-6, N)}
    (finding,) = [x for x in found(logs_of({"a": A, "b": B}, weights=fades)) if x.term == "b"]
    assert (finding.kind, finding.is_fault) == ("nearly_off", False)
    assert "has fallen from 1" in finding.sentence


def of_gradients(cosine, share, count=N):
    """Returns the log of gradients with these means, which scatter a little."""
    noise = 0.01 * np.random.default_rng(0).normal(size=count)
    return {
        "gradients_a_norm": [1.0] * count,
        "gradients_b_norm": [1.0] * count,
        "gradients_a~b_cosine": (cosine + noise).tolist(),
        "gradients_a~b_conflict": np.broadcast_to(share, count).tolist(),
    }


def test_gradients_that_pull_against_each_other_conflict():
    losses = {"a": A, "b": B}
    # A history without `params` has one step an epoch.
    (finding,) = [
        x for x in found(logs_of(losses, **of_gradients(-0.6, 1.0))) if x.kind == "conflict"
    ]
    assert (finding.term, finding.since, finding.is_fault) == (None, 1, False)
    assert "conflict in 100% of the steps, as at the start" in finding.sentence
    rising = of_gradients(np.linspace(0.3, -0.6, N), np.linspace(0.2, 1.0, N) ** 0.5)
    (finding,) = [x for x in found(logs_of(losses, **rising)) if x.kind == "conflict"]
    assert "up from" in finding.sentence
    assert finding.since > 1
    for cosine, share in ((0.0, 0.5), (-0.02, 0.6), (0.4, 0.1)):
        assert kinds(logs_of(losses, **of_gradients(cosine, share))) == []


def test_first_loss_that_is_not_finite_is_named():
    broken = np.where(np.arange(N) < 7, B, np.inf)
    logs = logs_of({"a": A, "b": broken})
    assert kinds(logs) == [("b", "not_finite", 8)]
    after = {"a": np.where(np.arange(N) < 8, A, np.nan), "b": np.where(np.arange(N) < 7, B, np.nan)}
    assert kinds(logs_of(after)) == [("b", "not_finite", 8)]
    # An epoch without items of a term.
    logs = logs_of({"a": A, "b": B})
    logs["b_loss"][3] = float("nan")
    assert kinds(logs) == []
    # No term is the cause.
    logs = logs_of({"a": A, "b": B})
    logs["loss"][3] = float("nan")
    assert kinds(logs) == [(None, "not_finite", 4)]


def test_finding_has_its_text_and_guide():
    finding = Finding("a", "conflict", 3, "It is so.", "Do this.")
    assert (finding.text, finding.guide) == ("It is so. Do this.", "conflicts")
