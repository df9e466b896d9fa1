"""The total at fixed weights, and the warning of callbacks that compare different totals."""

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback
from keras_jointloss.callbacks.joint._term_readings import FixedTotal
from tests.backends import once_compiled
from tests.small_models import X, Y, compiled, fit, ramp, with_layer_term
from tests.summaries import read_scalars

VALIDATION = (X, {"a": Y["a"]})


def test_total_at_fixed_weights_is_logged_for_other_callbacks(tmp_path):
    model, evaluated = with_layer_term(), []
    records = keras.callbacks.LambdaCallback(on_test_end=lambda logs: evaluated.append({**logs}))
    stop = keras.callbacks.EarlyStopping("val_joint_loss", mode="min", patience=2)
    options = {"mode": "min", "save_best_only": True}
    best = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", "val_joint_loss", **options)
    callback = JointLossCallback(tmp_path, validation_weights={"a": 2.0, "pair": 0.5})
    # The model does not move, but its weights do: `val_loss` rises, the total at fixed weights not.
    history = fit(model, [stop, best, records, callback], validation_data=VALIDATION, epochs=5)
    assert len(history["loss"]) == 3
    assert history["val_loss"][2] > 2 * history["val_loss"][0]
    for prefix in ("", "val_"):
        raw = [np.array(history[f"{prefix}{term}_loss"]) for term in ("a", "pair")]
        assert history[f"{prefix}joint_loss"] == pytest.approx(2.0 * raw[0] + 0.5 * raw[1], 1e-5)
    assert [logs["joint_loss"] for logs in evaluated] == history["val_joint_loss"]
    assert (tmp_path / "best.keras").exists()
    for run, key in (("train", "joint_loss"), ("validation", "val_joint_loss")):
        written = read_scalars(tmp_path / run)["joint_loss/fixed_total"]
        assert list(written.values()) == pytest.approx(history[key])
        assert sorted(written) == [4, 8, 12]

    model.evaluate(*VALIDATION, verbose=0, callbacks=[callback, records])
    assert evaluated[-1]["joint_loss"] == pytest.approx(history["val_joint_loss"][-1], 1e-6)


def terms():
    return {"fading": kj.LossWeight(kj.schedules.Linear(0.5, 0.0, 4)), "last": kj.LossWeight(0.25)}


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("equal", 1.0 * 2 + 1.0 * 8),
        ("initial", 0.5 * 2 + 0.25 * 8),
        ({"fading": 0, "last": 3}, 3.0 * 8),
    ],
)
def test_fixed_total_is_the_weighted_sum_of_raw_losses(weights, expected):
    readings = {"fading": {"loss": 2.0, "weight": 0.1}, "last": {"loss": 8.0, "weight": 7.0}}
    moved = terms()
    for weight in moved.values():
        weight.start_annealing(3)
        weight.assign(9.0)
    total = FixedTotal(weights, moved, "validation_weights")
    assert total.of(readings) == pytest.approx(expected)
    assert total.of({name: {"weight": 1.0} for name in readings}) is None


def test_loss_of_weight_0_or_without_items_does_not_count():
    total = FixedTotal({"fading": 0.0, "last": 2.0}, terms(), "validation_weights")
    assert total.of({"fading": {"loss": float("nan")}, "last": {"loss": 3.0}}) == 6.0
    assert total.of({"fading": {"loss": 1.0}, "last": {}}) == 0.0


@pytest.mark.parametrize("weights", ["first", 1.0, ["a"], {"a": -1.0}, {"a": float("nan")}])
def test_invalid_validation_weights_are_refused(weights):
    with pytest.raises(ValueError, match="`validation_weights"):
        JointLossCallback(validation_weights=weights)


@pytest.mark.parametrize("weights", [{"a": 1.0}, {"a": 1.0, "b": 1.0, "c": 1.0}, "initial"])
def test_validation_weights_must_fit_the_terms(weights):
    model = compiled(weights={"a": ramp(), "b": 0.0})
    with pytest.raises(ValueError, match=r"`validation_weights`.*(\['a', 'b'\]|a weight > 0)"):
        fit(model, [JointLossCallback(validation_weights=weights)])


def test_total_must_not_have_the_name_of_a_loss():
    with pytest.raises(ValueError, match=r"`validation_weights`.*'joint_loss' in the logs"):
        FixedTotal("equal", {**terms(), "joint": kj.LossWeight()}, "validation_weights")


STOPS = keras.callbacks.EarlyStopping
COMPARING = {
    "stops": lambda path: STOPS("val_loss", patience=9),
    "reduces": lambda path: keras.callbacks.ReduceLROnPlateau("loss", patience=9),
    "saves": lambda path: keras.callbacks.ModelCheckpoint(path / "best.keras", save_best_only=True),
}
# Each compares nothing, or nothing that moves, or nothing that is there.
OTHERS = {
    "saves_all": lambda path: keras.callbacks.ModelCheckpoint(path / "last.keras"),
    "stops": lambda path: STOPS("val_joint_loss", mode="min", patience=9),
    "label": lambda path: STOPS("val_a_loss", mode="min", patience=9),
}


@once_compiled
def test_comparing_a_moving_total_warns_once(tmp_path):
    callbacks = [*(make(tmp_path) for make in COMPARING.values()), JointLossCallback()]
    with pytest.warns(UserWarning, match="while the weights of the terms move") as caught:
        fit(with_layer_term(), callbacks, validation_data=VALIDATION, epochs=2)
    caught = [x for x in caught if x.category is UserWarning]
    found = [str(x.message).split()[:3] for x in caught]
    assert sorted(found) == [
        ["EarlyStopping", "monitors", "'val_loss'"],
        ["ModelCheckpoint", "monitors", "'val_loss'"],
        ["ReduceLROnPlateau", "monitors", "'loss'"],
    ]
    assert all("'val_joint_loss'" in str(x.message) for x in caught)


@once_compiled
def test_what_compares_nothing_that_moves_does_not_warn(tmp_path):
    others = [make(tmp_path) for make in OTHERS.values()]
    joint = JointLossCallback(validation_weights="equal")
    model = with_layer_term(ramp(4))
    fit(model, [*others, joint], validation_data=VALIDATION, epochs=3)
    # From here the schedules of "pair" and, at step 10, "a" have ended: the weights stand still.
    comparing = [make(tmp_path) for make in COMPARING.values()]
    options = {"validation_data": VALIDATION, "initial_epoch": 3, "epochs": 5}
    fit(model, [*comparing, JointLossCallback()], **options)
