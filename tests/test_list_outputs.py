"""Models that return a list, and losses that do not have the form of the outputs."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint.find_terms import find_terms
from tests.backends import once_compiled, values_only
from tests.comparisons import approx_logs, assert_all_close
from tests.refusals import refuses
from tests.small_models import X, Y, build, fit, ramp
from tests.summaries import read_scalars

LOSSES = {"a": "mse", "b": "sparse_categorical_crossentropy"}
TARGETS = [Y["a"], Y["b"]]
LOGGED = {"loss", "a_loss", "b_loss", "a_weight", "b_weight"}


@keras.saving.register_keras_serializable(package="keras_jointloss.tests")
class Listed(keras.Model):
    """Returns the outputs of `build` in a list, a tuple or a dict."""

    def __init__(self, form="list", **kwargs):
        super().__init__(**kwargs)
        self.form = form
        self.hidden = keras.layers.Dense(4, activation="tanh")
        self.a = keras.layers.Dense(2)
        self.b = keras.layers.Dense(3, activation="softmax")

    def call(self, inputs, training=None):
        hidden = self.hidden(inputs)
        outputs = [self.a(hidden), self.b(hidden)]
        if self.form == "dict":
            return dict(zip("ab", outputs, strict=True))
        return outputs if self.form == "list" else tuple(outputs)

    def get_config(self):
        return {"form": self.form}


def listed(form="list", is_built=True):
    """Returns a subclassed model with the initial weights of `build`."""
    model = Listed(form)
    if is_built:
        model(X)
        model.set_weights(build().get_weights())
    return model


def functional():
    inputs = keras.Input((5,))
    return keras.Model(inputs, [keras.layers.Dense(1)(inputs) for _ in range(2)])


def unbuilt():
    return listed(is_built=False)


@pytest.mark.parametrize("form", ["list", "tuple"])
def test_list_trains_and_logs_as_a_dict(form):
    weights = {"a": ramp(), "b": 0.5}
    named, model = build(), listed(form)
    named.compile(keras.optimizers.SGD(0.1), **kj.joint_loss(LOSSES, weights))
    weights = {"a": ramp(), "b": 0.5}
    model.compile(keras.optimizers.SGD(0.1), **kj.joint_loss(LOSSES, weights, outputs="list"))
    expected = fit(named, epochs=2)
    found = fit(model, y=TARGETS, epochs=2)
    assert found == approx_logs(expected)
    assert_all_close(model.get_weights(), named.get_weights(), 1e-4, 1e-6)
    assert set(model.evaluate(X, TARGETS, verbose=0, return_dict=True)) == LOGGED
    assert float(model.loss[1].weight) == 0.5


def test_list_takes_all_arguments_of_a_dict(tmp_path):
    target = Y["a"].copy()
    target[::4] = np.nan
    losses = {"a": {"square": "mse", "size": keras.losses.MeanAbsoluteError()}, "b": LOSSES["b"]}
    options = {
        "weights": {"a_square": 0.25, "b": ramp()},
        "weighting": "uncertainty",
        "missing": {"a": float("nan")},
        "metrics": {"b": "accuracy"},
        "weighted_metrics": {"a": ["mae"]},
    }
    sample_weight = np.linspace(0, 1, len(X))
    histories = []
    for model, form in ((build(), None), (listed(is_built=True), "list")):
        y, weight = {"a": target, "b": Y["b"]}, {"a": sample_weight, "b": sample_weight}
        if form:
            y, weight = list(y.values()), list(weight.values())
        options["weights"]["b"] = ramp()
        model.compile(keras.optimizers.SGD(0.1), **kj.joint_loss(losses, outputs=form, **options))
        assert set(find_terms(model)) == {"a_square", "a_size", "b"}
        callback = kj.callbacks.JointLossCallback(str(tmp_path / str(form)))
        histories.append(
            fit(model, [callback], y, sample_weight=weight, validation_data=(X, y, weight))
        )
    expected, found = histories
    names = {"b_accuracy": "accuracy", "a_mae": "mae"}
    for name, values in expected.items():
        prefix = "val_" if name.startswith("val_") else ""
        key = name.removeprefix("val_")
        assert found[prefix + names.get(key, key)] == pytest.approx(values, 1e-4), name
    assert len(found) == len(expected)
    scalars = [read_scalars(tmp_path / form / "train") for form in ("None", "list")]
    assert scalars[0].keys() == scalars[1].keys()


@once_compiled
def test_loaded_model_continues_with_its_weights(tmp_path):
    model = listed()
    joint = kj.joint_loss({"a": ["mse", "mae"], "b": LOSSES["b"]}, {"b": ramp()}, outputs="list")
    model.compile(keras.optimizers.SGD(0.1), **joint)
    fit(model, y=TARGETS)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert set(find_terms(loaded)) == {"a_mse", "a_mae", "b"}
    assert loaded.loss[1].weight is find_terms(loaded)["b"]
    expected = fit(model, y=TARGETS)
    assert fit(loaded, y=TARGETS) == approx_logs(expected)


@once_compiled
def test_output_of_a_list_without_a_loss():
    model = listed()
    model.b.trainable = False
    model.compile(**kj.joint_loss({"a": "mse", "b": None}, outputs="list"))
    assert set(fit(model, y=TARGETS)) == {"loss", "a_loss", "a_weight", "a_share"}


@once_compiled
def test_functional_model_logs_its_own_names_and_the_callback_those_of_the_terms():
    model = functional()
    first, second = model.output_names
    joint = kj.joint_loss({"a": "mse", "b": "mae"}, outputs="list", metrics={"a": "mae"})
    model.compile(keras.optimizers.SGD(0.0), **joint)
    history = fit(model, y=[Y["a"][:, :1], Y["a"][:, 1:]])
    keras_names = {f"{x}_{y}" for x in (first, second) for y in ("loss", "weight")}
    assert set(history) == keras_names | {f"{first}_mae"} | LOGGED | {"a_share", "b_share"}
    assert history["a_loss"] == pytest.approx(history[f"{first}_loss"])


def sequential():
    return keras.Sequential([keras.layers.Dense(2)])


ONE = ({}, "a dict of output name to loss for a model with several outputs.*outputs='list'")
SEQUENTIAL = "one loss.*in place of a dict.*Sequential"
LIST = {"outputs": "list"}
WRONG_FORMS = {
    "list_for_several": (functional, ["mse", "mae"], *ONE),
    "list_of_three": (functional, ["mse", "mae", "huber"], *ONE),
    "one_for_several": (functional, "mse", *ONE),
    "one_for_a_subclass": (unbuilt, "mse", *ONE),
    "list_for_a_subclass": (unbuilt, ["mse", "mae"], *ONE),
    "dict_for_a_list": (unbuilt, LOSSES, {}, "outputs='list'.*returns a list without names"),
    "dict_for_a_sequential": (sequential, {"a": "mse"}, {}, f"{SEQUENTIAL}.*Received.*'a'"),
    "several_in_a_dict_for_a_sequential": (sequential, {"a": ["mse", "mae"]}, {}, SEQUENTIAL),
    "list_for_a_dict": (lambda: listed("dict"), LOSSES, LIST, "without `outputs='list'`.*a dict"),
    "too_few": (unbuilt, {"a": "mse"}, LIST, "for each output"),
    "other_names": (functional, LOSSES, {}, "losses for the outputs of the model.*'dense"),
}


@pytest.mark.parametrize("callbacks", [[], None], ids=["without_callback", "with_callback"])
@pytest.mark.parametrize(
    ("make", "losses", "options", "message"), WRONG_FORMS.values(), ids=WRONG_FORMS
)
def test_losses_of_another_form_than_the_outputs_are_refused(
    make, losses, options, message, callbacks
):
    model = make()
    model.compile("sgd", **kj.joint_loss(losses, **options))
    targets = {"dict": Y}.get(getattr(model, "form", None), TARGETS)
    targets = Y["a"] if isinstance(model, keras.Sequential) else targets
    with pytest.raises(ValueError, match=message):
        fit(model, callbacks, targets)


@once_compiled
def test_losses_that_are_not_of_joint_loss_are_left_to_keras():
    model = functional()
    model.compile("sgd", "mse", metrics=["mae", "mse"])
    fit(model, [], [Y["a"][:, :1], Y["a"][:, 1:]])


test_invalid_arguments_are_refused = refuses(
    kj.joint_loss,
    ({"losses": ["mse"], "outputs": "list"}, "`losses`.*order of the outputs"),
    ({"losses": LOSSES, "outputs": "dict"}, r"`outputs`.*'list'"),
    ({"losses": LOSSES, "outputs": "list", "metrics": {"c": "mae"}}, r"`metrics`.*'c'"),
)


@values_only
def test_custom_training_of_a_list_multiplies_each_loss_by_its_weight():
    model = listed()
    model.compile(**kj.joint_loss(LOSSES, {"a": 0.25}, outputs="list"))
    outputs = model(X)
    first = np.mean((ops.convert_to_numpy(outputs[0]) - Y["a"]) ** 2)
    picked = ops.convert_to_numpy(outputs[1])[np.arange(len(X)), Y["b"]]
    expected = 0.25 * first - np.mean(np.log(picked))
    found = model.compute_loss(X, TARGETS, outputs)
    assert float(ops.convert_to_numpy(found)) == pytest.approx(float(expected), rel=1e-5)
