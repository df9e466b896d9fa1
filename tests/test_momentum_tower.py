"""The layer that is the moving average of a tower."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_jointloss.layers import ChunkedTower, MomentumTower
from tests.backends import once_compiled, values_only
from tests.comparisons import assert_all_close

GENERATOR = np.random.default_rng(0)
X = [GENERATOR.normal(size=(32, 6)).astype("float32") for _ in range(2)]
Y = GENERATOR.normal(size=(32, 4)).astype("float32")


def make_tower(has_statistics=True):
    tower = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)], name="tower")
    if has_statistics:
        tower.add(keras.layers.BatchNormalization())
    tower.add(keras.layers.Dense(4))
    return tower


def make_model(momentum=0.9, tower=None, calls=1, policy="float32", chunked=False):
    """Returns a model in which the average of a tower is called once or several times."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(policy)
    first, second = keras.Input((6,)), keras.Input((6,))
    tower = make_tower() if tower is None else tower
    slow = MomentumTower(tower, momentum, name="slow")
    outer = ChunkedTower(tower, 4) if chunked else tower
    output = outer(first) + sum(slow(x) for x in (second, first)[:calls])
    model = keras.Model([first, second], keras.layers.Activation("linear", dtype="float32")(output))
    model.compile(keras.optimizers.SGD(0.1), loss="mse")
    return model


class Parameters(keras.callbacks.Callback):
    """Notes the parameters of the tower before each step."""

    def __init__(self, tower):
        super().__init__()
        self.tower, self.found = tower, []

    def on_train_batch_begin(self, batch, logs=None):
        assert self.model is not None  # On JAX this copies the state of the step.
        self.found.append([np.copy(ops.convert_to_numpy(v)) for v in self.tower.weights])


def fit(model, epochs=2, **options):
    tower = model.get_layer("slow")._get_tower()
    parameters = Parameters(tower)
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": epochs, **options}
    history = model.fit(X, Y, callbacks=[parameters], **options).history
    return parameters.found, history


def averages(model):
    return [ops.convert_to_numpy(v) for v in model.get_layer("slow").average.weights]


def expected(found, momentum):
    """Returns the average after the steps, from the parameters before each."""
    average = [np.asarray(x, "float64") for x in found[0]]
    for step, parameters in enumerate(found[1:], start=1):
        m = momentum(step) if callable(momentum) else momentum
        pairs = zip(average, parameters, strict=True)
        average = [m * x + (1 - m) * np.asarray(y, "float64") for x, y in pairs]
    return average


MOMENTA = {
    "constant": 0.9,
    "BYOL": keras.optimizers.schedules.CosineDecay(0.9, 8, alpha=1 / 0.9),
}


@pytest.mark.parametrize(
    ("momentum", "calls", "policy"),
    [
        ("BYOL", 2, "float32"),
        pytest.param("constant", 1, "float32", marks=once_compiled),
        pytest.param("constant", 2, "mixed_float16", marks=once_compiled),
    ],
)
def test_average_equals_a_loop_with_one_update_in_each_step(momentum, calls, policy):
    given = MOMENTA[momentum]
    model = make_model(given, calls=calls, policy=policy)
    slow = model.get_layer("slow")
    found, _ = fit(model)
    assert len(found) == int(ops.convert_to_numpy(slow.step)) == 8
    number = given if momentum == "constant" else lambda step: float(given(step))
    parameters = [i for i, v in enumerate(slow._get_tower().weights) if v.trainable]
    assert_all_close(
        [averages(model)[i] for i in parameters],
        [expected(found, number)[i] for i in parameters],
        1e-5,
        1e-6,
    )
    before = slow.get_weights()
    model.evaluate(X, Y, verbose=0)
    model.predict(X, verbose=0)
    assert_all_close(slow.get_weights(), before)


@once_compiled
def test_average_is_never_trained_and_has_its_own_statistics():
    model = make_model(1.0)
    slow = model.get_layer("slow")
    assert slow.trainable_variables == []
    assert len(model.trainable_variables) == len(slow._get_tower().trainable_variables)
    model.trainable = False
    model.trainable = True
    assert slow.trainable_variables == []
    found, _ = fit(model, epochs=1)
    names = [v.name for v in slow.average.weights]
    for name, start, value, other in zip(
        names, found[0], averages(model), slow._get_tower().get_weights(), strict=True
    ):
        if "moving" in name:
            assert np.abs(value - start).max() > 1e-3
            assert np.abs(value - other).max() > 1e-4
        else:
            np.testing.assert_array_equal(value, start)


@once_compiled
def test_average_begins_with_parameters_that_were_loaded_after_the_model_was_built():
    model = make_model(1.0)
    loaded = [GENERATOR.normal(size=w.shape) ** 2 for w in model.get_layer("tower").get_weights()]
    model.get_layer("tower").set_weights(loaded)
    fit(model, epochs=1)
    slow = model.get_layer("slow")
    for variable, value, start in zip(
        slow._get_tower().weights, averages(model), loaded, strict=True
    ):
        if variable.trainable:
            np.testing.assert_allclose(value, start, rtol=1e-6)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=once_compiled)])
def test_loaded_model_resumes_like_the_saved_one(count, tmp_path):
    model = make_model()
    if count == 2:  # Two averages of one tower.
        slower = MomentumTower(model.get_layer("tower"), 0.99, name="slower")
        output = model.output + slower(model.input[0])
        model = keras.Model(model.input, output)
        model.compile(keras.optimizers.SGD(0.1), loss="mse")
    fit(model, epochs=1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    towers = [loaded.get_layer(name)._get_tower() for name in ("slow", "slower")[:count]]
    assert all(tower is loaded.get_layer("tower") for tower in towers)
    assert len({id(v) for v in loaded.variables}) == len(loaded.variables)
    (_, history), (_, expected_history) = fit(loaded), fit(model)
    assert history["loss"] == pytest.approx(expected_history["loss"], rel=1e-5)
    assert_all_close(averages(loaded), averages(model), 1e-5, 1e-6)


@once_compiled
def test_clone_is_refused_in_training():
    clone = keras.models.clone_model(make_model())
    clone.compile("sgd", "mse")
    with pytest.raises(ValueError, match="does not call 'tower'"):
        clone.fit(X, Y, verbose=0)


@once_compiled
def test_tower_may_run_in_chunks():
    plain = make_model(tower=make_tower(has_statistics=False))
    chunked = make_model(tower=make_tower(has_statistics=False), chunked=True)
    chunked.set_weights(plain.get_weights())
    fit(plain)
    fit(chunked)
    assert_all_close(averages(chunked), averages(plain), 1e-4, 1e-5)


@once_compiled
def test_layer_called_directly_is_a_copy_of_the_tower():
    tower = make_tower()
    slow = MomentumTower(tower, 0.5)
    slow.build((None, 6))
    assert_all_close([slow(X[0])], [tower(X[0])], 1e-5)
    config = MomentumTower(tower, MOMENTA["BYOL"]).get_config()
    assert MomentumTower.from_config(config)._get_tower() is tower
    for momentum in (0.5, MOMENTA["BYOL"]):
        config = keras.saving.serialize_keras_object(MomentumTower(tower, momentum, name="slow"))
        copy = keras.saving.deserialize_keras_object(config)
        assert keras.saving.serialize_keras_object(copy)["config"]["name"] == "slow"
        assert isinstance(copy.momentum, type(momentum))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tower": "mse"}, "`tower`.*a layer or a model.*Received: tower='mse'"),
        ({"momentum": 1.1}, "`momentum`.*<= 1.*Received: momentum=1.1"),
        ({"momentum": -0.1}, "`momentum`.*Received: momentum=-0.1"),
        ({"momentum": "slow"}, "`momentum`.*Received: momentum='slow'"),
    ],
)
@values_only
def test_invalid_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MomentumTower(**{"tower": make_tower(), **arguments})
