"""All terms of a model count the same steps: each training step once."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint.find_terms import find_terms
from tests.backends import BACKEND, once_compiled
from tests.callbacks import Interrupts, train_in_a_loop
from tests.small_models import BATCHES, X, Y, build, compiled, fit, linear, ramp, with_layer_term

SGD = keras.optimizers.SGD
OPTIMIZERS = {
    "plain": lambda: SGD(0.0),
    "accumulation": lambda: SGD(0.0, gradient_accumulation_steps=3),
    # It skips every step because the scaled gradients overflow.
    "loss_scale": lambda: keras.optimizers.LossScaleOptimizer(SGD(0.0), initial_scale=2.0**127),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_schedule_counts_every_batch_over_several_fits(optimizer):
    model = compiled(optimizer=optimizer(), weights={"a": ramp(100)})
    weights = [fit(model)["a_weight"][-1] for _ in range(4)]
    assert weights == pytest.approx([0.04, 0.08, 0.12, 0.16])


def test_schedule_restarts_with_new_optimizer():
    model = compiled(weights={"a": ramp(100)})
    fit(model)
    compiled(model, weights={"a": ramp(100)})
    assert fit(model)["a_weight"] == pytest.approx([0.04])


def test_saved_model_resumes_at_step_of_accumulating_optimizer(tmp_path):
    model = compiled(optimizer=OPTIMIZERS["accumulation"](), weights={"a": ramp(100)})
    fit(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert fit(loaded)["a_weight"] == pytest.approx([0.08])


@pytest.mark.filterwarnings("ignore:The weights of a joint loss:UserWarning")
def test_next_fit_counts_batches_trained_without_callback():
    model = compiled(weights={"a": ramp(100)})
    fit(model)
    fit(model, [])
    assert fit(model)["a_weight"] == pytest.approx([0.12])


class CustomLoop:
    """A user's training loop; its method name `fit` must not matter."""

    def fit(self, model):
        """Returns the weights after each batch of an epoch."""
        callback = kj.callbacks.JointLossCallback()
        batches = train_in_a_loop(model, callback, X, {"a": Y["a"]}, len(X) // BATCHES)
        return [_weights(model) for _ in batches]


@pytest.mark.parametrize("weighting", [None, "uncertainty"])
def test_custom_loop_anneals_output_and_layer_terms_every_batch(weighting):
    model = with_layer_term(weighting=weighting)
    reference = with_layer_term(weighting=weighting)
    expected = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: expected.append(_weights(reference))
    )
    fit(reference, [kj.callbacks.JointLossCallback(), record])
    seen = CustomLoop().fit(model)
    np.testing.assert_allclose(seen, expected, rtol=1e-5)
    if weighting is None:
        np.testing.assert_allclose(seen[-1], [0.4, 0.4], rtol=1e-5)
    model.train_on_batch(X[:10], {"a": Y["a"][:10]})
    np.testing.assert_allclose(_weights(model), seen[-1])


def _weights(model):
    if BACKEND == "jax":
        model.jax_state_sync()
    return [float(model.loss["a"].weight), float(model.get_layer("pair").weight)]


def test_repeated_output_counts_each_step_once():
    inputs = keras.Input((5,))
    output = keras.layers.Dense(2, name="o")(inputs)
    model = keras.Model(inputs, [output, output])
    model.compile("sgd", **kj.joint_loss({"o": "mse"}, {"o": ramp(8)}))
    history = fit(model, y=[Y["a"], Y["a"]], epochs=2)
    assert history["o_weight"] == pytest.approx([0.5, 1.0])
    model.compile("sgd", **kj.joint_loss({"o": "mse"}, weighting="uncertainty"))
    with pytest.raises(ValueError, match="outputs have different names"):
        fit(model, y=[Y["a"], Y["a"]])


@pytest.mark.filterwarnings("ignore:The weights of a joint loss:UserWarning")
def test_restoring_best_weights_does_not_start_annealing():
    model = with_layer_term(ramp(100))
    options = {"mode": "max", "patience": 1, "restore_best_weights": True}
    stop = keras.callbacks.EarlyStopping("a_loss", **options)
    fit(model, [kj.callbacks.JointLossCallback(), stop], epochs=3)
    before = _weights(model)
    fit(model, [], epochs=2)
    assert _weights(model) == before


@pytest.mark.filterwarnings("ignore:The weights of a joint loss:UserWarning")
def test_interrupted_fit_stops_annealing():
    model = with_layer_term()
    with pytest.raises(KeyboardInterrupt):
        fit(model, [kj.callbacks.JointLossCallback(), Interrupts(KeyboardInterrupt, batch=1)])
    before = _weights(model)
    assert before == pytest.approx([0.2, 0.2])
    fit(model, [], epochs=2)
    model.train_on_batch(X[:10], {"a": Y["a"][:10]})
    assert _weights(model) == before


MOVING = {
    "schedule": lambda: compiled(weights={"a": ramp()}),
    "rule": lambda: compiled(weighting="uncertainty"),
    "layer": with_layer_term,
}


@pytest.mark.parametrize("make", MOVING.values(), ids=MOVING)
def test_fit_without_callback_warns_once(make):
    model = make()
    with pytest.warns(UserWarning, match="no `JointLossCallback` takes part in `fit`") as caught:
        fit(model, [])
    # Python shows a message once for each line that issues it.
    texts = {str(x.message) for x in caught if x.category is UserWarning}
    assert len(texts) == 1
    fit(model, [])  # Warnings are errors.
    weights = [{name: float(x) for name, x in find_terms(y).items()} for y in (model, make())]
    assert weights[0] == weights[1]


def test_constant_weights_and_evaluation_need_no_callback():
    fit(compiled(weights={"a": 0.5}), [])  # Warnings are errors.
    model = compiled(weights={"a": ramp()})
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    fit(model)


class Resets(keras.callbacks.Callback):
    """Resets the metrics after the callback of the package has started annealing."""

    def on_train_batch_begin(self, batch, logs=None):
        self.model.reset_metrics()


def test_epoch_with_unchanged_weights_is_reported_once():
    model = compiled(weights={"a": ramp()})
    message = "did not move in all of the 4 batches of epoch 0"
    with pytest.warns(UserWarning, match=message) as caught:
        fit(model, [kj.callbacks.JointLossCallback(), Resets()], epochs=2)
    assert len([warning for warning in caught if warning.category is UserWarning]) == 1


def test_two_callbacks_count_steps_and_epochs_once():
    model = compiled(weights={"a": ramp()}, weighting=kj.weighting.DynamicWeightAverage())
    callbacks = [kj.callbacks.JointLossCallback(), kj.callbacks.JointLossCallback()]
    history = fit(model, callbacks, epochs=2)
    keys = {f"{term}_{key}" for term in "ab" for key in ("loss", "weight", "share")}
    assert set(history) == {"loss", *keys}
    weighting = model.loss["a"].weight.weighting
    assert int(ops.convert_to_numpy(weighting.epoch)) == 2
    assert weighting.step == 8


@once_compiled
def test_earlier_callbacks_find_the_values_in_the_logs(tmp_path):
    model = with_layer_term()
    stop = keras.callbacks.EarlyStopping("pair_weight", mode="min", patience=1)
    log = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    history = fit(model, [stop, log, kj.callbacks.JointLossCallback()], epochs=5)
    assert len(history["loss"]) == 2
    columns = (tmp_path / "log.csv").read_text().splitlines()[0].split(",")
    assert {"a_loss", "a_weight", "pair_loss", "pair_weight"} <= set(columns)


def test_layer_called_twice_adds_both_losses():
    shared = keras.layers.Dense(4)
    term = kj.layers.ContrastiveTerm("MeanSquaredError", weight=ramp(), name="t")

    def tower(a, b):
        return term((shared(a), shared(b)))

    a, b, c = (keras.Input((3,)) for _ in range(3))
    model = keras.Model([a, b, c], [*tower(a, b), *tower(b, c)])
    model.compile(keras.optimizers.SGD(0.0))
    data = [X[:, :3], X[:, 1:4], X[:, 2:]]
    embeddings = [ops.convert_to_numpy(shared(x)) for x in data]
    expected = sum(np.mean(np.square(x - y)) for x, y in itertools.pairwise(embeddings))
    callbacks = [kj.callbacks.JointLossCallback()]
    history = model.fit(data, batch_size=40, epochs=2, verbose=0, callbacks=callbacks).history
    assert history["t_loss"] == pytest.approx([expected] * 2, rel=1e-5)
    assert history["t_weight"] == pytest.approx([0.1, 0.2])
    assert history["loss"] == pytest.approx([0.0, 0.1 * expected], rel=1e-5)


@once_compiled
def test_output_named_val_keeps_its_log_names_when_evaluated_first():
    model = linear(["val"], 2)
    model.compile("sgd", **kj.joint_loss({"val": "mse"}, {"val": ramp()}))
    y = {"val": Y["a"]}
    assert set(model.evaluate(X, y, verbose=0, return_dict=True)) == {"loss", "val_weight"}
    history = fit(model, y=y, validation_split=0.25)
    keys = {f"{prefix}val_{key}" for prefix in ("", "val_") for key in ("loss", "weight", "share")}
    assert set(history) == {"loss", *keys}


@once_compiled
def test_metric_named_weight_is_logged_next_to_the_weight():
    metric = keras.metrics.MeanAbsoluteError(name="weight")
    model = compiled(weights={"a": 0.25}, metrics={"a": metric})
    history = fit(model)
    assert history["a_weight"] == [0.25]
    assert history["a_weight_1"][0] > 0.3


def test_single_loss_without_dict_trains_model_with_unnamed_output():
    model = keras.Sequential([keras.layers.Dense(2)])
    model.compile("sgd", **kj.joint_loss("mse", weights=ramp(), metrics=["mae"]))
    history = fit(model, y=Y["a"])
    assert set(history) == {"loss", "mae", "output_loss", "output_weight", "output_share"}
    assert history["output_weight"] == pytest.approx([0.4])
    assert float(model.loss.weight) == pytest.approx(0.4)
    if BACKEND != "tensorflow":
        return  # Keras itself fails there, before it calls the package.
    model.compile("sgd", **kj.joint_loss({"o": "mse"}))
    with pytest.raises(ValueError, match=r"one loss.* in place of a dict.*joint_loss\(loss"):
        fit(model, y=Y["a"])


def test_nested_outputs_are_refused():
    inputs = keras.Input((5,))
    c, d = keras.layers.Dense(2)(inputs), keras.layers.Dense(2)(inputs)
    model = keras.Model(inputs, {"a": c, "b": {"c": c, "d": d}})
    model.compile("sgd", **kj.joint_loss({"a": "mse", "b": {"c": "mse", "d": "mae"}}))
    # Before it calls the package on other backends, Keras compares `metrics` with the outputs.
    message = "A nested output needs a top-level name" if BACKEND == "tensorflow" else "structure"
    with pytest.raises(ValueError, match=message):
        model.fit(X, {"a": Y["a"], "b": {"c": Y["a"], "d": Y["a"]}}, verbose=0)


def test_output_name_may_contain_a_slash():
    names = ("head/x", "s")
    model = linear(names, 2)
    model.compile("sgd", **kj.joint_loss(dict.fromkeys(names, "mse"), {"head/x": ramp()}))
    history = fit(model, y=dict.fromkeys(names, Y["a"]))
    assert history["head/x_weight"] == pytest.approx([0.4])


def _squared_error(y_true, y_pred):
    return ops.mean(ops.square(y_true - y_pred), axis=-1)


@once_compiled
def test_unregistered_function_loads_with_custom_objects(tmp_path):
    model = build()
    model.compile("sgd", **kj.joint_loss({"a": _squared_error, "b": None}))
    expected = model.evaluate(X, Y, verbose=0)
    path, custom_objects = tmp_path / "model.keras", {"_squared_error": _squared_error}
    model.save(path)
    with pytest.raises(ValueError, match="register_keras_serializable"):
        keras.models.load_model(path)
    loaded = keras.models.load_model(path, custom_objects=custom_objects)
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(expected)


@once_compiled
def test_lambda_loads_without_safe_mode(tmp_path):
    model = build()
    model.compile("sgd", **kj.joint_loss({"a": lambda y, p: (y - p) ** 2, "b": None}))
    expected = model.evaluate(X, Y, verbose=0)
    with pytest.warns(UserWarning, match="lambda"):
        model.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match="safe_mode=False"):
        keras.models.load_model(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=False)
    assert loaded.evaluate(X, Y, verbose=0) == pytest.approx(expected)
