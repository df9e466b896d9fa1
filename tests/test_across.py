"""Losses over several outputs and their targets."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint.find_terms import find_terms
from keras_jointloss.terms import LossAcross
from tests.backends import values_only
from tests.comparisons import approx_logs, assert_all_close
from tests.refusals import refuses
from tests.small_models import copies_of, fit, ramp
from tests.summaries import read_scalars

GENERATOR = np.random.default_rng(0)
ITEMS = 37  # The last of the batches of 10 is smaller.
X = GENERATOR.normal(size=(ITEMS, 5)).astype("float32")
Y = {
    "box": GENERATOR.uniform(size=(ITEMS, 4)).astype("float32"),
    "score": GENERATOR.integers(0, 2, (ITEMS, 1)).astype("float32"),
    "label": GENERATOR.integers(0, 3, ITEMS),
}
LOSSES = {"box": "mse", "label": "sparse_categorical_crossentropy"}
NAMES = list(Y)


@keras.saving.register_keras_serializable(package="keras_jointloss.tests")
def overlap(y, p):
    """Returns, for each item, how far a box and its score are from their targets together."""
    error = ops.mean(ops.square(y["box"] - p["box"]), axis=-1)
    return ops.squeeze(ops.square(y["score"] - p["score"]) + p["score"], -1) * (1 + error)


@keras.saving.register_keras_serializable(package="keras_jointloss.tests")
def mean_overlap(y, p):
    return ops.mean(overlap(y, p))


@keras.saving.register_keras_serializable(package="keras_jointloss.tests")
class Overlap(keras.losses.Loss):
    def call(self, y_true, y_pred):
        return overlap(y_true, y_pred)


ACROSS = {"iou": (overlap, ["box", "score"])}


def outputs_of(hidden):
    return {
        "box": keras.layers.Dense(4, name="box")(hidden),
        "score": keras.layers.Dense(1, activation="sigmoid", name="score")(hidden),
        "label": keras.layers.Dense(3, activation="softmax", name="label")(hidden),
    }


def detector(form="dict", model_class=keras.Model):
    """Returns a model with the outputs box, score and label, as a dict or as a list."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    outputs = outputs_of(keras.layers.Dense(6, activation="tanh", name="hidden")(inputs))
    return model_class(inputs, outputs if form == "dict" else list(outputs.values()))


@keras.saving.register_keras_serializable(package="keras_jointloss.tests")
class Unnamed(keras.Model):
    """Returns the outputs of a detector in a list without names."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = detector()

    def call(self, inputs):
        outputs = self.inner(inputs)
        return [outputs[name] for name in NAMES]


class Overridden(keras.Model):
    """Computes the loss as users do without the package."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not isinstance(y_pred, dict):
            y, y_pred = (dict(zip(NAMES, values, strict=True)) for values in (y, y_pred))
            if sample_weight is not None:
                sample_weight = dict(zip(NAMES, sample_weight, strict=True))
        weight = dict.fromkeys(NAMES, 1.0) if sample_weight is None else sample_weight
        losses = {
            "box": keras.losses.mean_squared_error(y["box"], y_pred["box"]),
            "label": keras.losses.sparse_categorical_crossentropy(y["label"], y_pred["label"]),
        }
        total = sum(ops.mean(weight[name] * loss) for name, loss in losses.items())
        both = ops.minimum(weight["box"], weight["score"])
        return total + 2.0 * ops.mean(both * overlap(y, y_pred))


def in_form(values, form):
    return values if form == "dict" else list(values.values())


@pytest.mark.parametrize(
    ("form", "loss", "is_weighted"),
    [("dict", overlap, True), ("list", Overlap(), False), ("unnamed", mean_overlap, False)],
    ids=["dict", "list", "unnamed"],
)
def test_equals_an_overridden_compute_loss(form, loss, is_weighted, tmp_path):
    model = Unnamed() if form == "unnamed" else detector(form)
    model(X)
    joint = kj.joint_loss(
        {name: LOSSES.get(name) for name in NAMES},
        {"iou": 2.0},
        across={"iou": (loss, ["box", "score"])},
        outputs="list" if form == "unnamed" else None,
    )
    model.compile(keras.optimizers.SGD(0.1), **joint)
    expected = detector(form, Overridden)
    expected.compile(keras.optimizers.SGD(0.1))
    options = {"batch_size": 10, "verbose": 0}
    if is_weighted:
        weight = {name: GENERATOR.uniform(size=ITEMS).astype("float32") for name in NAMES}
        options["sample_weight"] = in_form(weight, form)
    data = X, in_form(Y, form)
    for each in (model, expected):
        each.fit(*data, epochs=2, shuffle=False, **options)
    for layer in expected.layers[1:]:
        own = getattr(model, "inner", model).get_layer(layer.name).get_weights()
        assert_all_close(own, layer.get_weights(), 1e-6, 1e-6)
    options["batch_size"] = ITEMS
    total = expected.evaluate(*data, **options)
    assert model.evaluate(*data, **options, return_dict=True)["loss"] == pytest.approx(total, 1e-6)
    if form == "dict":
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        found = loaded.evaluate(*data, **options, return_dict=True)
        assert found["loss"] == pytest.approx(total, 1e-6)
        assert found["iou_weight"] == 2.0


def value_of(model):
    """Returns the mean of `overlap` over all items."""
    return float(mean_overlap(tensors(Y), tensors(model.predict(X, verbose=0))))


def tensors(values):
    return {name: ops.convert_to_tensor(x, "float32") for name, x in values.items()}


def test_logs_and_summaries_are_those_of_a_term(tmp_path):
    model = detector()
    model.compile(
        keras.optimizers.SGD(0.0), **kj.joint_loss(LOSSES, {"iou": ramp()}, across=ACROSS)
    )
    assert [*find_terms(model)] == ["box", "label", "iou"]
    assert float(model.loss["iou"].weight) == 0
    callback = kj.callbacks.JointLossCallback(str(tmp_path))
    history = fit(model, [callback], Y, X, validation_data=(X, Y))
    values = {f"{term}_{x}" for term in ("box", "label", "iou") for x in ("loss", "weight")}
    shares = {f"{term}_share" for term in ("box", "label", "iou")}
    run = {"loss", *values, *shares}
    assert set(history) == run | {f"val_{name}" for name in run}
    expected = value_of(model)
    assert history["iou_loss"] == pytest.approx([expected], 1e-5)
    assert history["val_iou_loss"] == pytest.approx([expected], 1e-5)
    assert history["iou_weight"] == pytest.approx([0.4])
    scalars = read_scalars(tmp_path / "train")
    assert scalars["joint_loss/iou/raw"][4] == pytest.approx(expected, 1e-5)
    assert callback.summary().runs["train"].terms["iou"].raw == pytest.approx(expected, 1e-5)
    assert model.evaluate(X, Y, verbose=0)[0] > 0


@values_only
@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("losses", [{}, dict.fromkeys(NAMES)])
def test_outputs_need_no_loss_of_their_own(losses):
    model = detector()
    model.compile(keras.optimizers.SGD(0.1), **kj.joint_loss(losses, across=ACROSS))
    before = [layer.get_weights() for layer in model.layers]
    history = fit(model, (), Y, X)
    assert set(history) == {"loss", "iou_loss", "iou_weight"}
    assert history["loss"] == history["iou_loss"]
    moved = {
        layer.name
        for layer, old in zip(model.layers, before, strict=True)
        if any((a != b).any() for a, b in zip(layer.get_weights(), old, strict=True))
    }
    assert moved == {"hidden", "box", "score"}


def test_copies_continue_schedule_and_rule(tmp_path):
    model = detector()
    across = {**ACROSS, "other": (Overlap(), ["score", "box"])}
    joint = kj.joint_loss(LOSSES, {"iou": ramp()}, "uncertainty", across=across)
    model.compile(keras.optimizers.SGD(0.01), **joint)
    clone, loaded = copies_of(model, tmp_path)
    expected = fit(model, None, Y, X, epochs=2)
    for copy in (clone, loaded):
        assert copy.loss["iou"].weight is find_terms(copy)["iou"]
        assert fit(copy, None, Y, X, epochs=2) == approx_logs(expected, 1e-4)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
def test_missing_targets_leave_out_items():
    y = {name: values.copy() for name, values in Y.items()}
    y["box"][::3, 1] = np.nan
    y["score"][::4] = -1
    labelled = (np.arange(ITEMS) % 3 > 0) & (np.arange(ITEMS) % 4 > 0)
    model = detector()
    missing = {"box": float("nan"), "score": -1}
    joint = kj.joint_loss({}, missing=missing, across=ACROSS)
    model.compile(keras.optimizers.SGD(0.1), **joint)
    other = detector()
    other.compile(keras.optimizers.SGD(0.1), **kj.joint_loss({}, across=ACROSS))
    history = fit(model, None, y, X, batch_size=ITEMS)
    subset = {name: values[labelled] for name, values in Y.items()}
    expected = fit(other, None, subset, X[labelled], batch_size=ITEMS)
    assert history["iou_labelled"] == pytest.approx([labelled.mean()])
    for name in ("iou_labelled_loss", "iou_loss", "loss"):
        assert history[name] == pytest.approx(expected["iou_loss"], 1e-5)
    assert_all_close(model.get_weights(), other.get_weights(), 1e-5, 1e-6)


WEIGHT = GENERATOR.uniform(0.5, 2, ITEMS).astype("float32")
OTHER = GENERATOR.uniform(0.5, 2, ITEMS).astype("float32")
ELEMENTS = GENERATOR.uniform(0.5, 2, (ITEMS, 4)).astype("float32")


@values_only
@pytest.mark.parametrize(
    ("sample_weight", "expected"),
    [
        (WEIGHT, WEIGHT),
        ({"box": WEIGHT, "score": WEIGHT[:, None], "label": OTHER}, WEIGHT),
        ({"box": WEIGHT, "score": OTHER}, np.minimum(WEIGHT, OTHER)),
        ({"box": None, "score": OTHER}, OTHER),
        ({"box": ELEMENTS, "score": WEIGHT}, np.minimum(ELEMENTS.mean(1), WEIGHT)),
        ({"box": None, "score": None}, np.ones(ITEMS)),
    ],
    ids=["one", "same", "smallest", "one_of_two", "elements", "none"],
)
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight", "sum"])
@pytest.mark.parametrize("missing", [None, {"box": -9.0}])
def test_smallest_weight_of_an_item_applies(sample_weight, expected, reduction, missing):
    predictions = {name: values * 0.5 + 0.1 for name, values in Y.items()}
    values = ops.convert_to_numpy(overlap(tensors(Y), tensors(predictions)))
    loss = LossAcross(
        Overlap(reduction=reduction), kj.LossWeight(), "iou", ["box", "score"], missing=missing
    )
    total = np.sum(expected * values)
    divisor = {"sum": 1, "mean_with_sample_weight": expected.sum()}.get(reduction, ITEMS)
    found = loss(Y, predictions, sample_weight)
    assert float(found) == pytest.approx(total / divisor, 1e-5)


@values_only
def test_gradients_of_copies_are_those_of_the_outputs():
    def model_of(terms, outputs):
        keras.utils.set_random_seed(1)
        inputs = keras.Input((5,))
        z = kj.layers.GradientBalancer(terms)(keras.layers.Dense(6)(inputs))
        heads = {name: outputs_of(copy)[name] for name, copy in outputs(z).items()}
        model = keras.Model(inputs, heads)
        joint = kj.joint_loss({"label": LOSSES["label"]}, across=ACROSS)
        model.compile(keras.optimizers.SGD(0.1), **joint)
        return model

    def of_outputs(z):
        return {name: z[name] for name in NAMES}

    def of_terms(z):
        return {"box": z["iou"], "score": z["iou"], "label": z["label"]}

    history = fit(model_of(NAMES, of_outputs), None, Y, X)
    assert {f"gradients_{name}_norm" for name in NAMES} <= set(history)
    history = fit(model_of(["iou", "label"], of_terms), None, Y, X)
    assert history["gradients_iou_norm"][0] > 0
    with pytest.raises(ValueError, match="the term 'iou' to read its own copy"):
        fit(model_of(["iou", *NAMES], of_outputs), None, Y, X)


def given(losses=None, **options):
    return kj.joint_loss({"box": "mse", "label": "mse"} if losses is None else losses, **options)


test_joint_loss_refuses = refuses(
    given,
    ({"across": {}}, "`across`. Expected a non-empty dict"),
    ({"across": [overlap]}, "`across`. Expected a non-empty dict"),
    ({"across": {"iou": overlap}}, "a loss and the names of its outputs"),
    ({"across": {"iou": ("mse", ["box", "score"])}}, "the loss of 'iou' to be a function"),
    ({"across": {"iou": (Overlap, ["box", "score"])}}, "the loss of 'iou' to be a function"),
    ({"across": {"iou": (3, ["box", "score"])}}, "the loss of 'iou' to be a function"),
    ({"across": {"iou": (overlap, "box")}}, "two or more different outputs for 'iou'"),
    ({"across": {"iou": (overlap, ["box"])}}, "two or more different outputs for 'iou'"),
    ({"across": {"iou": (overlap, ["box", "box"])}}, "two or more different outputs for 'iou'"),
    ({"across": {"box": (overlap, ["box", "score"])}}, "names of terms that no output"),
    ({"across": {"score": (overlap, ["box", "score"])}}, "names of terms that no output"),
    ({"across": {2: (overlap, ["box", "score"])}}, "names of terms as keys"),
    ({"across": ACROSS, "outputs": "list"}, r"for 'iou', among \['box', 'label'\]"),
    ({"across": ACROSS, "losses": "mse"}, "`across`. Expected None, unless"),
    ({"across": ACROSS, "class_weight": {"iou": {0: 1.0}}}, "`class_weight`"),
    ({"across": ACROSS, "weights": {"giou": 1.0}}, "names of losses, among .*'iou'"),
    (
        {"across": {"iou": (Overlap(reduction="none"), ["box", "score"])}, "missing": -1},
        "None for a loss without a reduction",
    ),
)  # fmt: skip


def rows(y, p):
    return p["score"]


def nothing(y, p):
    return None


MISFITS = {
    "unknown_output": ((overlap, ["box", "scor"]), {}, "'iou' to be the name of no output, .*'sco"),
    "shape": ((rows, ["box", "score"]), {}, r"the shape \(10, 1\) for 10 items"),
    "none": ((nothing, ["box", "score"]), {}, "Received: None"),
    "missing": ((mean_overlap, ["box", "score"]), {"missing": -1}, "one value for each item"),
}


@pytest.mark.parametrize(("across", "options", "message"), MISFITS.values(), ids=MISFITS)
@values_only
def test_first_step_refuses_what_does_not_fit(across, options, message):
    model = detector()
    model.compile("sgd", **kj.joint_loss(LOSSES, across={"iou": across}, **options))
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            fit(model, (), Y, X)


@values_only
def test_name_of_an_output_is_refused():
    model = detector()
    joint = kj.joint_loss(LOSSES, across={"score": (overlap, ["box", "label"])})
    model.compile("sgd", **joint)
    with pytest.raises(ValueError, match="'score' to be the name of no output"):
        fit(model, (), Y, X)


@values_only
def test_failed_step_forgets_no_loss():
    model = detector()
    model.compile("sgd", **kj.joint_loss(LOSSES, across=ACROSS))
    with pytest.raises((KeyError, ValueError)):
        fit(model, (), {"box": Y["box"]}, X)
    assert "iou_loss" in fit(model, (), Y, X)
