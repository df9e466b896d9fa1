"""The callback: logged values, resumed training and errors."""

import re

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PolynomialDecay

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback
from tests import small_models
from tests.backends import once_compiled
from tests.callbacks import CrashError, Evaluates, Interrupts
from tests.comparisons import approx_logs, assert_all_close
from tests.subjects import DATA
from tests.summaries import read_layout, read_scalars

ITEMS = 44
BATCH = 8
STEPS = 6  # Per epoch. The last batch has 4 items.
X = DATA["features"][:ITEMS]
Y = {"label": DATA["label"][:ITEMS], "rating": DATA["rating"][:ITEMS]}
FADE_IN = PolynomialDecay(0.0, 15, 1.0)
TERMS = {"label", "rating", "pair"}


def make_model(regularizer="l2", **compile_arguments):
    """Returns a model with two output terms and a layer term, two of which are annealed."""
    keras.utils.set_random_seed(2)
    inputs = keras.Input((6,))
    a = keras.layers.Dense(4, kernel_regularizer=regularizer, name="heavy")(inputs)
    b = keras.layers.Dense(4)(inputs)
    a, b = kj.layers.ContrastiveTerm("MeanSquaredError", weight=FADE_IN, name="pair")((a, b))
    outputs = {
        "label": keras.layers.Dense(3, activation="softmax")(a),
        "rating": keras.layers.Dense(1)(b),
    }
    model = keras.Model(inputs, outputs)
    joint = kj.joint_loss(
        {"label": "sparse_categorical_crossentropy", "rating": "mse"},
        weights={"label": kj.schedules.Linear(1.0, 0.0, 15), "rating": 0.25},
    )
    model.compile(keras.optimizers.SGD(0.05), **joint, **compile_arguments)
    return model


def fit(model, *callbacks, **options):
    options = {"batch_size": BATCH, "epochs": 2, **options}
    return small_models.fit(model, list(callbacks), Y, X, **options)


def regularization(model) -> float:
    """Returns the loss of the regularizer for the current weights."""
    kernel = ops.convert_to_numpy(model.layers[1].kernel.value)
    return 0.01 * float(np.sum(kernel.astype("float64") ** 2))


class RecordsRegularization(keras.callbacks.Callback):
    """Records the regularization loss before each step, and the number of items of the step."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def on_train_batch_begin(self, batch, logs=None):
        self.steps.append((regularization(self.model), min(BATCH, ITEMS - batch * BATCH)))

    def mean(self, start, end):
        """Returns the mean over the items from one training step to another."""
        values, items = zip(*self.steps[start:end], strict=True)
        return np.average(values, weights=items)


@pytest.mark.parametrize(
    "update_freq",
    [pytest.param("epoch", marks=once_compiled), "batch", pytest.param(4, marks=once_compiled)],
)
def test_logged_values_are_consistent(update_freq, tmp_path):
    model, others = make_model(), RecordsRegularization()
    callback = JointLossCallback(tmp_path, update_freq)
    history = fit(model, others, callback, epochs=3, validation_data=(X, Y))
    train, validation = read_scalars(tmp_path / "train"), read_scalars(tmp_path / "validation")
    steps = {"epoch": [6, 12, 18], "batch": list(range(1, 19)), 4: [4, 6, 8, 12, 16, 18]}[
        update_freq
    ]
    assert sorted(train["joint_loss/total"]) == steps
    assert sorted(validation["joint_loss/total"]) == [6, 12, 18]
    starts = {step: max([0, *(x for x in (*steps, 6, 12) if x < step)]) for step in steps}
    trained = {step: others.mean(start, step) for step, start in starts.items()}
    for run, means in ((train, trained), (validation, None)):
        for step, total in run["joint_loss/total"].items():
            weighted = sum(run[f"joint_loss/{term}/weighted"][step] for term in TERMS)
            if means is not None:
                assert total == pytest.approx(weighted + means[step], rel=1e-6)
                assert run["joint_loss/other"][step] == pytest.approx(means[step], rel=1e-4)
            parts = [run[f"joint_loss/{part}/share"][step] for part in (*TERMS, "other")]
            assert sum(parts) == pytest.approx(1.0, abs=1e-6)
            for term in TERMS:
                share = run[f"joint_loss/{term}/weighted"][step] / total
                assert run[f"joint_loss/{term}/share"][step] == pytest.approx(share, 1e-5, 1e-7)
    # During evaluation, the weights and the model do not change.
    for term in TERMS:
        for step, weighted in validation[f"joint_loss/{term}/weighted"].items():
            weight, raw = (validation[f"joint_loss/{term}/{x}"][step] for x in ("weight", "raw"))
            assert weighted == pytest.approx(weight * raw, rel=1e-6, abs=1e-9)
            epoch = step // STEPS - 1
            assert history[f"val_{term}_weight"][epoch] == pytest.approx(weight)
            assert train[f"joint_loss/{term}/weight"][step] == pytest.approx(weight)
    last = sum(validation[f"joint_loss/{term}/weighted"][18] for term in TERMS)
    total = validation["joint_loss/total"][18]
    assert total == pytest.approx(last + regularization(model), rel=1e-6)
    other = validation["joint_loss/other"][18]
    assert other == pytest.approx(regularization(model), rel=1e-4)
    assert total == pytest.approx(history["val_loss"][-1], rel=1e-6)


@pytest.fixture(scope="module")
def validated(tmp_path_factory):
    """Returns the history and the TensorBoard folder of two validated epochs."""
    folder = tmp_path_factory.mktemp("validated")
    stopping = keras.callbacks.EarlyStopping("val_pair_loss", mode="min", restore_best_weights=True)
    callbacks = [keras.callbacks.TensorBoard(folder), JointLossCallback(folder), stopping]
    return fit(make_model(), *callbacks, validation_data=(X, Y)), folder


@once_compiled
def test_custom_scalars_show_all_terms_in_one_chart(validated):
    _, folder = validated
    tags = list(read_scalars(folder / "train"))
    (category,) = read_layout(folder / "train").category
    charts = {chart.title: list(chart.multiline.tag) for chart in category.chart}
    assert set(charts) == {"weighted", "raw", "weight", "share"}
    for key, patterns in charts.items():
        shown = {tag for tag in tags if any(re.match(pattern, tag) for pattern in patterns)}
        expected = {f"joint_loss/{term}/{key}" for term in TERMS}
        other = {f"joint_loss/other/heavy/{key}"} if key in ("weighted", "share") else set()
        other |= {"weighted": {"joint_loss/other"}, "share": {"joint_loss/other/share"}}.get(
            key, other
        )
        assert shown - {"joint_loss/total"} == expected | other


@once_compiled
def test_works_with_keras_tensorboard_callback(validated):
    _, folder = validated
    train = read_scalars(folder / "train")
    assert {"epoch_loss", "joint_loss/total"} <= set(train)
    losses = [list(train[tag].values()) for tag in ("epoch_loss", "joint_loss/total")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Returns the history and the TensorBoard scalars of four epochs of training."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    history = fit(make_model(), JointLossCallback(folder), epochs=4)
    return history, read_scalars(folder / "train")


@pytest.mark.parametrize("order", ["before", pytest.param("after", marks=once_compiled)])
def test_backup_and_restore_resumes_at_the_right_step(order, tmp_path, uninterrupted):
    def callbacks(run):
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)
        ours = JointLossCallback(tmp_path / run)
        return [ours, backup] if order == "before" else [backup, ours]

    whole_history, whole_scalars = uninterrupted
    with pytest.raises(CrashError):
        fit(make_model(), *callbacks("first"), Interrupts(epoch=2), epochs=4)
    model = make_model()
    history = fit(model, *callbacks("second"), epochs=4)
    for key in ("label_weight", "pair_weight", "loss"):
        assert history[key] == pytest.approx(whole_history[key][2:], rel=1e-5)
    resumed = read_scalars(tmp_path / "second/train")
    assert sorted(resumed["joint_loss/total"]) == [18, 24]
    for tag, values in resumed.items():
        for step, value in values.items():
            assert value == pytest.approx(whole_scalars[tag][step], rel=1e-5)


def test_loaded_model_resumes_like_the_saved_one(tmp_path):
    model = make_model()
    fit(model, JointLossCallback())
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = fit(model, JointLossCallback(), initial_epoch=2, epochs=3)
    actual = fit(loaded, JointLossCallback(tmp_path), initial_epoch=2, epochs=3)
    assert actual == approx_logs(expected)
    assert sorted(read_scalars(tmp_path / "train")["joint_loss/total"]) == [18]


# On JAX, Keras cannot evaluate in the middle of an epoch.
in_an_epoch = pytest.param(2, marks=pytest.mark.backend("tensorflow", "torch"))


@pytest.mark.parametrize("batch", [in_an_epoch, None])
def test_evaluation_during_training_changes_no_weight(batch):
    history = fit(make_model(), Evaluates(X, Y, batch=batch), JointLossCallback())
    assert history["pair_weight"] == pytest.approx([6 / 15, 12 / 15])
    assert history["label_weight"] == pytest.approx([9 / 15, 3 / 15])


def test_callback_logs_on_after_an_evaluation_with_it(tmp_path):
    model = make_model()
    callback = JointLossCallback(str(tmp_path))
    history = fit(model, callback, Evaluates(X, Y, callbacks=[callback]), epochs=3)
    logged = read_scalars(tmp_path / "train")["joint_loss/label/weight"]
    expected = dict(zip([STEPS, 2 * STEPS, 3 * STEPS], history["label_weight"], strict=True))
    assert logged == {step: pytest.approx(weight) for step, weight in expected.items()}


def test_evaluation_after_interrupted_fit_changes_no_weight():
    model = make_model()
    with pytest.raises(CrashError):
        fit(model, JointLossCallback(), Interrupts(epoch=2), epochs=4)
    model.evaluate(X, Y, verbose=0)
    assert float(model.loss["label"].weight) == pytest.approx(3 / 15)
    fit(model, JointLossCallback(), epochs=1)
    assert float(model.loss["label"].weight) == pytest.approx(0.0)


# On JAX and PyTorch, Keras builds the losses and metrics, and fails, before any callback runs.
UNKNOWN_OUTPUT = r"(?s)'first'.*Received.*'third'|'first'.*found.*'third'"


@pytest.mark.parametrize(
    ("kind", "losses", "message"),
    [
        *((kind, ("first", "third"), UNKNOWN_OUTPUT) for kind in ("dict", "list", "single")),
        ("list", ("first",), r"'first', 'second'.*'first'"),
    ],
)
def test_losses_that_are_not_those_of_the_outputs_are_refused(kind, losses, message):
    inputs = keras.Input((6,))
    outputs = {name: keras.layers.Dense(1, name=name)(inputs) for name in ("first", "second")}
    kinds = {"dict": outputs, "list": list(outputs.values()), "single": outputs["first"]}
    model = keras.Model(inputs, kinds[kind])
    model.compile("sgd", **kj.joint_loss(dict.fromkeys(losses, "mse")))
    y = [Y["rating"]] * 2 if len(losses) == 1 else Y["rating"]
    with pytest.raises(ValueError, match=message):
        model.fit(X, y, verbose=0, callbacks=[JointLossCallback()])


def test_unwritable_log_dir_is_refused_before_first_step(tmp_path):
    (tmp_path / "file").write_text("in the way")
    model = make_model()
    before = model.get_weights()
    with pytest.raises(OSError, match="file"):
        fit(model, JointLossCallback(tmp_path / "file"))
    assert_all_close(model.get_weights(), before, 0)


@pytest.mark.parametrize("update_freq", ["step", 0, -1, 2.5, True, None])
def test_invalid_update_freq_is_refused(update_freq):
    with pytest.raises(ValueError, match=r"`update_freq`.*'epoch', 'batch' or a number of batches"):
        JointLossCallback(update_freq=update_freq)
