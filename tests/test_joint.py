"""`joint_loss`: equality with plain Keras, and errors."""

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PolynomialDecay

import keras_jointloss as kj
from tests.backends import once_compiled
from tests.refusals import refuses
from tests.small_models import fit
from tests.subjects import DATA

ITEMS = 20


def _cosine(y_true, y_pred):
    return 1 - ops.sum(y_true * y_pred, axis=-1)


def _model():
    inputs = keras.Input((6,))
    outputs = {
        "first": keras.layers.Dense(3, activation="softmax")(inputs),
        "second": keras.layers.Dense(1)(inputs),
    }
    return keras.Model(inputs, outputs)


def _one_hot(labels):
    return np.eye(3, dtype="float32")[labels]


LABELS = DATA["label"][:ITEMS]
X, Y = DATA["features"][:ITEMS], {"first": LABELS, "second": DATA["rating"][:ITEMS]}

FORMS = {
    "name": ("mse", 3, _one_hot(LABELS)),
    "name_without_axis": ("mean_absolute_error", 1, LABELS.astype("float32")),
    "name_with_axis": ("mse", 1, LABELS.astype("float32")[:, None]),
    "function": (keras.losses.categorical_crossentropy, 3, _one_hot(LABELS)),
    "own_function": (_cosine, 3, _one_hot(LABELS)),
    "sparse_name": ("sparse_categorical_crossentropy", 3, LABELS),
    "sparse_object": (keras.losses.SparseCategoricalCrossentropy(), 3, LABELS),
    "sum": (keras.losses.MeanSquaredError(reduction="sum"), 3, _one_hot(LABELS)),
    "weighted_mean": (
        keras.losses.MeanSquaredError(reduction="mean_with_sample_weight"),
        3,
        _one_hot(LABELS),
    ),
    "class_name": ("CategoricalCrossentropy", 3, _one_hot(LABELS)),
    "crossentropy_sparse": ("crossentropy", 3, LABELS),
    "crossentropy_sparse_axis": ("crossentropy", 3, LABELS[:, None]),
    "crossentropy_one_hot": ("crossentropy", 3, _one_hot(LABELS)),
    "crossentropy_binary": ("ce", 1, LABELS % 2),
}


@once_compiled
@pytest.mark.parametrize("sample_weight", [None, np.linspace(0, 1, ITEMS)])
def test_every_form_of_loss_equals_plain_keras(sample_weight):
    inputs = keras.Input((6,))
    outputs = {
        name: keras.layers.Dense(units, "sigmoid" if units == 1 else "softmax", name=name)(inputs)
        for name, (_, units, _) in FORMS.items()
    }
    model = keras.Model(inputs, outputs)
    losses = {name: loss for name, (loss, _, _) in FORMS.items()}
    weights = {name: 0.25 + i for i, name in enumerate(FORMS)}
    y = {name: target for name, (_, _, target) in FORMS.items()}
    sample_weights = None if sample_weight is None else dict.fromkeys(FORMS, sample_weight)
    options = {"batch_size": 8, "verbose": 0, "return_dict": True, "sample_weight": sample_weights}
    model.compile("sgd", losses, weights)
    plain = model.evaluate(X, y, **options)
    model.compile("sgd", **kj.joint_loss(losses, weights))
    joint = model.evaluate(X, y, **options)
    assert {name: joint[name] for name in plain} == pytest.approx(plain, rel=1e-5)
    assert set(joint) - set(plain) == {f"{name}_weight" for name in FORMS}


def test_metric_names_are_unchanged():
    model = _model()
    model.compile(
        "sgd",
        **kj.joint_loss(
            {"first": "sparse_categorical_crossentropy", "second": "mse"},
            metrics={"first": "accuracy", "second": [keras.metrics.MeanAbsoluteError(name="mae")]},
            weighted_metrics={"second": ["mse"]},
        ),
    )
    logs = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert set(logs) == {
        "loss", "first_loss", "second_loss", "first_weight", "second_weight",
        "first_accuracy", "second_mae", "second_mse",
    }  # fmt: skip


@pytest.mark.parametrize("metrics", ["mae", ["mae"], {"first": "mae"}])
def test_single_loss_accepts_unnamed_metrics(metrics):
    inputs = keras.Input((6,))
    model = keras.Model(inputs, keras.layers.Dense(1, name="first")(inputs))
    model.compile("sgd", **kj.joint_loss({"first": "mse"}, metrics=metrics))
    history = fit(model, y=Y["second"], x=X)
    assert set(history) == {"loss", "mae", "first_weight", "first_loss", "first_share"}
    assert history["first_loss"] == pytest.approx(history["loss"])


def test_output_without_loss_needs_no_entry_in_a_dict():
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4)(inputs)
    model = keras.Model(inputs, {"hidden": hidden, "rating": keras.layers.Dense(1)(hidden)})
    model.compile("sgd", **kj.joint_loss({"rating": "mse"}))
    history = fit(model, y={"hidden": np.zeros(ITEMS), "rating": Y["second"]}, x=X)
    assert set(history) == {"loss", "rating_loss", "rating_weight", "rating_share"}


def test_metrics_may_be_missing_for_some_outputs():
    arguments = kj.joint_loss(
        {"first": "mse", "second": "mse"}, metrics={"first": None, "second": "mae"}, missing=0.0
    )
    model = _model()
    model.compile("sgd", **arguments)
    y = {"first": _one_hot(LABELS), "second": LABELS.astype("float32")}
    logs = model.evaluate(X, y, verbose=0, return_dict=True)
    assert "second_mean_absolute_error" in {x.replace("mae", "mean_absolute_error") for x in logs}
    assert not {x for x in logs if x.startswith("first_m")}


def test_weight_keeps_a_name_of_its_own():
    arguments = kj.joint_loss({"a": "mse", "b": "mse"}, {"a": kj.LossWeight(0.5, name="alpha")})
    assert [arguments["loss"][x].weight.name for x in "ab"] == ["alpha", "weight"]


def test_loss_weights_look_like_scalars():
    weights = kj.joint_loss({"a": "mse"})["loss_weights"]
    assert repr(weights) == "{'a': AppliedWeight('a')}"
    assert (weights["a"].shape, weights["a"].dtype) == ((), "float32")


def test_loss_without_reduction_is_logged_as_its_mean():
    y_true, y_pred = _one_hot(LABELS), np.full((ITEMS, 3), 0.25, "float32")
    weight = kj.LossWeight()
    loss = kj.terms.TermLoss(keras.losses.MeanSquaredError(reduction=None), weight)
    values = ops.convert_to_numpy(loss(y_true, y_pred))
    np.testing.assert_allclose(values, np.square(y_true - y_pred).mean(axis=1), rtol=1e-6)
    assert weight.read()["loss"] == pytest.approx(values.mean(), rel=1e-6)


def _total(y_true, y_pred):
    return ops.sum(ops.abs(y_true - y_pred), axis=-1)


@pytest.mark.parametrize(
    ("targets", "predictions"),
    [((5, 1), (5,)), ((5,), (5, 1)), ((5, 3, 1), (5, 3)), ((5, 3), (5, 3, 1)), ((5, 3), (5, 3))],
)
def test_function_gets_targets_and_predictions_of_the_same_rank(targets, predictions):
    keras.utils.set_random_seed(3)
    y_true, y_pred = keras.random.normal(targets), keras.random.normal(predictions)
    compiled = keras.Sequential([keras.layers.Lambda(lambda x: x)])
    compiled.compile(loss=_total)
    expected = compiled.evaluate(y_pred, y_true, verbose=0)
    found = kj.terms.TermLoss(_total, kj.LossWeight())(y_true, y_pred)
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_missing_weight_is_one_and_given_weight_is_not_copied():
    weight = kj.LossWeight(PolynomialDecay(0.0, 10, 1.0))
    joint = kj.joint_loss({"a": "mse", "b": "mse"}, weights={"b": weight})
    assert float(joint["loss"]["a"].weight) == 1.0
    assert joint["loss"]["b"].weight is weight
    assert joint["metrics"]["b"] == [weight]


def test_loaded_loss_metric_and_term_share_one_weight(tmp_path):
    model = _model()
    joint = kj.joint_loss(
        {"first": "sparse_categorical_crossentropy", "second": keras.losses.MeanSquaredError()},
        {"first": PolynomialDecay(0.0, 10, 1.0), "second": 0.5},
    )
    model.compile("sgd", **joint)
    model.loss["second"].weight.assign(0.125)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", custom_objects=kj.custom_objects())
    weight = loaded.loss["second"].weight
    assert float(weight) == 0.125
    history = fit(loaded, y=Y, x=X, batch_size=4)
    assert history["first_weight"] == pytest.approx([0.5])
    weight.assign(2.0)
    logs = loaded.evaluate(X, Y, verbose=0, return_dict=True)
    assert logs["second_weight"] == 2.0
    expected = 0.5 * logs["first_loss"] + 2.0 * logs["second_loss"]
    assert logs["loss"] == pytest.approx(expected, rel=1e-5)


def test_legacy_h5_model_is_loaded_uncompiled(tmp_path):
    a, b = keras.Input((4,)), keras.Input((4,))
    fade_in = PolynomialDecay(0.0, 10, 1.0)
    pair = kj.layers.ContrastiveTerm(kj.losses.InfoNCE(0.3), weight=fade_in, name="pair")((a, b))
    model = keras.Model([a, b], {"rating": keras.layers.Dense(1)(pair[0])})
    joint = kj.joint_loss({"rating": "mse"}, {"rating": 0.5})
    model.compile("sgd", **joint)
    model.get_layer("pair").weight.assign(0.25)
    model.save(tmp_path / "model.h5")
    loaded = keras.models.load_model(
        tmp_path / "model.h5", custom_objects=kj.custom_objects(), compile=False
    )
    layer = loaded.get_layer("pair")
    assert float(layer.weight) == 0.0  # Such a file contains only the weights of layers.
    assert layer.weight.schedule.get_config() == fade_in.get_config()
    assert layer.loss.get_config() == kj.losses.InfoNCE(0.3).get_config()
    x = [DATA["features"][:, :4], DATA["features"][:, 2:]]
    np.testing.assert_allclose(
        loaded.predict(x, verbose=0)["rating"], model.predict(x, verbose=0)["rating"], rtol=1e-6
    )


ONE, TWO, ONE_WEIGHT = {"a": "mse"}, {"a": "mse", "b": "mse"}, kj.LossWeight(0.5)


test_invalid_arguments_are_refused = refuses(
    kj.joint_loss,
    ({"losses": {}}, "`losses`.*at least one loss"),
    ({"losses": {"a": None}}, "`losses`.*at least one loss"),
    ({"losses": 1}, "`losses`.*dict of output name"),
    ({"losses": {"a": {}}}, "`losses`.*losses of 'a' as one loss"),
    ({"losses": {"a": {"x": {"y": "mse"}}}}, "`losses`.*nested output.*'y': 'mse'"),
    ({"losses": {"a": {"x": None}}}, "`losses`.*losses of 'a' as one loss"),
    ({"losses": {"a": {1: "mse"}}}, "`losses`.*losses of 'a' as one loss"),
    ({"losses": {"a": ["mse", lambda x, y: 0]}}, "`losses`.*losses that have names"),
    ({"losses": {"a": ["mse", "mse"]}}, "`losses`.*losses named.*'mse', 'mse'"),
    ({"losses": {"a": {"b": "mse"}, "a_b": "mse"}}, "two terms or outputs named 'a_b'"),
    ({"losses": {"a": ["mse"], "b": "mse"}, "weights": {"a": 1}}, r"among \['a_mse', 'b'\]"),
    ({"losses": ["mse", "mae"], "weights": 0.5}, r"among \['mse', 'mae'\]"),
    ({"losses": {"a": keras.metrics.Mean()}}, "`losses`.*loss of 'a' to be a name"),
    ({"losses": {1: "mse"}}, "`losses`.*dict of output name"),
    ({"losses": {"a": "no_loss"}}, r"one of \[.*'InfoNCE'.*\]\. Received: loss='no_loss'"),
    ({"losses": ONE, "weights": {"b": 1.0}}, "`weights`.*keys are names of losses"),
    ({"losses": ONE, "weights": 0.5}, "`weights`.*keys are names of losses"),
    ({"losses": ONE, "weights": {"a": -0.5}}, "weight of loss 'a'.*weight=-0.5"),
    ({"losses": ONE, "weights": {"a": float("nan")}}, "weight of loss 'a'.*weight=nan"),
    ({"losses": ONE, "weights": {"a": "1"}}, "weight of loss 'a'.*weight='1'"),
    ({"losses": TWO, "weights": dict.fromkeys("ab", ONE_WEIGHT)}, "`LossWeight` of its own"),
    ({"losses": ONE, "weighting": "adam"}, "`weighting`.*Expected a member of"),
    ({"losses": TWO, "metrics": ["mae"]}, "`metrics`.*Expected a dict"),
    ({"losses": TWO, "weighted_metrics": ["mae"]}, "`weighted_metrics`.*Expected a dict"),
)


def test_loss_of_the_package_has_a_name_like_one_of_keras():
    losses = {"pair": "info_nce", "views": {"a": "SupCon", "b": "vicreg"}, "circle": "circle"}
    found = kj.joint_loss(losses)
    views, labels = ops.ones((4, 2, 3)) * ops.reshape(ops.arange(4.0), (4, 1, 1)), ops.arange(4)
    loss = found["loss"]["pair"]
    assert float(loss(labels, views)) == float(kj.losses.InfoNCE()(labels, views))
    parts = found["loss"]["views"].parts
    assert [type(x.loss) for x in parts.values()] == [kj.losses.SupCon, kj.losses.VICReg]
    names = [metric.name for metric in found["metrics"]["views"]]
    assert "b_invariance" in names
    # Keras has a loss of this name, too.
    assert found["loss"]["circle"].loss == "circle"
