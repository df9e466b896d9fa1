"""The weight of a term: its value, its schedule and its recorded losses."""

import re

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule, PolynomialDecay

import keras_jointloss as kj
from tests.backends import BACKEND, jax


def test_any_real_number_type_is_accepted():
    for number in (int, np.float16, np.float32, np.float64, np.int8, np.int64, np.array):
        weight = kj.LossWeight(number(3))
        assert float(weight) == 3.0
        weight.assign(number(2))
        assert float(weight) == float(weight.result()) == 2.0


@pytest.mark.parametrize(
    "value", [-1.0, float("nan"), float("inf"), "1", None, True, [1.0], np.ones(2), 1j]
)
def test_invalid_weight_is_refused(value):
    with pytest.raises(ValueError, match=r"`weight`.*finite number >= 0.*Received: weight="):
        kj.LossWeight(value)
    weight = kj.LossWeight(1.0)
    with pytest.raises(ValueError, match=r"`value`.*finite number >= 0.*Received: value="):
        weight.assign(value)
    assert float(weight) == 1.0


class Returns(LearningRateSchedule):
    """A schedule that returns the same value at each step."""

    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return ops.convert_to_tensor(self.value)


@pytest.mark.parametrize("value", [[1.0, 2.0], [1.0], float("nan"), -0.5])
def test_schedule_with_invalid_value_is_refused(value):
    with pytest.raises(ValueError, match=r"schedule that returns a finite scalar >= 0.*Received"):
        kj.LossWeight(Returns(value))


def test_weight_changes_only_while_annealing():
    schedule = PolynomialDecay(0.0, 10, 1.0)
    weight = kj.LossWeight(schedule)

    def train_step():
        weight.record(ops.convert_to_tensor(1.0), 3)
        weight.applied()
        weight.update_state()

    train_step()
    assert (float(weight), weight.step) == (0.0, 0)
    weight.start_annealing(step=2)
    assert float(weight) == pytest.approx(0.2)
    assert weight.next_number() == pytest.approx(0.3)
    for step in range(3, 6):
        train_step()
        assert (float(weight), weight.step) == (pytest.approx(float(schedule(step))), step)
    weight.reset_state()
    train_step()
    assert (float(weight), weight.step) == (pytest.approx(0.5), 5)
    assert weight.next_number() == pytest.approx(0.5)
    weight.start_annealing()
    train_step()
    assert (float(weight), weight.step) == (pytest.approx(0.6), 6)


def test_step_counts_once_a_loss_is_recorded():
    weight = kj.LossWeight(PolynomialDecay(0.0, 10, 1.0))
    weight.start_annealing()
    weight.update_state()
    assert weight.step == 0


def test_switching_off_twice_keeps_the_weight():
    weight = kj.LossWeight(0.5)
    for _ in range(2):
        weight.switch_off()
    assert (float(weight), weight.value) == (0.0, 0.5)
    weight.switch_on()
    assert float(weight) == 0.5


def test_config_and_file_need_not_be_complete():
    weight = kj.LossWeight.from_config({"weight": 0.5})
    assert float(weight) == 0.5
    weight.load_own_variables({})
    assert float(weight) == 0.5


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("is_off", [False, True])
def test_schedule_that_is_not_finite_at_its_step_continues_from_file_and_config(bad, is_off):
    class Grows(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            return ops.where(ops.equal(step, 3), bad, 1.0 + ops.cast(step, "float32"))

        def get_config(self):
            return {}

    weight = kj.LossWeight(Grows())
    weight.start_annealing(step=3)
    if is_off:
        weight.switch_off()
    store = {}
    weight.save_own_variables(store)
    loaded, other = kj.LossWeight(Grows()), kj.LossWeight(PolynomialDecay(1.0, 4, 0.0))
    for copy in (loaded, other):
        copy.load_own_variables(store)
    with keras.saving.custom_object_scope({"Grows": Grows}):
        copies = [loaded, kj.LossWeight.from_config(weight.get_config())]
    for copy in copies:
        assert (copy.step, copy.is_off) == (3, is_off)
        np.testing.assert_equal(float(copy), 0.0 if is_off else bad)
        copy.switch_on()
        copy.start_annealing()
        copy.advance()
        assert (copy.step, float(copy)) == (4, 5.0)
    assert (other.step, float(other), other.is_off) == (3, 0.25, False)
    loaded.stop_annealing()
    loaded.start_annealing(step=3)
    loaded.assign(0.5)
    store = {}
    loaded.save_own_variables(store)
    assigned = kj.LossWeight(Grows())
    assigned.load_own_variables(store)
    assert (assigned.step, float(assigned)) == (3, 0.5)


def test_weight_is_never_negative():
    weight = kj.LossWeight(PolynomialDecay(1.0, 4, -1.0))
    weight.start_annealing(step=2)
    assert float(weight) == 0.0
    weight.advance()
    assert float(weight) == 0.0
    assert float(kj.LossWeight.from_config(weight.get_config())) == 0.0


def test_means_weight_batches_by_size():
    weight = kj.LossWeight(0.5)
    assert "loss" not in weight.read()
    weight.record(ops.convert_to_tensor(1.0), 3)
    weight.assign(2.0)
    weight.record(ops.convert_to_tensor(5.0), 1)
    assert weight.read() == pytest.approx({"loss": 2.0, "weighted": 11.5 / 4, "weight": 2.0})
    weight.reset_state()
    assert "loss" not in weight.read()
    assert float(weight) == 2.0


def test_recording_does_not_change_the_gradient():
    from tests.gradients import value_and_gradient

    weight = kj.LossWeight(0.5)

    def weighted(x):
        loss = ops.sum(ops.square(x))
        weight.record(loss, 2)
        return loss * weight.tensor()

    _, gradient = value_and_gradient(weighted, np.array([1.0, 2.0], "float32"))
    np.testing.assert_allclose(gradient, [1.0, 2.0])


@pytest.mark.parametrize("weight", [0.25, PolynomialDecay(1.0, 4, 0.0)])
def test_config_keeps_value_and_step(weight):
    original = kj.LossWeight(weight, name="mine")
    original.start_annealing(step=3)
    if isinstance(weight, float):
        original.assign(0.75)
    config = keras.saving.serialize_keras_object(original)
    again = keras.saving.deserialize_keras_object(config)
    assert isinstance(again, kj.LossWeight)
    assert (float(again), again.step, again.name) == (float(original), original.step, "mine")
    assert not again.annealing
    assert type(again.schedule) is type(original.schedule)


@pytest.mark.parametrize("floatx", ["float32", "float64"])
def test_weight_has_the_precision_of_floatx(floatx):
    if BACKEND == "jax" and floatx == "float64":
        pytest.skip("JAX computes in float32 unless told otherwise")
    keras.config.set_floatx(floatx)
    assert float(kj.LossWeight(0.7)) == pytest.approx(
        0.7, rel=1e-15 if floatx == "float64" else 1e-7
    )


@pytest.mark.backend("jax")
def test_compiler_takes_no_logged_weight_for_its_variable():
    weight = kj.LossWeight(0.5)
    state = [variable.value for variable in weight.variables]
    step = jax.jit(lambda state: (weight.stateless_result(state), state))
    assert step(state)[0] == 0.5
    text = step.lower(state).compile().as_text()
    copied = dict(re.findall(r"%(\S+) = \S+ copy\(%(\S+)\)", text))
    results = re.findall(r"%([^\s,)]+)", re.search(r"ROOT .* tuple\((.*?)\)", text)[1])
    sources = [copied.get(name, name) for name in results]
    assert len(sources) == len({*sources}) == len(state) + 1


def test_numbers_follow_whatever_assigns_the_variables():
    weight = kj.LossWeight(PolynomialDecay(1.0, 10, 0.0))
    assert float(weight) == 1.0
    value, step, _ = weight.state[:3]
    value.assign(0.25)
    step.assign(7)
    assert (float(weight), weight.value, weight.step) == (0.25, 0.25, 7)
    with keras.StatelessScope([(value, ops.convert_to_tensor(4.0))]) as scope:
        assert float(weight) == 4.0
        weight.assign(8.0)
        assert float(weight) == 8.0
    assert float(weight) == 0.25
    assert float(ops.convert_to_numpy(scope.get_current_value(value))) == 8.0


class Doubled(PolynomialDecay):
    """A schedule of a user, whose attributes may change."""

    factor = 2.0

    def __call__(self, step):
        return super().__call__(step) * self.factor


def test_numbers_of_schedules_are_those_of_their_calls():
    steps = [0, 1, 255, 256, 300, 511, 512, 900]
    found = [
        PolynomialDecay(1.0, 600, 0.1, power=0.5),
        keras.optimizers.schedules.CosineDecay(1.0, 500, warmup_target=2.0, warmup_steps=30),
        keras.optimizers.schedules.PiecewiseConstantDecay([200, 400], [1.0, 0.5, 0.0]),
        kj.schedules.Sequential([kj.schedules.Linear(0.0, 1.0, steps=50), Doubled(1.0, 500)], [50]),
    ]
    for schedule in found:
        given = kj.LossWeight(schedule).given
        calls = [float(schedule(ops.convert_to_tensor(step, "int32"))) for step in steps]
        np.testing.assert_allclose([given.number_at(x) for x in steps], calls, rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose(given.values(steps), calls, rtol=2e-6, atol=1e-7)
        assert all(type(given.number_at(x)) is float for x in steps)


def test_schedule_of_a_user_may_change_at_any_step():
    schedule = Doubled(1.0, 500)
    weight = kj.LossWeight(kj.schedules.Sequential([schedule, 1.0], [400]))
    weight.start_annealing(step=10)
    before = float(weight)
    schedule.factor = 4.0
    weight.start_annealing(step=10)
    assert float(weight) == 2 * before
