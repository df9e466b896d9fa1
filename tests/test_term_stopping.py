"""A term that no longer improves is switched off, in later trainings and saved models, too."""

import math

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback, TermStopping
from keras_jointloss.joint.find_terms import find_terms
from tests.backends import once_compiled
from tests.callbacks import CrashError, Interrupts
from tests.refusals import refuses_calls
from tests.small_models import X, Y, compiled, fit, ramp, with_layer_term
from tests.terms import RULES, Terms, make


def logging(**values):
    """Returns a callback that puts values into the logs of the epochs."""

    def add(epoch, logs):
        logs.update({name: x[epoch] for name, x in values.items()})

    return keras.callbacks.LambdaCallback(on_epoch_end=add)


def stopped(values, **options):
    """Returns the epoch in which a term stops that is monitored by these values, or `None`."""
    callback = TermStopping({"output": "value"}, **options)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", **kj.joint_loss("mse"))
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {"value": value})
        if model.stop_training:
            assert float(model.loss.weight) == 0.0
            return callback.stopped_epoch["output"]
    return None


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([3, 2, 2, 1], {}, 2),
        ([3, 2, 2, 1, 1, 1], {"patience": 2}, 5),
        ([3, 2, 1.5, 1.4], {"min_delta": 0.5}, 2),
        ([1, 2, 3, 3], {"mode": "max"}, 3),
        ([1, 2, 3, 3], {"mode": "max", "min_delta": {"output": 1.5}}, 1),
        ([3, math.nan, math.nan, 1], {"patience": 2}, 2),
        ([3, math.nan, 2, 1], {"patience": 2}, None),
    ],
)
def test_term_stops_after_epochs_without_improvement(values, options, expected):
    assert stopped(values, **options) == expected


@pytest.mark.parametrize(
    ("term", "key", "is_up"),
    [
        ("a", "val_a_accuracy", True),
        ("a", "a_AUC_1", True),
        ("a", "val_a_recall_at_5", True),
        ("a", "a_mean_reciprocal_rank", True),
        ("a", "val_a_median_rank", False),
        ("a", "val_a_accuracy_loss", False),
        ("recall", "val_recall_loss", False),
        ("recall", "val_recall_mae", False),
        ("a", "a_noise", False),
    ],
)
def test_mode_auto_goes_by_the_name(term, key, is_up):
    callback = TermStopping({term: key})
    assert callback._is_up(term) is is_up


@pytest.mark.parametrize("order", ["before", pytest.param("after", marks=once_compiled)])
def test_weight_of_a_stopped_term_is_0_while_its_schedule_counts(order, tmp_path):
    model = with_layer_term(ramp(100))
    stopping = TermStopping({"a": "first", "pair": "second"}, patience=2)
    callbacks = [logging(first=[1, 1, 1, 0, 0, 0, 0], second=[5, 4, 3, 3, 3, 3, 3]), stopping]
    callbacks.insert({"before": 2, "after": 0}[order], JointLossCallback())
    history = fit(model, callbacks, epochs=7, validation_data=(X, {"a": Y["a"]}))
    assert stopping.stopped_epoch == {"a": 2, "pair": 4}
    assert history["a_weight"] == pytest.approx([0.4, 0.8, 1.0, 0.0, 0.0])
    assert history["val_a_weight"] == history["a_weight"]
    assert history["pair_weight"] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.20])
    assert find_terms(model)["a"].step == 20
    assert [float(weight) for weight in find_terms(model).values()] == [0.0, 0.0]

    model.save(tmp_path / "model.keras")
    for again in (keras.models.load_model(tmp_path / "model.keras"), model):
        assert [weight.is_off for weight in find_terms(again).values()] == [True, True]
        find_terms(again)["pair"].switch_on()
        assert float(find_terms(again)["pair"]) == pytest.approx(0.20)
        history = fit(again, epochs=1)
        assert history["a_weight"] == [0.0]
        assert history["pair_weight"] == pytest.approx([0.24])
        assert history["loss"][0] > 0


def test_backup_restores_stopped_terms(tmp_path):
    def callbacks():
        values = logging(first=[2, 2, 1, 0, 0], second=[2, 1, 0, -1, -2])
        stopping = TermStopping({"a": "first", "b": "second"})
        backup = keras.callbacks.BackupAndRestore(tmp_path, delete_checkpoint=False)
        return [backup, JointLossCallback(), values, stopping]

    def model():
        return compiled(weights={"a": ramp(100), "b": 0.5}, weighting=make("FAMO"))

    with pytest.raises(CrashError):
        fit(model(), [*callbacks(), Interrupts(epoch=3)], epochs=5)
    restored = model()
    history = fit(restored, callbacks(), epochs=5)
    assert history["a_weight"] == [0.0, 0.0]
    assert min(history["b_weight"]) > 0
    # A copy of the model begins anew.
    restored = keras.models.clone_model(restored)
    assert not any(weight.is_off for weight in find_terms(restored).values())


@once_compiled
def test_constant_weight_stops_without_a_joint_loss_callback():
    model = compiled(weights={"a": 0.25, "b": 2.0})
    stopping = TermStopping({"a": "first"})
    history = fit(model, [logging(first=[1, 1, 1]), stopping], epochs=3)
    assert history["a_weight"] == [0.25, 0.25]  # Training ends when all monitored terms stop.
    history = fit(model, [], epochs=1)
    assert history["a_weight"] == [0.0]
    assert history["loss"] == pytest.approx([2 * history["b_loss"][0]])
    weight = model.loss["a"].weight
    weight.assign(0.75)
    assert float(weight) == 0.0
    weight.switch_on()
    assert float(weight) == 0.75


def test_restored_weights_of_the_model_do_not_switch_a_term_on():
    model = with_layer_term(0.25)
    pair, best = find_terms(model)["pair"], [np.array(x) for x in model.get_weights()]
    pair.switch_off()
    model.set_weights(best)  # As `EarlyStopping(restore_best_weights=True)` does.
    history = fit(model, epochs=1)
    assert history["pair_weight"] == [0.0]
    pair.switch_on()
    assert float(pair) == 0.25


def test_term_that_is_off_leaves_its_share_to_the_others():
    terms = Terms(kj.weighting.Shares({"term0": 0.5, "term1": 0.3, "term2": 0.2}), 3)
    losses = np.array([1.0, 2.0, 4.0])
    terms.rule.start(is_new_epoch=True)
    terms.step(losses)
    list(terms.weights.values())[1].switch_off()
    terms.step(losses)
    contributions = losses * terms.now()
    # The total is the sum of the losses of the others.
    assert contributions == pytest.approx([5 * 5 / 7, 0.0, 5 * 2 / 7], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in RULES if name != "Shares"])
def test_rule_treats_a_term_that_is_off_as_absent(name):
    switched, absent = (Terms(make(name, 3), 3) for _ in range(2))
    off = list(switched.weights.values())[1]
    losses = [[1.0, 2.0, 4.0], [0.5, 100.0, 3.0], [0.75, 0.1, 3.5]]
    for terms in (switched, absent):
        for weight in terms.weights.values():
            weight.start_annealing()
        terms.rule.start(is_new_epoch=True)
        terms.step(losses[0])
    off.switch_off()
    for row in losses[1:]:
        switched.step(row)
        absent.step(row, [None, np.array(False), None])
    expected = absent.now()
    assert switched.now() == pytest.approx([expected[0], 0.0, expected[2]])
    assert switched.rule.read() == absent.rule.read()
    off.switch_on()
    assert switched.now() == pytest.approx(expected)


@once_compiled
@pytest.mark.parametrize("key", ["val_b_accuracy", "nothing"])
def test_missing_value_warns(key):
    # Without validation, only the end of training shows that there is none.
    message = rf"term 'a' by '{key}', which is not in the logs"
    with pytest.warns(UserWarning, match=message) as found:
        fit(compiled(), [TermStopping({"a": key})], epochs=2)
    assert sum(x.category is UserWarning for x in found) == 1


test_invalid_arguments_are_refused = refuses_calls(
    (lambda: TermStopping({}), "`monitor`"),
    (lambda: TermStopping(["a"]), "`monitor`"),
    (lambda: TermStopping({"a": 1}), "`monitor"),
    (lambda: TermStopping({"a": "loss"}, -1), "`patience`"),
    (lambda: TermStopping({"a": "loss"}, {"b": 1}), "`patience`"),
    (lambda: TermStopping({"a": "loss"}, 0, {"a": -0.1}), "`min_delta"),
    (lambda: TermStopping({"a": "loss"}, 0, 0, "up"), "`mode`"),
)


def test_unknown_term_is_refused():
    with pytest.raises(ValueError, match=r"`monitor`.*\['a', 'b'\].*\['c'\]"):
        fit(compiled(), [TermStopping({"a": "loss", "c": "loss"})])
