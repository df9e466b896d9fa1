"""`kj.diagnose`: real trainings with a fault and without, from history and from logs."""

import html
import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.backends import once_compiled
from tests.judged_logs import falling, flat, logs_of, turning
from tests.small_models import X, Y, compiled, ramp
from tests.training_logs import train, write, write_scalars

WEIGHTS = np.random.default_rng(3).normal(size=(5, 3)).astype("float32")
TARGETS = {"a": np.tanh(X @ WEIGHTS[:, :2]), "b": X @ WEIGHTS[:, 2:]}


def model_of(losses=None, weights=None, weighting=None, seed=0):
    """Returns a network with a shared layer and two regressions that can be learned."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(8, activation="tanh")(inputs)
    outputs = {"a": keras.layers.Dense(2)(hidden), "b": keras.layers.Dense(1)(hidden)}
    model = keras.Model(inputs, outputs)
    losses = {"a": "mse", "b": "mse"} | (losses or {})
    model.compile(keras.optimizers.Adam(0.01), **kj.joint_loss(losses, weights, weighting))
    return model


def fit(model, callbacks=None, y=Y, **options):
    """Returns what `fit` returns, by default with only a `JointLossCallback`."""
    callbacks = [kj.callbacks.JointLossCallback()] if callbacks is None else callbacks
    options = {"batch_size": 10, "shuffle": False, "verbose": 0, **options}
    return model.fit(X, y, callbacks=callbacks, **options)


def found(source):
    """Returns the term and kind of each fault."""
    return [(x.term, x.kind) for x in kj.diagnose(source).faults]


# What is trained does not depend on the backend.
@pytest.mark.backend("torch")
@pytest.mark.parametrize("weighting", [None, "uncertainty", "dynamic_weight_average"])
def test_healthy_trainings_have_no_fault(weighting):
    for seed in range(3):
        weights = {"b": kj.schedules.Linear(0.0, 1.0, 20)} if seed == 2 else None
        history = fit(
            model_of(weights=weights, weighting=weighting, seed=seed),
            y=TARGETS,
            epochs=15,
            validation_data=(X, TARGETS),
        )
        diagnosis = kj.diagnose(history)
        assert diagnosis.faults == [], seed
        assert [x.kind for x in diagnosis.findings if x.kind != "stands_still"] == ["drives"]


@once_compiled
@pytest.mark.filterwarnings("ignore:The loss of the term")
def test_constant_loss_of_a_real_training_stands_still():
    def constant(y_true, y_pred):
        return 0 * y_pred[:, 0] + 2.5

    history = fit(model_of({"b": constant}), y=TARGETS, epochs=4)
    assert found(history) == [("b", "stands_still")]
    (finding,) = kj.diagnose(history).faults
    assert finding.since == 1
    assert "has not changed since epoch 1, in which its mean of all steps was 2.5" in (
        finding.sentence
    )


def by_item(y_true, y_pred):
    return 1 + ops.square(y_true[:, 0]) + 0 * y_pred[:, 0]


def test_callback_warns_once_of_a_loss_that_never_falls_beside_one_that_does(recwarn):
    history = fit(model_of({"b": by_item}), y=TARGETS, epochs=9)
    (message,) = [str(x.message) for x in recwarn if "has not fallen" in str(x.message)]
    assert message.startswith("The loss of the term 'b' has not fallen since epoch 0: it was ")
    assert "while that of 'a' falls. Its targets may have nothing to do" in message
    assert found(history) == [("b", "stands_still")]
    # Not of a schedule that still gives it little, nor of one that is not to be trained.
    for weight in (kj.schedules.Linear(0.0, 1.0, 400), 0.0):
        fit(model := model_of({"b": by_item}, {"b": weight}), y=TARGETS, epochs=9)
    # Nor in a training that goes on, which may have learned it.
    model.compile("adam", **kj.joint_loss({"a": "mse", "b": by_item}))
    model.optimizer.iterations.assign(36)
    fit(model, y=TARGETS, initial_epoch=9, epochs=18)
    assert not [x for x in recwarn if "has not fallen" in str(x.message)][1:]


class Grows(kj.weighting.Weighting):
    """Gives the second term twice the weight in each step."""

    widest_ratio = float("inf")

    def update(self, losses, step):
        weight = ops.power(2.0, ops.cast(step, losses.dtype))
        return ops.stack([ops.ones_like(weight), weight])


def test_callback_warns_once_of_a_weight_that_runs_away():
    message = r"weight of the term 'b' has run away.*`max_weight`"
    with pytest.warns(UserWarning, match=message) as caught:
        history = fit(model_of(weighting=Grows()), y=TARGETS, epochs=8)
    assert sum("run away" in str(x.message) for x in caught) == 1
    assert ("b", "weight_ran_away") in found(history)


@once_compiled
@pytest.mark.filterwarnings("ignore:The weights of a joint loss that follow:UserWarning")
def test_history_without_a_callback_says_that_the_weights_did_not_move():
    history = fit(compiled(weights={"a": ramp()}), [], epochs=2)
    assert found(history) == [("a", "weight_never_moved")]
    (finding,) = kj.diagnose(history).faults
    assert "is 0 in all epochs, although its schedule is at 0.8 in epoch 2" in finding.sentence
    assert "JointLossCallback" in finding.advice
    history = fit(model_of(weighting="uncertainty"), [], y=TARGETS, epochs=3)
    assert found(history) == [(None, "weight_never_moved")]
    assert "Uncertainty" in kj.diagnose(history).faults[0].sentence
    # They do with it; and without the model nothing is known of a schedule.
    history = fit(compiled(weights={"a": ramp()}), epochs=2)
    assert found(history) == []
    assert found(fit(compiled(weights={"a": ramp()}), [], epochs=2).history) == []


@once_compiled
def test_history_of_a_model_that_trained_before_or_later_is_judged_by_its_own_steps():
    model = compiled(weights={"a": kj.schedules.Sequential([0.5, ramp()], [9])})
    first, second, third = (fit(model, epochs=2) for _ in range(3))
    assert [found(x) for x in (first, second, third)] == [[], [], []]
    assert first.history["a_weight"] == [0.5, 0.5]


@once_compiled
@pytest.mark.filterwarnings("ignore:The weights of a joint loss that follow:UserWarning")
def test_history_of_a_model_that_was_compiled_again_is_judged_without_it():
    model = compiled(weights={"a": ramp()})
    history = fit(model, [], epochs=2)
    model.compile("sgd", {"a": "mse", "b": "sparse_categorical_crossentropy"})
    assert found(history) == []


@once_compiled
def test_logs_and_history_of_a_training_agree(tmp_path):
    history = train(tmp_path / "one")
    expected = kj.diagnose(history)
    logged = kj.diagnose(tmp_path)
    assert [*logged.by_run] == ["one"]
    assert [(x.term, x.kind, x.since) for x in logged.findings] == [
        (x.term, x.kind, x.since) for x in expected.findings
    ]
    assert expected.findings[0].kind == "drives"
    several = kj.diagnose({"first": history, "second": tmp_path / "one"})
    assert [*several.by_run] == ["first", "second"]
    assert [x.sentence for x in several.by_run["first"]] == [
        x.sentence for x in several.by_run["second"]
    ]
    # Points of some batches count by the number of their batches.
    often = train(tmp_path / "often", update_freq=3)
    assert [x.sentence for x in kj.diagnose(tmp_path / "often").findings] == [
        x.sentence for x in kj.diagnose(often).findings
    ]


def test_running_training_is_judged_up_to_its_last_epoch(tmp_path):
    write(tmp_path, ["a", "b"], steps=8)
    write_scalars(tmp_path, ({"joint_loss/total": float("nan")}, 9))
    assert kj.diagnose(tmp_path).faults == []


def test_logs_without_epochs_are_judged_by_steps(tmp_path):
    losses = {"a": falling(90, time=20.0), "b": flat(90)}
    points = [
        (
            {
                "joint_loss/total": sum(x[i] for x in losses.values()),
                **{f"joint_loss/{name}/raw": x[i] for name, x in losses.items()},
                **{f"joint_loss/{name}/weighted": x[i] for name, x in losses.items()},
                **{f"joint_loss/{name}/weight": 1.0 for name in losses},
            },
            10 * i + 10,
        )
        for i in range(90)
    ]
    write_scalars(tmp_path, *points)
    (fault,) = kj.diagnose(tmp_path).faults
    assert (fault.term, fault.kind) == ("b", "stands_still")
    assert "since step 10" in fault.sentence


def test_text_and_html_say_what_is_found_and_what_to_do():
    train_losses = {"a": falling(20), "<b>": falling(20, 1)}
    diagnosis = kj.diagnose(logs_of(train_losses, {"a": falling(20, 2), "<b>": turning(20, 8)}))
    text = str(diagnosis)
    assert repr(diagnosis) == text
    assert text.startswith("! The term '<b>' is overfitted since epoch")
    assert "(Guide: examples/guides/weighting.py)" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100
    shown = diagnosis._repr_html_()
    assert "<b>" not in shown
    plain = re.sub("<[^>]+>", "", shown)
    assert html.unescape(plain).startswith("The term '<b>' is overfitted")
    assert [*diagnosis.by_term] == ["<b>", "a"]
    assert [x.kind for x in diagnosis.by_term["<b>"]] == ["overfitted"]
    assert [x.kind for x in diagnosis.findings] == ["overfitted", "drives"]


def test_text_says_when_it_is_too_early_to_judge():
    losses = {"a": falling(3), "b": falling(3, 1)}
    text = str(kj.diagnose(logs_of(losses)))
    assert "No fault is found in 3 epochs. Whether losses still fall" in text
    text = str(kj.diagnose({"one": logs_of(losses), "two": logs_of({"a": falling(9)})}))
    assert text.splitlines()[0] == "one:"
    assert text.endswith("two:\nNo fault is found in 9 epochs.")
    shown = kj.diagnose({"one": logs_of(losses), "two": logs_of({"a": falling(9)})}).to_html()
    assert shown.endswith("<h4>two</h4><p>No fault is found in 9 epochs.</p>")


@pytest.mark.parametrize("source", [None, 3, {"loss": [1.0]}, {}, "nowhere"])
def test_other_sources_are_refused(source):
    with pytest.raises(ValueError, match=r"Invalid value for argument|no event file"):
        kj.diagnose(source)
