"""Rules with arguments by the name of the term: shares, bounds and floors."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.backends import once_compiled
from tests.small_models import fit
from tests.summaries import read_scalars
from tests.terms import Terms, make, recorded_losses

ABSENT = ops.convert_to_tensor(False)


def shares_of(terms, losses):
    parts = np.array(terms.now()) * losses
    return parts / parts.sum()


# Shares.


def test_constant_losses_get_exactly_the_asked_shares_of_the_same_total():
    losses, given = np.array([1e-3, 2.0, 5e3]), [1.0, 2.0, 0.5]
    asked = {"term2": 0.2, "term0": 0.5, "term1": 0.3}
    terms = Terms(kj.weighting.Shares(asked, max_weight=None), 3, given)
    terms.run(np.tile(losses, (3, 1)))
    np.testing.assert_allclose(shares_of(terms, losses), [0.5, 0.3, 0.2], rtol=1e-5)
    assert np.sum(np.array(terms.now()) * losses) == pytest.approx(np.dot(given, losses), 1e-5)


def test_moving_user_weight_changes_the_total_and_not_the_shares():
    given = [2.0, kj.schedules.Linear(0.0, 1.0, 4), 1.0]
    losses = np.array([3.0, 5.0, 7.0])
    asked = {"term0": 1, "term1": 2, "term2": kj.schedules.Linear(1.0, 2.0, 5)}
    terms = Terms(kj.weighting.Shares(asked), 3, given)
    terms.rule.start()
    for step in range(1, 7):
        terms.step(losses)
        expected = np.array([1, 2, min(1 + step / 5, 2)])
        np.testing.assert_allclose(shares_of(terms, losses), expected / expected.sum(), rtol=1e-5)
        total = np.dot([2.0, min(step / 4, 1), 1.0], losses)
        assert np.sum(np.array(terms.now()) * losses) == pytest.approx(total, 1e-5)


def test_term_with_user_weight_0_leaves_its_share_to_the_others():
    terms = Terms(kj.weighting.Shares({"term0": 2, "term1": 1, "term2": 1}), 3, [1.0, 0.0, 1.0])
    losses = np.array([3.0, 5.0, 7.0])
    terms.run(losses[None])
    np.testing.assert_allclose(np.array(terms.now()) * losses, [20 / 3, 0, 10 / 3], rtol=1e-5)


def test_term_without_a_loss_so_far_does_not_change_the_total():
    terms = Terms(kj.weighting.Shares({"term0": 2, "term1": 1, "term2": 1}), 3)
    terms.rule.start()
    for _ in range(2):
        terms.step([0.03, 0.0, 0.06], [None, ABSENT, None])
    np.testing.assert_allclose(terms.now(), [2.0, 1.0, 0.5], rtol=1e-5)


def test_weight_of_a_vanishing_loss_is_limited():
    losses = np.array([[1e-9, 1.0]] * 3)
    limited, default, unlimited = (
        Terms(make("Shares", **options), 2)
        for options in ({"max_weight": 50.0}, {}, {"max_weight": None})
    )
    np.testing.assert_allclose(limited.run(losses)[-1], [50.0, 0.5], rtol=1e-5)
    assert default.run(losses)[-1][0] == 1e6
    assert unlimited.run(losses * [0, 1])[-1][0] == pytest.approx(5e6, 1e-5)
    np.testing.assert_array_equal(unlimited.run(losses * 0)[-1], unlimited.run(losses * 0)[-2])


def test_shares_keep_scale_and_progress_under_the_options_of_the_base_class():
    losses = np.tile([2.0, 6.0], (6, 1))
    rule = make("Shares", warmup_steps=2, update_every=2)
    trajectory = Terms(rule, 2).run(losses)
    np.testing.assert_allclose(trajectory, [[1, 1]] * 4 + [[2, 2 / 3]] * 3, rtol=1e-5)
    rule.begin_anew()
    np.testing.assert_array_equal(ops.convert_to_numpy(rule.result()), [1, 1])


# Constraint.


@pytest.mark.backend("torch")
def test_multipliers_of_known_problems():
    # The minimum of (x - 3)^2 where scale x^2 <= scale is x = 1, with the multiplier 2 / scale.
    scale = np.array([0.01, 1.0, 1000.0])
    terms = Terms(kj.weighting.Constraint({f"term{i}": x for i, x in enumerate(scale)}), 4)
    terms.rule.start()
    x, losses = np.full(3, 3.0), []
    for _ in range(950):
        weight = np.array(terms.now()[:3]) * scale
        x -= 0.1 * (2 * (x - 3) + 2 * weight * x) / (2 + 2 * weight)
        losses.append(scale * x**2)
        terms.step([*losses[-1], np.sum((x - 3) ** 2)])
    np.testing.assert_allclose(losses[-30:], np.tile(scale, (30, 1)), rtol=0.02)
    np.testing.assert_allclose(terms.now(), [*(2 / scale), 1.0], rtol=0.02)
    readings = terms.rule.read()
    assert list(readings) == ["term0", "term1", "term2"]
    assert readings["term0"] == {"multiplier": terms.now()[0]}


def test_multiplier_of_a_loss_below_its_bound_falls_to_the_smallest():
    rule = kj.weighting.Constraint({"term1": 1.0}, learning_rate=1.0, min_weight=0.01)
    trajectory = Terms(rule, 2, [1.0, 2.0]).run(np.tile([1.0, 0.5], (20, 1)))
    np.testing.assert_allclose(trajectory[[0, 1, -1], 1], [2, 2 * np.exp(-0.5), 0.02], rtol=1e-5)


# Floors.


@pytest.mark.parametrize("cls", [kj.weighting.FAMO, kj.weighting.GeometricMean])
def test_floor_limits_the_weight_of_a_loss_that_reaches_0(cls):
    losses = np.array([[1.0, 1e-6]])

    def ratio(floor):
        weights = Terms(cls(floor=floor), 2).run(losses)[-1]
        return weights[1] / weights[0]

    for floor, expected in ((None, 1e6), (1e-2, 100), ({"term1": 0.5}, 2), ({"term0": 0.5}, 1e6)):
        assert ratio(floor) == pytest.approx(expected, 1e-4)


# Arguments.

CASES = (
    (kj.weighting.Shares, "shares"),
    (kj.weighting.Constraint, "bounds"),
    (kj.weighting.FAMO, "floor"),
    (kj.weighting.GeometricMean, "floor"),
)
by_name = pytest.mark.parametrize(("cls", "argument"), CASES)


@by_name
def test_unknown_and_missing_names_are_refused_when_bound(cls, argument):
    rule = cls(**{argument: {"term0": 1.0, "other": 1.0}})
    message = rf"`{argument}`.*'term0', 'term1'.*Received: {argument}=.*unknown names \['other'\]"
    if argument == "shares":
        message += r" and no value for \['term1'\]"
    with pytest.raises(ValueError, match=message):
        Terms(rule, 2)


@by_name
def test_values_by_name_survive_the_config(cls, argument):
    schedule = kj.schedules.Sequential([1.0, kj.schedules.Linear(1.0, 2.0, 5)], [3])
    rule = cls(**{argument: {"term0": schedule, "term1": 3}})
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(rule)))
    trained, loaded = Terms(rule, 2), Terms(kj.weighting.get(config), 2)
    losses = recorded_losses(8, 2)
    np.testing.assert_array_equal(trained.run(losses[:5]), loaded.run(losses[:5]))
    # With the state of the rule, it goes on where it was.
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(rule)))
    loaded = Terms(kj.weighting.get(config), 2)
    np.testing.assert_allclose(trained.run(losses[5:]), loaded.run(losses[5:]), rtol=1e-6)


@by_name
@pytest.mark.parametrize(
    "value",
    [{}, "term0", {1: 1.0}, {"term0": "1"}, {"term0": None}, {"term0": float("nan")}, [1.0]],
)
def test_invalid_values_by_name_are_refused(cls, argument, value):
    with pytest.raises(ValueError, match=rf"`{argument}.*Received: {argument}"):
        cls(**{argument: value})


# In training.


def noisy_problem(given, rule):
    """Returns a compiled model with two outputs and a layer term, whose losses soon level off."""
    inputs, other = keras.Input((4,)), keras.Input((2,))
    near = kj.layers.ContrastiveTerm("MeanSquaredError", weight=given["near"], name="near")
    hidden, _ = near((keras.layers.Dense(2)(inputs), other))
    outputs = {"a": keras.layers.Dense(1)(inputs), "b": keras.layers.Dense(1)(hidden)}
    model = keras.Model([inputs, other], outputs)
    joint = kj.joint_loss({"a": "mse", "b": "mae"}, {x: given[x] for x in "ab"}, rule)
    model.compile(keras.optimizers.Adam(0.05), **joint)
    generator = np.random.default_rng(0)
    model.set_weights([0.5 * generator.normal(size=value.shape) for value in model.get_weights()])
    x, other, noise = (generator.normal(size=(512, n)).astype("float32") for n in (4, 2, 1))
    return model, [x, other], {"a": x[:, :1] + 0.1 * noise, "b": 5 * noise}


@pytest.mark.filterwarnings("ignore:The loss of the term 'b' has not fallen")  # It is noise.
def test_model_trains_with_the_asked_shares_and_resumes(tmp_path):
    asked = {"near": kj.schedules.Linear(2.0, 0.1, 64), "b": 0.3, "a": 0.6}
    given = {"a": 2.0, "b": kj.schedules.Linear(0.0, 1.0, 100), "near": 0.5}
    model, x, y = noisy_problem(given, kj.weighting.Shares(asked, ema=0.9))
    fit(model, [kj.callbacks.JointLossCallback(str(tmp_path))], y, x, batch_size=32, epochs=12)
    scalars = read_scalars(tmp_path / "train")
    shares = [list(scalars[f"joint_loss/{name}/share"].values())[-1] for name in asked]
    assert shares == pytest.approx([0.1, 0.3, 0.6], abs=0.01)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    options = {"batch_size": 32, "epochs": 13, "initial_epoch": 12}
    histories = [fit(one, y=y, x=x, **options) for one in (model, loaded)]
    weights = [[history[f"{name}_weight"][0] for name in asked] for history in histories]
    np.testing.assert_allclose(weights[1], weights[0], rtol=1e-5)


@once_compiled
def test_constrained_term_ends_at_its_bound():
    x = np.ones((400, 1), "float32")
    inputs = keras.Input((1,))
    hidden = keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")(inputs)
    # The minimum of (h - 3)^2 where (10 h)^2 <= 100 is h = 1, with the multiplier 0.02.
    model = keras.Model(inputs, {"near": hidden, "size": keras.layers.Rescaling(10.0)(hidden)})
    rule = kj.weighting.Constraint({"size": 100.0})
    joint = kj.joint_loss({"near": "mse", "size": "mse"}, {"size": 0.01}, rule)
    model.compile(keras.optimizers.SGD(0.03), **joint)
    y = {"near": 3 * x, "size": 0 * x}
    history = fit(model, y=y, x=x, batch_size=1)
    size = model.evaluate(x, y, verbose=0, return_dict=True)
    assert size["size_loss"] == pytest.approx(100, rel=0.02)
    assert history["size_weight"][0] == pytest.approx(0.02, rel=0.02)
    assert history["size_multiplier"][0] == pytest.approx(2, rel=0.02)
    assert "near_multiplier" not in history
