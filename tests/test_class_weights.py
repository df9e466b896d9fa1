"""Weights of classes: equal to `fit(class_weight=)` of Keras and to sample weights by hand."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.terms import ClassWeightedMetric, TermLoss
from tests.backends import BACKEND, once_compiled, values_only
from tests.comparisons import approx_logs, assert_all_close
from tests.small_models import X, Y, build, copies_of, fit
from tests.test_replicas import assert_like_one_device

WEIGHTS = {0: 0.5, 2: 3.0}  # Class 1 is not named.
LABELS = Y["b"]
BY_ITEM = np.array([0.5, 1.0, 3.0], "float32")[LABELS]
ONE_HOT = np.eye(3, dtype="float32")[LABELS]
BINARY = (LABELS > 0).astype("float32")[:, None]
FORMS = {
    "integers": ("sparse_categorical_crossentropy", 3, LABELS, WEIGHTS),
    "integers_with_axis": ("sparse_categorical_crossentropy", 3, LABELS[:, None], WEIGHTS),
    "small_integers": ("sparse_categorical_crossentropy", 3, LABELS.astype("uint8"), {300: 9.0}),
    "one_hot": ("categorical_crossentropy", 3, ONE_HOT, WEIGHTS),
    "binary": ("binary_crossentropy", 1, BINARY, {1: 3.0}),
    "rounded": (keras.losses.Huber(), 1, BINARY * 0.9, {0: 0.25, 1: 3.0}),
    "sum": (keras.losses.CategoricalCrossentropy(reduction="sum"), 3, ONE_HOT, WEIGHTS),
}


def one_output(units):
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    activation = "sigmoid" if units == 1 else "softmax"
    return keras.Model(inputs, keras.layers.Dense(units, activation)(inputs))


WAYS = [{"run_eagerly": True}, {"jit_compile": True}, {"steps_per_execution": 2}]
RUNS = [(form, {}) for form in FORMS]
RUNS += [pytest.param("integers", way, marks=pytest.mark.backend("tensorflow")) for way in WAYS]


@pytest.mark.parametrize(("form", "way"), RUNS, ids=str)
def test_one_output_trains_as_with_keras(form, way):
    loss, units, y, weights = FORMS[form]
    options = {"epochs": 2, "validation_data": (X, y)}
    plain, model = one_output(units), one_output(units)
    plain.compile(keras.optimizers.SGD(0.5), loss, weighted_metrics=["accuracy"])
    expected = fit(plain, [], y, class_weight=weights, **options)
    joint = kj.joint_loss(loss, class_weight=weights, weighted_metrics=["accuracy"])
    model.compile(keras.optimizers.SGD(0.5), **joint, **way)
    found = fit(model, [], y, **options)
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, 1e-4), name
    assert_all_close(model.get_weights(), plain.get_weights(), 1e-4, 1e-6)


def own(y_true, y_pred):
    one_hot = ops.one_hot(ops.cast(ops.reshape(y_true, (-1,)), "int32"), 3)
    return ops.sum(ops.abs(one_hot - y_pred), axis=-1)


LOSSES = {"a": "mse", "b": {"ce": "sparse_categorical_crossentropy", "own": own}}


def trained(sample_weight=None, targets=Y, **options):
    """Returns the logs of training and the variables after it."""
    model = build()
    # No rule, so that validation has the same weights.
    joint = kj.joint_loss(LOSSES, {"b_ce": 0.5}, weighted_metrics={"b": ["accuracy"]}, **options)
    model.compile(keras.optimizers.SGD(0.2), **joint)
    history = fit(model, None, targets, epochs=2, sample_weight=sample_weight)
    evaluated = model.evaluate(X, targets, batch_size=10, verbose=0, return_dict=True)
    return history, model.get_weights(), evaluated


@pytest.mark.parametrize("given", [None, np.linspace(0, 2, len(X), dtype="float32")])
def test_several_outputs_and_losses_equal_sample_weights_by_hand(given):
    ones = np.ones(len(X), "float32")
    by_hand = {"a": ones, "b": BY_ITEM if given is None else BY_ITEM * given}
    expected = trained(by_hand)
    sample_weight = None if given is None else {"a": ones, "b": given}
    found = trained(sample_weight, class_weight={"b": WEIGHTS})
    assert found[0] == approx_logs(expected[0], 1e-4)
    assert_all_close(found[1], expected[1], 1e-4, 1e-6)
    assert found[2] == approx_logs(expected[2], 1e-4)


@once_compiled
def test_missing_targets_equal_sample_weights_by_hand():
    missing = np.arange(len(X)) % 3 == 0
    targets = {"a": Y["a"], "b": np.where(missing, -1, LABELS)}
    ones = np.ones(len(X), "float32")
    options = {"targets": targets, "missing": {"b": -1}}
    expected = trained({"a": ones, "b": BY_ITEM}, **options)
    found = trained(class_weight={"b": WEIGHTS}, **options)
    assert found[0] == approx_logs(expected[0], 1e-4)
    assert_all_close(found[1], expected[1], 1e-4, 1e-6)


@once_compiled
@pytest.mark.parametrize("form", ["sparse", "sparse_axis", "one_hot", "binary"])
@pytest.mark.parametrize("missing", [None, 7.0])
def test_each_pixel_weighs_by_its_class(form, missing):
    """The reference is a sum over pixels in NumPy: the loss is of one step."""
    if form.startswith("sparse") and BACKEND == "torch":
        pytest.skip("Keras' sparse loss of images has no gradient on the CPU of PyTorch")
    generator = np.random.default_rng(2)
    classes = generator.integers(0, 2 if form == "binary" else 3, (8, 4, 5))
    units = 1 if form == "binary" else 3
    x = generator.normal(size=(8, 4, 5, units)).astype("float32")
    inputs = keras.Input((4, 5, units))
    activation = "sigmoid" if units == 1 else "softmax"
    model = keras.Model(inputs, {"mask": keras.layers.Dense(units, activation)(inputs)})
    is_missing = generator.random((8, 4, 5)) < (0 if missing is None else 0.3)
    y = np.where(is_missing, 7, classes).astype("float32")
    y = {"sparse": y, "binary": y[..., None], "sparse_axis": y[..., None]}.get(form)
    if y is None:
        y = np.eye(3, dtype="float32")[classes]
        y[is_missing] = 7
    loss = {"one_hot": "categorical_crossentropy", "binary": "binary_crossentropy"}
    weights = {0: 0.25, 1: 2.0}
    joint = kj.joint_loss(
        {"mask": loss.get(form, "sparse_categorical_crossentropy")},
        class_weight={"mask": weights},
        missing=missing,
    )
    model.compile(keras.optimizers.SGD(0.0), **joint)
    predicted = np.asarray(model.predict(x, verbose=0)["mask"], "float64")
    if units == 1:
        predicted = np.concatenate([1 - predicted, predicted], axis=-1)
    loss = -np.log(np.take_along_axis(predicted, classes[..., None], axis=-1))[..., 0]
    weight = np.array([0.25, 2.0, 1.0])[classes] * ~is_missing
    found = model.train_on_batch(x, {"mask": y}, return_dict=True)["loss"]
    expected = np.sum(weight * loss) / np.sum(~is_missing)
    assert found == pytest.approx(expected, 1e-5)
    unweighted = model.test_on_batch(x, {"mask": y}, return_dict=True)["loss"]
    assert unweighted == pytest.approx(np.sum(~is_missing * loss) / np.sum(~is_missing), 1e-5)


@once_compiled
def test_weights_of_one_of_several_losses():
    model = build()
    joint = kj.joint_loss(LOSSES, class_weight={"b": {0: 5.0}, "b_ce": WEIGHTS, "a": None})
    model.compile(keras.optimizers.SGD(0.0), **joint)
    history = fit(model, [])
    probability = np.asarray(model.predict(X, verbose=0)["b"])
    loss = -np.log(probability[np.arange(len(X)), LABELS])
    assert history["b_ce_loss"] == pytest.approx([np.mean(BY_ITEM * loss)], 1e-4)
    difference = np.abs(ONE_HOT - probability).sum(axis=1)
    expected = np.mean(np.where(LABELS == 0, 5.0, 1.0) * difference)
    assert history["b_own_loss"] == pytest.approx([expected], 1e-4)


def test_loaded_model_and_copy_train_with_the_same_weights(tmp_path):
    model = one_output(3)
    options = {"weighted_metrics": ["accuracy"], "missing": -1}
    joint = kj.joint_loss("sparse_categorical_crossentropy", class_weight=WEIGHTS, **options)
    model.compile(keras.optimizers.SGD(0.2), **joint)
    copies = copies_of(model, tmp_path)
    expected = approx_logs(fit(model, y=LABELS), 1e-4)
    assert [fit(copy, y=LABELS) for copy in copies] == [expected] * 2


@values_only
def test_direct_calls_of_losses_and_metrics_are_unweighted():
    joint = kj.joint_loss("sparse_categorical_crossentropy", class_weight=WEIGHTS)
    predicted = np.full((len(X), 3), 1 / 3, "float32")
    assert float(joint["loss"](LABELS, predicted)) == pytest.approx(np.log(3), 1e-5)
    # Refused as targets only where class weights are applied.
    of_elements = kj.joint_loss("mse", class_weight=WEIGHTS)["loss"]
    assert float(of_elements(ONE_HOT, predicted)) == pytest.approx(2 / 9, 1e-5)
    metric = ClassWeightedMetric("accuracy", WEIGHTS)
    metric.update_state(LABELS, ONE_HOT)
    assert float(metric.result()) == 1.0


@values_only
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"b": {0: -1.0}}, r"class_weight\['b'\]\[0\].*>= 0.*-1.0"),
        ({"b": {0: float("nan")}}, r"class_weight\['b'\]\[0\].*nan"),
        ({"b": {0: float("inf")}}, r"class_weight\['b'\]\[0\].*inf"),
        ({"b": {0: "1"}}, r"class_weight\['b'\]\[0\].*'1'"),
        ({"b": {0.5: 1.0}}, r"class in class_weight\['b'\].*whole number.*0.5"),
        ({"b": {-1: 1.0}}, r"class in class_weight\['b'\].*whole number.*-1"),
        ({"b": {True: 1.0}}, r"class in class_weight\['b'\].*whole number.*True"),
        ({"b": {"cat": 1.0}}, r"class in class_weight\['b'\].*whole number.*'cat'"),
        ({"b": {2**24: 1.0}}, r"class_weight\['b'\].*classes < "),
        ({"b": {}}, r"class_weight\['b'\].*dict of class to weight"),
        ({"b": [1.0, 2.0]}, r"class_weight\['b'\].*dict of class to weight"),
        ({"c": {0: 1.0}}, r"`class_weight`.*among \['a', 'b', 'b_ce', 'b_own'\].*'c'"),
        ({0: 1.0}, r"`class_weight`.*for each output"),
        ([1.0], r"`class_weight`.*for each output"),
    ],
)
def test_invalid_class_weights_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        kj.joint_loss(LOSSES, class_weight=value)


@values_only
def test_losses_without_class_are_refused():
    with pytest.raises(ValueError, match=r"`class_weight`.*InfoNCE compares all items"):
        kj.joint_loss({"pair": kj.losses.InfoNCE()}, class_weight={0: 1.0})
    with pytest.raises(ValueError, match=r"`class_weight`.*Expected None.*Dice"):
        TermLoss(keras.losses.Dice(), kj.LossWeight(), missing=-1.0, class_weight={0: 1.0})


@once_compiled
@pytest.mark.parametrize(
    ("loss", "y", "message"),
    [
        ("binary_crossentropy", ONE_HOT, "classes as targets of 'output'.*`sample_weight`"),
        (keras.losses.Dice(), ONE_HOT, "one weight for each value of the loss of 'output'"),
    ],
)
def test_outputs_without_classes_are_refused_in_the_first_step(loss, y, message):
    model = one_output(3)
    model.compile("sgd", **kj.joint_loss(loss, class_weight=WEIGHTS))
    with pytest.raises(ValueError, match=message):
        fit(model, [], y)


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight"])
def test_replicas_train_like_one_device(reduction):
    def make():
        loss = keras.losses.SparseCategoricalCrossentropy(reduction=reduction)
        arguments = kj.joint_loss(
            {"a": "mse", "b": loss}, class_weight={"b": WEIGHTS}, weighted_metrics={"b": "accuracy"}
        )
        return build(), arguments

    # The last batch has 5 items. Keras' own logs count unequal replicas alike.
    part = X[:37], {name: y[:37] for name, y in Y.items()}
    assert_like_one_device(make, [part], r" ([ab]_)?loss$|_share")
