"""The rules that adapt the weights: comparison with their formulas, options and errors."""

import types
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss._core.quick_ops import ops as quick_ops
from keras_jointloss._core.random import random_normal, random_uniform
from keras_jointloss.weighting import _runner
from tests import reference_weighting as reference
from tests.backends import once_compiled
from tests.terms import GRADIENT_RULES, REQUIRED, RULES, Terms, make, recorded_losses

EPOCHS = np.arange(40) // 10  # The epoch of each step.
PREFERENCE = [1.0, 0.5, 2.0]
# The losses whose weights the authors' library gives for each variant of SoftAdapt.
SOFT_ADAPT_LOSSES = [[1, 2, 3, 4, 5], [150, 100, 50, 10, 0.1], [1500, 1000, 500, 100, 1]]


def keeps(beta, seed):
    """Returns for each of 40 steps whether ReLoBRaLo keeps its weights as the history."""
    return [float(ops.squeeze(random_uniform(1, seed, step))) < beta for step in range(40)]


SIMULATIONS = {
    "SmoothTchebycheff": (
        {"preference": PREFERENCE, "smoothness": 0.7},
        lambda losses: reference.smooth_tchebycheff(losses, np.array(PREFERENCE), 0.7),
    ),
    "FAMO-minimum": (
        {"minimum_loss": -1.0, "decay": 0.1, "learning_rate": 0.1},
        lambda losses: reference.famo(losses, 0.1, 0.1, -1.0),
    ),
    "GeometricMean-floor": (
        {"floor": {"term2": 0.04, "term0": 1.0}},
        lambda losses: reference.geometric_mean(np.maximum(losses, [1.0, 0.0, 0.04])),
    ),
    "FAMO-floor": (
        {"floor": 0.9},
        lambda losses: reference.famo(np.maximum(losses, 0.9)),
    ),
    "Shares": (
        {"shares": {"term2": 1, "term0": 5, "term1": 2}, "ema": 0.9},
        lambda losses: reference.shares(losses, lambda step: [5, 2, 1], 0.9),
    ),
    "Shares-schedule": (
        {"shares": {"term0": 1.0, "term1": 1.0, "term2": kj.schedules.Linear(0.0, 2.0, 20)}},
        lambda losses: reference.shares(losses, lambda step: [1, 1, min(step / 10, 2)], 0.99),
    ),
    "Constraint": (
        {"bounds": {"term2": 0.05, "term0": -1.0}, "learning_rate": 0.1},
        lambda losses: reference.constraint(losses, {2: lambda step: 0.05, 0: lambda step: -1.0}),
    ),
    "Constraint-schedule": (
        {
            "bounds": {"term0": kj.schedules.Linear(2.0, 0.0, 20)},
            "learning_rate": 0.1,
            "ema": 0.5,
            "min_weight": 0.8,
            "max_weight": 1.5,
        },
        lambda losses: reference.constraint(
            losses, {0: lambda step: max(2 - step / 10, 0)}, 0.1, 0.5, 0.8, 1.5
        ),
    ),
    "Constraint-unbounded": (
        {"bounds": {"term1": 0.001}, "learning_rate": 2.0, "max_weight": None},
        lambda losses: reference.constraint(
            losses, {1: lambda step: 0.001}, 2.0, largest=float("inf")
        ),
    ),
    "Uncertainty-softmax": (
        {"softmax": True, "temperature": 5.0},
        lambda losses: reference.uncertainty_softmax(losses, 5.0),
    ),
    "IMTLL": ({"learning_rate": 0.1}, lambda losses: reference.imtl_l(losses, 0.1)),
    "ReLoBRaLo": (
        {"beta": 0.7, "alpha": 0.8, "temperature": 0.5, "seed": 3},
        lambda losses: reference.relobralo(losses, keeps(0.7, 3), 0.8, 0.5),
    ),
    "SoftAdapt": ({"beta": 2.0}, lambda losses: reference.soft_adapt(losses, EPOCHS, beta=2.0)),
    "SoftAdapt-frequency": (
        {"variant": "loss_weighted", "points": 3, "frequency": 2, "beta": -0.5},
        lambda losses: reference.soft_adapt(losses, EPOCHS, "loss_weighted", -0.5, 3, 2),
    ),
    "SoftAdapt-step": (
        {"variant": "normalized", "interval": "step", "frequency": 4},
        lambda losses: reference.soft_adapt(losses, None, "normalized", frequency=4),
    ),
    "RandomWeighting": (
        {"seed": 5},
        lambda losses: np.array(
            [[1.0] * 3]
            + [
                3 * np.array(reference.softmax(ops.convert_to_numpy(random_normal(3, 5, step))))
                for step in range(len(losses))
            ]
        ),
    ),
}


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=once_compiled) if "-" in case else case for case in SIMULATIONS],
)
def test_weights_follow_the_formula(case):
    arguments, simulate = SIMULATIONS[case]
    losses = recorded_losses()
    trajectory = Terms(make(case.partition("-")[0], **arguments), 3).run(losses, EPOCHS)
    np.testing.assert_allclose(trajectory, simulate(losses), rtol=1e-5, atol=1e-7)


def test_replicas_count_by_the_sum_of_their_weights_also_below_1(monkeypatch):
    replicas = types.SimpleNamespace(count=2, sum=lambda x: x)
    monkeypatch.setattr(_runner, "current_replicas", lambda: replicas)
    runner = Terms(make("FAMO"), 3).rule.runner
    recorded = {
        0: (ops.ones(()), 0.25, ops.array(True), None),
        1: (ops.ones(()), 4, ops.array(False), None),
    }
    counts, means = runner._of_all_replicas(recorded)
    assert ops.convert_to_numpy(counts).tolist() == [True, False, False]
    assert ops.convert_to_numpy(means)[:2].tolist() == [1.0, 1.0]


def test_file_of_other_terms_is_refused():
    first, other = make("FAMO"), make("FAMO")
    Terms(first, 2)
    Terms(other, 3)
    store = {}
    other.save_own_variables(store)
    with pytest.raises(ValueError, match=r"FAMO is the weighting of.*Received: the state.*'term2'"):
        first.load_own_variables(store)


def test_known_values():
    # The first step follows the gradient of the Uncertainty objective at s = 0.
    losses = np.array([1.0, 2.0, 4.0])
    assert sum(0.5 * losses + 0.5 * 0) == 3.5
    weights = Terms(make("Uncertainty", learning_rate=0.1), 3).run(losses[None])[-1]
    np.testing.assert_allclose(weights, 0.5 * np.exp(-0.1 * 0.5 * (losses - 1)), rtol=1e-6)
    weights = Terms(make("GeometricMean"), 3).run(losses[None])[-1]
    np.testing.assert_allclose(weights * losses, [2 / 3] * 3, rtol=1e-6)
    epochs = np.array([[1.0, 1.0], [1.0, 4.0], [1.0, 1.0]])
    weights = Terms(make("DynamicWeightAverage"), 2).run(epochs, np.arange(3))[-1]
    np.testing.assert_allclose(weights, 2 * np.array(reference.softmax([0.5, 2.0])), rtol=1e-6)


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("original", [0.99343, 0.0065666, 3.8908e-22]),
        ("normalized", [0.3221, 0.3251, 0.3528]),
        ("loss_weighted", [0.87978, 0.12022, 7.1e-20]),
    ],
)
@pytest.mark.parametrize("interval", ["epoch", "step"])
def test_soft_adapt_equals_the_library_of_its_authors(variant, expected, interval):
    losses = np.array(SOFT_ADAPT_LOSSES).T
    rule = make("SoftAdapt", variant=variant, interval=interval)
    if interval == "epoch":  # The first step of the sixth epoch knows the mean of the fifth.
        losses = np.concatenate([np.repeat(losses, 3, axis=0), [[7.0, 7.0, 7.0]]])
    weights = Terms(rule, 3).run(losses, np.arange(len(losses)) // 3)[-1]
    np.testing.assert_allclose(weights, expected, rtol=5e-3 if variant == "loss_weighted" else 2e-4)


def test_soft_adapt_of_means_of_steps():
    losses = np.repeat(np.array(SOFT_ADAPT_LOSSES).T, 4, axis=0)
    noise = 1 + 0.1 * np.array([1, -1, 2, -2] * 5)[:, None]
    terms = Terms(make("SoftAdapt", interval="step", update_every=4), 3)
    weights = terms.run(losses * noise)
    np.testing.assert_allclose(weights[:8], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(weights[-1], [0.99343, 0.0065666, 3.8908e-22], rtol=1e-3)


def test_imtl_l_is_uncertainty_with_twice_the_weights():
    losses = recorded_losses(20)
    expected = 2 * Terms(make("Uncertainty", learning_rate=0.2), 3).run(losses)
    weights = Terms(make("IMTLL", learning_rate=0.1), 3).run(losses)
    np.testing.assert_allclose(weights, expected, rtol=1e-5)


def test_uncertainty_survives_a_jump_of_a_loss_over_most_of_float32():
    rule = make("Uncertainty", learning_rate=100.0)
    weights = Terms(rule, 1).run(np.array([[1e-12], [1e30]]))
    np.testing.assert_allclose(weights[1:, 0], [0.5e12, 0.5e-30], rtol=1e-4)


@pytest.mark.parametrize("name", RULES)
def test_rule_continues_exactly_from_its_config(name):
    arguments = {"ReLoBRaLo": {"beta": 0.5}, "SoftAdapt": {"interval": "step"}}
    losses, rule = recorded_losses(16, 2), make(name, **arguments.get(name, {}))
    whole = Terms(type(rule).from_config(rule.get_config()), 2).run(losses, EPOCHS)
    Terms(rule, 2).run(losses[:10], EPOCHS)
    rest = Terms(type(rule).from_config(rule.get_config()), 2)
    rest.rule.start()
    for row in losses[10:]:
        rest.step(row)
        np.testing.assert_array_equal(rest.now(), whole[rest.rule.step])


def test_random_numbers_are_normal_and_change_every_step():
    steps = ops.arange(2000, dtype="int32")

    def draw(seed):
        numbers = ops.vectorized_map(lambda step: random_normal(4, seed, step), steps)
        return ops.convert_to_numpy(numbers)

    numbers, others = draw(1), draw(2)
    assert abs(numbers.mean()) < 0.05
    assert numbers.std() == pytest.approx(1, abs=0.05)
    assert abs(np.corrcoef(numbers, rowvar=False) - np.eye(4)).max() < 0.1
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.05
    assert abs(np.corrcoef(numbers.ravel(), others.ravel())[0, 1]) < 0.05
    # The numbers are the same whether steps are drawn one by one or together.
    np.testing.assert_allclose(ops.convert_to_numpy(random_normal(4, 1, 3)), numbers[3], rtol=1e-5)


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
class LastLoss(kj.weighting.Weighting):
    """Weights a term by its latest loss and counts the updates."""

    initial_state: ClassVar = {"updates": 0.0}

    def update(self, losses, step):
        self.state["updates"] = self.state["updates"] + 1
        return losses

    def readout(self, state):
        return {"updates": state["updates"]}


def test_state_with_a_name_of_the_base_class_is_refused():
    class Counts(LastLoss):
        initial_state: ClassVar = {"updates": 0.0, "count": 0.0}

    with pytest.raises(ValueError, match=r"`initial_state`.*'loss'.*Received: .*\['count'\]"):
        Terms(Counts(), 2)


def test_base_class_options():
    losses = np.array([[2.0, 8.0], [4.0, 2.0], [6.0, 5.0], [8.0, 1.0]])
    for options, expected in (
        ({}, losses),
        ({"warmup_steps": 2}, [[1, 1], [1, 1], *losses[2:]]),
        ({"ema": 0.5}, [[2, 8], [3, 5], [4.5, 5], [6.25, 3]]),
        ({"min_weight": 3.0, "max_weight": 6.0}, np.clip(losses, 3, 6)),
        ({"update_every": 2}, [[1, 1], [3, 5], [3, 5], [7, 3]]),
    ):
        trajectory = Terms(LastLoss(**options), 2).run(losses)
        np.testing.assert_allclose(trajectory, [[1, 1], *expected], err_msg=str(options))


def test_weights_change_only_after_start():
    terms = Terms(LastLoss(), 2)
    terms.step([3.0, 4.0])
    assert terms.now() == [1.0, 1.0]
    terms.rule.start()
    terms.step([3.0, 4.0])
    terms.rule.reset_state()
    terms.step([5.0, 6.0])
    assert terms.now() == [3.0, 4.0]


@pytest.mark.parametrize("name", RULES)
def test_term_without_items_keeps_weight_and_state(name):
    terms = Terms(make(name), 2)
    terms.rule.start()
    terms.step([1.0, 2.0])
    terms.step([1.5, 2.0])
    before, state = terms.now(), terms.rule.runner.save()["state"]
    terms.step([1.2, np.nan], [None, ops.convert_to_tensor(False)])
    state_after = terms.rule.runner.save()["state"]
    assert terms.now()[1] == before[1]
    np.testing.assert_array_equal(state_after[:, 1], state[:, 1])
    assert not np.array_equal(state_after[:, 0], state[:, 0])
    assert np.isfinite(terms.now()).all()
    assert not terms.rule.pop_invalid_counts()


@pytest.mark.parametrize("name", RULES)
def test_nonfinite_loss_is_ignored(name):
    terms, clean = Terms(make(name), 2), Terms(make(name), 2)
    losses = recorded_losses(6, 2)
    for one in (terms, clean):
        one.run(losses[:3])
    before = terms.now()
    for bad in (np.nan, np.inf, -np.inf):
        terms.step([1.0, bad])
        assert terms.now() == before
        assert terms.rule.pop_invalid_counts() == {"term1": 1}
        assert not terms.rule.pop_invalid_counts()
    if name != "RandomWeighting":  # Its numbers depend on the step.
        for one in (terms, clean):
            for row in losses[3:]:
                one.step(row)
        assert terms.now() == pytest.approx(clean.now(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "limit"), [("GeometricMean", " or less than 0, "), ("Constraint", ", ")]
)
def test_message_on_unusable_losses_names_the_limit_if_there_is_one(name, limit):
    terms = Terms(make(name), 2)
    terms.rule.start()
    terms.step([1.0, np.nan])
    message = f"a loss that is not finite{limit}or that .* epoch 3: the loss of 'term1' in 1 steps"
    with pytest.raises(FloatingPointError, match=message):
        terms.rule.report(3)


def test_nonfinite_weight_is_reported_and_ignored():
    class Inverse(kj.weighting.Weighting):
        def update(self, losses, step):
            return 1 / losses

    terms = Terms(Inverse(), 2)
    terms.rule.start()
    terms.step([2.0, 4.0])
    terms.step([1.0, 0.0])
    assert terms.now() == [0.5, 0.25]
    assert terms.rule.pop_invalid_counts() == {"term1": 1}


@pytest.mark.parametrize(
    "name",
    [
        *("DynamicWeightAverage", "FAMO", "GeometricMean", "IMTLL", "ReLoBRaLo", "Shares"),
        *("SoftAdapt", "Uncertainty"),
    ],
)
def test_negative_loss_is_unusable_unless_rounding_makes_it_so(name):
    for loss, expected in ((-1.0, {"term0": 1}), (-1e-3, {"term0": 1}), (-8.6e-6, {})):
        arguments = {"variant": "loss_weighted"} if name == "SoftAdapt" else {}
        terms = Terms(make(name, **arguments), 2)
        terms.rule.start()
        terms.step([loss, 1.0])
        assert np.all(np.isfinite(terms.now()))
        assert terms.rule.pop_invalid_counts() == expected


@once_compiled
@pytest.mark.parametrize("name", RULES)
def test_zero_loss_keeps_weights_finite(name):
    trajectory = Terms(make(name), 2).run(np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]))
    assert np.isfinite(trajectory).all()


# Arguments.


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Uncertainty", {"warmup_steps": -1}, "warmup_steps"),
        ("Uncertainty", {"ema": 1.0}, "ema"),
        ("Uncertainty", {"min_weight": -0.1}, "min_weight"),
        ("Uncertainty", {"min_weight": 2.0, "max_weight": 1.0}, "max_weight"),
        ("Uncertainty", {"update_every": 0}, "update_every"),
        ("Uncertainty", {"on_nonfinite": "ignore"}, "on_nonfinite"),
        ("Uncertainty", {"learning_rate": 0.0}, "learning_rate"),
        ("Uncertainty", {"softmax": 1}, "softmax"),
        ("Uncertainty", {"softmax": True, "analytic": True}, "softmax"),
        ("Uncertainty", {"softmax": True, "temperature": 0.0}, "temperature"),
        ("IMTLL", {"learning_rate": 0.0}, "learning_rate"),
        ("ReLoBRaLo", {"alpha": 1.0}, "alpha"),
        ("ReLoBRaLo", {"beta": 1.1}, "beta"),
        ("ReLoBRaLo", {"beta": -0.1}, "beta"),
        ("ReLoBRaLo", {"temperature": 0.0}, "temperature"),
        ("ReLoBRaLo", {"seed": 0.5}, "seed"),
        ("SoftAdapt", {"variant": "base"}, "variant"),
        ("SoftAdapt", {"beta": float("nan")}, "beta"),
        ("SoftAdapt", {"points": 1}, "points"),
        ("SoftAdapt", {"points": 6}, "points"),
        ("SoftAdapt", {"interval": "batch"}, "interval"),
        ("SoftAdapt", {"frequency": 0}, "frequency"),
        ("InverseGradientNorm", {"alpha": 1.0}, "alpha"),
        ("NeuralTangentKernel", {"alpha": -0.5}, "alpha"),
        ("NeuralTangentKernel", {"power": 0.0}, "power"),
        ("FAMO", {"learning_rate": -1.0}, "learning_rate"),
        ("FAMO", {"decay": -1.0}, "decay"),
        ("FAMO", {"minimum_loss": "0"}, "minimum_loss"),
        ("DynamicWeightAverage", {"temperature": 0.0}, "temperature"),
        ("SmoothTchebycheff", {"smoothness": 0.0}, "smoothness"),
        ("SmoothTchebycheff", {"preference": [1.0, 0.0]}, r"preference\[1\]"),
        ("RandomWeighting", {"seed": 2**31}, "seed"),
        ("RandomWeighting", {"seed": -1}, "seed"),
        ("GradNorm", {"alpha": -1}, "alpha"),
        ("GradNorm", {"learning_rate": 0}, "learning_rate"),
        ("Shares", {"shares": {"a": 0.0}}, r"shares\['a'\]"),
        ("Shares", {"shares": {"a": kj.schedules.Linear(-1, 1, 9)}}, r"shares\['a'\]"),
        ("Shares", {"ema": 1.0}, "ema"),
        ("GeometricMean", {"floor": 0.0}, "floor"),
        ("FAMO", {"floor": {"a": -1.0}}, r"floor\['a'\]"),
        ("Constraint", {"learning_rate": 0}, "learning_rate"),
        ("Constraint", {"min_weight": 0.0}, "min_weight"),
        ("Constraint", {"min_weight": 2.0}, "min_weight"),
        ("Constraint", {"max_weight": 0.5}, "max_weight"),
    ],
)
def test_invalid_argument_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=rf"`{message}`.*Received: {message}="):
        make(name, **arguments)


#: Arguments with other values than by default.
CHANGED = {
    "GradNorm": {"alpha": 0.5, "learning_rate": 0.1},
    "IMTLL": {"learning_rate": 0.1},
    "InverseGradientNorm": {"alpha": 0.5},
    "NeuralTangentKernel": {"alpha": 0.5, "power": 0.5},
    "ReLoBRaLo": {"alpha": 0.5, "beta": 0.5, "temperature": 0.1, "seed": 3},
    "SoftAdapt": {
        **{"variant": "normalized", "beta": -1.0, "points": 3},
        **{"interval": "step", "frequency": 4},
    },
    "Uncertainty": {"softmax": True, "temperature": 3.0, "learning_rate": 0.1},
}


@pytest.mark.parametrize("name", [*RULES, *GRADIENT_RULES])
def test_config_round_trip_and_lookup_by_name(name):
    options = {"warmup_steps": 3, "ema": 0.5, "min_weight": 0.1, "max_weight": 9.0}
    rule = make(name, update_every=2, **options, **CHANGED.get(name, {}))
    config = rule.get_config()
    assert CHANGED.get(name, {}).items() <= config.items()
    assert type(rule).from_config(config).get_config() == config
    if name in REQUIRED:
        message = rf"{name}\({REQUIRED[name]}=...\).*weighting={name!r}"
        with pytest.raises(ValueError, match=message):
            kj.weighting.get(name)
    else:
        assert type(kj.weighting.get(name)) is type(rule)
    again = kj.weighting.get(keras.saving.serialize_keras_object(rule))
    assert type(again) is type(rule)
    assert again.get_config() == config


@pytest.mark.parametrize("identifier", ["adam", 3, kj.LossWeight])
def test_unknown_weighting_is_refused(identifier):
    with pytest.raises(ValueError, match=r"`weighting`.*Received: weighting="):
        kj.joint_loss({"a": "mse"}, weighting=identifier)


@pytest.mark.parametrize(
    ("names", "arguments"),
    [
        ("abs cos exp isfinite log ones_like sign softmax sqrt square sum zeros_like", "x"),
        ("divide_no_nan equal maximum minimum not_equal", "xy"),
        ("logical_and all any", "bb"),
    ],
)
def test_quick_operations_equal_those_of_keras(names, arguments):
    x = np.array([0.0, 0.5, np.nan, np.inf, 2.0], "float32")
    known = {"x": x, "y": np.flip(x).copy(), "b": x > 1}
    given = [ops.convert_to_tensor(known[name]) for name in arguments]
    for name in names.split():
        given = given[:1] if name in ("all", "any") else given
        mine, theirs = (getattr(module, name)(*given) for module in (quick_ops, ops))
        np.testing.assert_array_equal(*map(ops.convert_to_numpy, (mine, theirs)), name)
