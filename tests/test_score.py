"""The score over tasks: its value, its place in the logs, its directions, and what is refused."""

import copy

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback, RetrievalEvaluation
from keras_jointloss.callbacks.joint._score import relative_gain
from tests.backends import once_compiled
from tests.callbacks import CrashError, Interrupts
from tests.small_models import X, Y, build, fit, linear
from tests.summaries import read_scalars

BASELINES = {"val_a_mae": 0.5, "val_b_accuracy": 0.25}
VALIDATION = (X[:20], {name: y[:20] for name, y in Y.items()})


def scored(metrics=None, optimizer="adam"):
    """Returns a compiled model with the metrics of `BASELINES`."""
    model = build()
    metrics = metrics or {"a": ["mae"], "b": ["accuracy"]}
    losses = {"a": "mse", "b": "sparse_categorical_crossentropy"}
    model.compile(optimizer, **kj.joint_loss(losses, metrics=metrics))
    return model


def expected(history, baselines=BASELINES):
    """Returns the score of each epoch, by the formula."""
    error, accuracy = (np.array(history[name]) for name in baselines)
    of_error, of_accuracy = baselines.values()
    return ((of_error - error) / of_error + (accuracy - of_accuracy) / of_accuracy) / 2


def test_callbacks_before_and_after_find_the_score(tmp_path):
    model = scored()
    stop = keras.callbacks.EarlyStopping("joint_score", mode="max", patience=1, min_delta=10.0)
    path = tmp_path / "best.weights.h5"
    best = keras.callbacks.ModelCheckpoint(path, "joint_score", 0, True, True, mode="max")
    table = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    joint = JointLossCallback(tmp_path, score=BASELINES)
    callbacks = [stop, joint, best, table]
    history = fit(model, callbacks, validation_data=VALIDATION, epochs=4)
    assert len(history["joint_score"]) == 2  # No epoch is better than the first by 10.
    assert history["joint_score"] == pytest.approx(expected(history), rel=1e-6)
    assert best.best == pytest.approx(max(history["joint_score"]))
    assert "joint_score" in (tmp_path / "log.csv").read_text()
    written = read_scalars(tmp_path / "validation")["joint_loss/score"]
    assert list(written.values()) == pytest.approx(history["joint_score"], rel=1e-6)
    figure = kj.plot([tmp_path, tmp_path], "pareto", a="joint_loss/score", b="a")
    assert "larger is better" in figure.layout.xaxis.title.text


@once_compiled
def test_epochs_without_validation_have_no_score():
    score = {"val_a_mae": 0.5, "b_accuracy": 0.25}
    options = {"validation_data": VALIDATION, "validation_freq": 2, "epochs": 4}
    history = fit(scored(), [JointLossCallback(score=score)], **options)
    rows = {"val_a_mae": history["val_a_mae"], "b_accuracy": history["b_accuracy"][1::2]}
    assert len(rows["val_a_mae"]) == 2
    assert history["joint_score"] == pytest.approx(expected(rows, score), rel=1e-6)


@once_compiled
def test_score_of_training_needs_no_validation(tmp_path):
    score = {"a_mae": 0.5, "b_accuracy": 0.25}
    history = fit(scored(), [JointLossCallback(tmp_path, score=score)])
    assert history["joint_score"] == pytest.approx(expected(history, score), rel=1e-6)
    assert "joint_loss/score" in read_scalars(tmp_path / "train")


@once_compiled
def test_tasks_count_alike_however_many_values_they_have():
    """The improvement that LibMTL reports, a fraction: a mean over tasks of means over metrics."""
    score = {"a": {"val_a_mae": 0.5, "val_a_loss": 2.0}, "val_b_accuracy": ("max", 0.25)}
    callback = copy.deepcopy(JointLossCallback(score=score))  # As tuners of hyperparameters do.
    logs = fit(scored(), [callback], validation_data=VALIDATION)
    error, loss, accuracy = (logs[x][0] for x in ("val_a_mae", "val_a_loss", "val_b_accuracy"))
    of_a = ((0.5 - error) / 0.5 + (2.0 - loss) / 2.0) / 2
    assert logs["joint_score"] == [pytest.approx((of_a + (accuracy - 0.25) / 0.25) / 2, rel=1e-6)]


@pytest.mark.parametrize(
    ("value", "baseline", "mode", "gain"),
    [(0.6, 0.5, "max", 0.2), (0.6, 0.5, "min", -0.2), (-1.0, -2.0, "max", 0.5)],
)
def test_gain_is_positive_if_better_whatever_the_sign(value, baseline, mode, gain):
    assert relative_gain(value, baseline, mode) == pytest.approx(gain)


@once_compiled
def test_values_of_retrieval_count_wherever_its_callback_stands():
    inputs = keras.Input((5,))
    towers = [keras.layers.Dense(3)(inputs) for _ in range(2)]
    model = keras.Model(inputs, {"pair": keras.ops.stack(towers, axis=1)})
    metrics = {"pair": [kj.metrics.RecallAtK(name="found"), kj.metrics.Uniformity()]}
    model.compile("adam", **kj.joint_loss({"pair": "info_nce"}, metrics=metrics))
    score = {"pair_recall_at_1": 0.5, "pair_median_rank": 10.0, "found": 0.5, "uniformity": -1.0}
    stop = keras.callbacks.EarlyStopping("joint_score", mode="max", patience=5)
    # By default Keras asks a metric in which direction it is better.
    found, uniform = (keras.callbacks.EarlyStopping(x, patience=5) for x in ("found", "uniformity"))
    y = {"pair": np.zeros(40)}
    callbacks = [stop, found, JointLossCallback(score=score), RetrievalEvaluation(X, k=1), uniform]
    history = fit(model, callbacks, y, epochs=2)
    signs = np.array([1, -1, 1, -1])
    values = np.array([history[name] for name in score]).T
    baselines = np.array(list(score.values()))
    gains = signs * (values - baselines) / abs(baselines)
    assert history["joint_score"] == pytest.approx(gains.mean(axis=1), rel=1e-6)
    assert stop.best == max(history["joint_score"])
    assert (found.best, uniform.best) == (max(history["found"]), min(history["uniformity"]))

    seldom = [JointLossCallback(score=score), RetrievalEvaluation(X, k=1, every=2)]
    history = fit(model, seldom, y, epochs=4)
    assert len(history["joint_score"]) == len(history["pair_median_rank"]) == 2


@once_compiled
def test_score_goes_on_after_a_crash(tmp_path):
    def train(*others):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        joint = JointLossCallback(score=BASELINES)
        options = {"validation_data": VALIDATION, "epochs": 3}
        return fit(scored(), [joint, backup, *others], **options)

    with pytest.raises(CrashError):
        train(Interrupts(epoch=2))
    history = train()
    assert len(history["joint_score"]) == 1
    assert history["joint_score"] == pytest.approx(expected(history), rel=1e-6)


REFUSED = [
    *(3, {}, ["val_a_mae"], {1: 0.5}, {"a": {}}, {"a": "high"}, {"a": True}),
    *({"a": 0}, {"a": float("nan")}, {"a": float("inf")}, {"a": ("up", 0.5)}, {"a": ("max", 0)}),
    *({"a": ("max",)}, {"task": {"a": 0.0}}),
]


@pytest.mark.parametrize("score", REFUSED, ids=str)
def test_invalid_score_is_refused(score):
    with pytest.raises(ValueError, match="Invalid value for argument `score"):
        JointLossCallback(score=score)


def unknown(y_true, y_pred):
    return keras.ops.mean(y_pred)


@once_compiled
@pytest.mark.parametrize(
    ("score", "options", "message"),
    [
        ({"val_a_mea": 0.5}, {"validation_data": VALIDATION}, r"'val_a_mae'.*\['val_a_mea'\]"),
        ({"a_mea": 0.5}, {}, r"'a_mae'.*unknown names \['a_mea'\]"),
        ({"val_a_mae": 0.5}, {}, r"no `validation_data`.*\['val_a_mae'\]"),
        ({"a_unknown": 0.5}, {}, r"`score\['a_unknown'\]`.*\('max', baseline\)"),
    ],
    ids=["misspelt", "misspelt_of_training", "not_validated", "no_direction"],
)
def test_score_of_unknown_values_is_refused(score, options, message):
    model = scored({"a": ["mae", unknown], "b": ["accuracy"]})
    with pytest.raises(ValueError, match=message):
        fit(model, [JointLossCallback(score=score)], **options)


@once_compiled
def test_score_that_never_was_warns():
    options = {"validation_data": VALIDATION, "validation_freq": 2}
    with pytest.warns(UserWarning, match=r"no 'joint_score'.*\['val_a_mae', 'val_b_accuracy'\]"):
        fit(scored(), [JointLossCallback(score=BASELINES)], **options)


@once_compiled
def test_score_must_not_have_the_name_of_a_metric():
    model = linear(("joint",))
    metrics = {"joint": keras.metrics.MeanAbsoluteError(name="joint_score")}
    model.compile("adam", **kj.joint_loss({"joint": "mse"}, metrics=metrics))
    with pytest.raises(ValueError, match=r"`score`.*'joint_score' in the logs is a value"):
        fit(model, [JointLossCallback(score={"loss": 1.0})], {"joint": Y["a"][:, :1]})
