"""The weight that Keras applies, that counts the steps and that is logged is one object."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint.find_terms import find_terms
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.loss_sum import LossSum
from keras_jointloss.terms.term_reading import TermReading
from tests.backends import BACKEND, once_compiled
from tests.comparisons import approx_logs
from tests.small_models import LOSSES, X, Y, build, compiled, fit, ramp, with_layer_term


def from_compile_config(model):
    other = build()
    other.compile_from_config(model.get_compile_config())
    return other


COPIES = {
    "clone": keras.models.clone_model,
    "json": lambda model: keras.models.model_from_json(model.to_json()),
    "compile_config": from_compile_config,
}
each_copy = pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)


@each_copy
def test_copied_model_anneals_its_own_weights(copy):
    model = compiled(weights={"a": ramp(), "b": 0.5})
    fit(model)  # The copy starts afresh, independent of the state of the original.
    before = float(model.loss["a"].weight)
    other = copy(model)
    other.loss["b"].weight.assign(7.0)
    history = fit(other, batch_size=len(X), epochs=3)
    assert history["a_weight"] == pytest.approx([0.1, 0.2, 0.3])
    assert history["b_weight"] == [7.0] * 3
    expected = 0.2 * history["a_loss"][-1] + 7 * history["b_loss"][-1]
    assert history["loss"][-1] == pytest.approx(expected, rel=1e-5)
    assert float(model.loss["a"].weight) == before
    assert float(model.loss["b"].weight) == 0.5


@once_compiled
@each_copy
def test_rule_of_copied_model_starts_afresh(copy):
    options = {"optimizer": keras.optimizers.SGD(0.05), "weighting": "uncertainty"}
    model = compiled(**options)
    expected = fit(model, epochs=2)["a_weight"]
    other = copy(model)
    other.set_weights(build().get_weights())
    assert fit(other, epochs=2)["a_weight"] == pytest.approx(expected, rel=1e-5)


def test_deserialized_weight_is_a_new_object():
    model = compiled(weights={"a": 0.5})
    config = keras.saving.serialize_keras_object(model.loss["a"].weight)
    first, second = (keras.saving.deserialize_keras_object(config) for _ in range(2))
    assert len({id(first), id(second), id(model.loss["a"].weight)}) == 3


UNUSED = r"does not use the weight of the term 'a'.*joint_loss"
NOT_MULTIPLIED = r"not multiplied by its weight.*`loss_weights`"
OF_OTHERS = r"weight of the term '.*' in `loss_weights` with other losses"


@pytest.mark.parametrize(
    ("weight", "names", "others", "callbacks", "message"),
    [
        (ramp(), ["loss"], {}, None, UNUSED),
        (ramp(), ["loss", "loss_weights"], {"metrics": {"a": ["mae"]}}, None, UNUSED),
        (0.5, ["loss", "metrics"], {}, [], NOT_MULTIPLIED),
        (1.0, ["loss_weights"], {"loss": LOSSES}, [], OF_OTHERS),
    ],
    ids=["loss alone", "other metrics", "logged but unused", "other losses"],
)
def test_compile_with_some_of_the_arguments_is_refused(weight, names, others, callbacks, message):
    model, arguments = build(), kj.joint_loss(LOSSES, {"a": weight})
    model.compile("sgd", **{name: arguments[name] for name in names}, **others)
    with pytest.raises((RuntimeError, ValueError), match=message):
        fit(model, callbacks)


class OwnMetrics(keras.Model):
    """A model whose `metrics` omit the compiled metrics."""

    @property
    def metrics(self):
        return super().metrics[:1]


class OwnStep(keras.Model):
    """A model whose step uses neither the compiled losses nor the compiled metrics."""

    def train_step(self, *arguments):
        if BACKEND == "jax":
            state, _ = arguments
            return {"loss": ops.zeros(())}, state
        return {"loss": ops.zeros(())}


@pytest.mark.parametrize("model_class", [OwnMetrics, OwnStep])
def test_model_with_custom_metrics_or_step_is_refused_with_advice(model_class):
    model = compiled(build(model_class), weights={"a": ramp()})
    with pytest.raises(ValueError, match=r"super\(\).metrics.*self.compute_loss"):
        fit(model)


def test_arguments_of_another_model_are_refused_and_leave_it_unchanged():
    arguments = kj.joint_loss(LOSSES, {"a": ramp()}, weighting="uncertainty")
    first, second = build(), build()
    first.compile("sgd", **arguments)
    fit(first)
    before = first.evaluate(X, Y, verbose=0)
    second.compile("sgd", **arguments)
    message = r"'a' belongs to another model.*`keras_jointloss.joint_lo"
    with pytest.raises(ValueError, match=message):
        fit(second)
    assert first.evaluate(X, Y, verbose=0) == before
    first.compile("sgd", **arguments)  # The same model may be compiled with them again.
    fit(first)


def test_weight_of_a_compiled_model_is_refused_in_another_joint_loss():
    weight = kj.LossWeight(0.5)
    model = compiled(weights={"a": weight})
    fit(model)
    with pytest.raises(ValueError, match="'a' a `LossWeight` that belongs to no model"):
        kj.joint_loss(LOSSES, {"a": weight}, weighting="uncertainty")


def test_rule_of_another_model_is_refused():
    rule = kj.weighting.Uncertainty()
    fit(compiled(weighting=rule))
    for other in (compiled(weighting=rule), with_layer_term(weighting=rule)):
        with pytest.raises(ValueError, match="Uncertainty belongs to another model"):
            fit(other)


def test_layer_of_two_models_is_refused_only_with_weighting():
    model = with_layer_term()
    fit(model)
    other = keras.Model(model.input, model.output)
    other.compile("sgd", {"a": "mse"})
    history = fit(other, y={"a": Y["a"]})
    assert history["pair_weight"] == pytest.approx([0.4])  # The model has its own step count.
    assert fit(model)["pair_weight"] == pytest.approx([0.8])
    other.compile("sgd", **kj.joint_loss({"a": "mse"}, weighting="uncertainty"))
    with pytest.raises(ValueError, match="'pair' is a term of two models"):
        fit(other, y={"a": Y["a"]})
    assert fit(model)["pair_weight"] == pytest.approx([1.0])


def test_rule_removed_and_added_again_sees_layer_terms():
    model = with_layer_term()
    with_rule = kj.joint_loss({"a": "mse"}, weighting=kj.weighting.Uncertainty(learning_rate=0.1))
    without = kj.joint_loss({"a": "mse"})
    histories = []
    for arguments in (with_rule, without, with_rule):
        model.compile(keras.optimizers.SGD(0.0), **arguments)
        histories.append(fit(model, epochs=2))
    first, second, third = (history["pair_weight"] for history in histories)
    assert histories[1]["a_weight"] == [1.0, 1.0]
    assert second == pytest.approx([0.4, 0.8])
    assert third[0] != pytest.approx(third[1], rel=1e-3)
    assert max(*first, *third) < 0.8


def test_weights_file_restores_terms_and_rule_of_untrained_model(tmp_path):
    def make():
        rule = kj.weighting.FAMO(learning_rate=0.5)
        return compiled(weights={"a": ramp(), "b": 0.5}, weighting=rule)

    model, other = make(), make()
    fit(model)
    model.loss["b"].weight.assign(0.25)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    expected = model.evaluate(X, Y, verbose=0, return_dict=True)
    assert other.evaluate(X, Y, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-5)
    assert fit(other, epochs=2) == approx_logs(fit(model, epochs=2))


@once_compiled
def test_loading_weights_keeps_a_newly_compiled_weight(tmp_path):
    model, other = compiled(weights={"a": 0.5, "b": 0.5}), compiled(weights={"a": 2.0, "b": 0.5})
    for weight in find_terms(model).values():
        weight.assign(0.25)
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    assert {name: float(x) for name, x in find_terms(other).items()} == {"a": 2.0, "b": 0.25}


def test_get_weights_returns_only_model_weights():
    model = with_layer_term()
    assert all(np.issubdtype(value.dtype, np.floating) for value in model.get_weights())
    assert len(model.get_weights()) == 6  # Three kernels and three biases.
    fit(model)
    state = model.get_state_tree()
    paths = [variable.path for variable in model.variables]
    paths += [variable.path for metric in model.metrics for variable in metric.variables]
    assert len(set(paths)) == len(paths)
    assert set(state) >= {"trainable_variables", "non_trainable_variables", "metrics_variables"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("factor", -1.0), ("step", -1), ("step", 2**40), ("step", "x"), ("weighting", "x")),
        *(("weight", None), ("value", "1"), ("value", -1.0), ("value", float("nan")), ("off", 2)),
    ],
)
def test_invalid_weight_config_is_refused(name, value):
    config = {**kj.LossWeight(0.5).get_config(), name: value}
    with pytest.raises(ValueError, match=f"`{name}`.*Received: {name}={value!r}"):
        kj.LossWeight.from_config(config)


def test_configs_may_hold_the_objects_themselves():
    weight = kj.LossWeight(0.5)
    loss = TermLoss.from_config(TermLoss("mse", weight, "a").get_config())
    assert loss.weight is weight
    reading = TermReading.from_config(TermReading(weight).get_config())
    weight.name = "a_weight"
    assert reading.name == "a_loss"
    for refused in (0.5, None):
        with pytest.raises(ValueError, match=r"`weight`.*Expected a `LossWeight`"):
            TermReading(refused)
        with pytest.raises(ValueError, match=r"`parts`.*Expected a non-empty dict"):
            LossSum({"a": refused})


@pytest.mark.parametrize("weight", [None, 0.5, "LossWeight"])
def test_loss_of_a_term_without_a_weight_is_refused(weight):
    config = {**TermLoss("mse", kj.LossWeight(0.5), "a").get_config(), "weight": weight}
    with pytest.raises(ValueError, match=r"`weight`.*Expected a `LossWeight`"):
        TermLoss.from_config(config)
