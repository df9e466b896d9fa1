"""Trainings in several threads, one after the other in a process, and with data of processes."""

import gc
import threading

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss._core import saved_state
from keras_jointloss.terms import clock
from keras_jointloss.terms.shared_config import shared_configs
from tests.processes import run_python

#: How many models are trained and deleted. They take long on backends that compile.
MODELS = {"torch": 50}.get(keras.backend.backend(), 4)
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(24, 6)).astype("float32")
Y = {"label": np.arange(24) % 3, "mood": X[:, 1:2]}


def make(seed=0, **options):
    """Returns a model with a rule, a schedule, a memory and a layer that combines gradients."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((6,))
    a, b = keras.layers.Dense(4)(inputs), keras.layers.Dense(4)(inputs)
    weight = kj.schedules.Linear(0.1, 0.5, 20)
    a, b = kj.layers.ContrastiveTerm("InfoNCE", weight=weight, memory_size=16, name="pair")((a, b))
    z = kj.layers.GradientBalancer(["label", "mood"], "pcgrad")(a + b)
    heads = {
        "label": keras.layers.Dense(3, activation="softmax")(z["label"]),
        "mood": keras.layers.Dense(1)(z["mood"]),
    }
    model = keras.Model(inputs, heads)
    losses = {"label": "sparse_categorical_crossentropy", "mood": "mse"}
    joint = kj.joint_loss(losses, weighting=kj.weighting.FAMO())
    model.compile(keras.optimizers.Adam(0.01), **joint, **options)
    return model


class Takes(keras.callbacks.Callback):
    """Waits before each batch for the other trainings, so that their steps alternate."""

    def __init__(self, barrier):
        super().__init__()
        self.barrier = barrier

    def on_train_batch_begin(self, batch, logs=None):
        self.barrier.wait(120)


def trained(model, *callbacks, epochs=2, **options):
    """Trains a model, and returns its history and state."""
    callbacks = [kj.callbacks.JointLossCallback(), *callbacks]
    options = {"batch_size": 8, "shuffle": False, "verbose": 0, "epochs": epochs, **options}
    history = model.fit(X, Y, callbacks=callbacks, **options).history
    return [*history.values(), *model.get_weights()]


def same(found, expected):
    """Returns whether all values are the same to the last bit."""
    pairs = zip(found, expected, strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


def test_same_seed_gives_the_same_bits_and_two_threads_those_of_one():
    seeds = (1, 2)
    expected = [trained(make(seed)) for seed in seeds]
    assert same(trained(make(1)), expected[0])
    assert not same(*expected)
    models, found = [make(seed) for seed in seeds], {}
    barrier = threading.Barrier(len(models))

    def train(index):
        try:
            found[index] = trained(models[index], Takes(barrier))
        finally:
            if index not in found:
                barrier.abort()

    threads = [threading.Thread(target=train, args=(i,)) for i in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(len(models)):
        assert same(found[index], expected[index])


def test_other_models_and_cleared_sessions_do_not_disturb():
    whole = trained(make(), epochs=3)
    model = make()
    trained(model, epochs=1)
    keras.utils.clear_session()
    trained(make(5), epochs=1)
    keras.utils.clear_session()
    rest = trained(model, initial_epoch=1, epochs=3)
    weights = len(model.get_weights())
    assert same(rest[-weights:], whole[-weights:])
    for found, expected in zip(rest[:-weights], whole[:-weights], strict=True):
        assert same([found], [expected[1:]])


def own_objects():
    """Returns how many objects of the package are alive, and what its registries hold."""
    keras.utils.clear_session()
    gc.collect()
    kinds = [type(value) for value in gc.get_objects()]
    own = sum(str(kind.__module__).startswith("keras_jointloss") for kind in kinds)
    registries = (clock._clocks, saved_state._files, shared_configs._objects)
    return own, *map(len, registries), threading.active_count()


def test_deleted_models_leave_nothing(tmp_path):
    def life(seed):
        model = make(seed, run_eagerly=True)  # The backends keep steps that they have compiled.
        callback = kj.callbacks.JointLossCallback(tmp_path)
        options = {"batch_size": 12, "verbose": 0, "callbacks": [callback]}
        model.fit(X, Y, **options)
        if seed % 10 == 0:
            model.save(tmp_path / "model.keras")
            keras.models.load_model(tmp_path / "model.keras")
            keras.utils.clear_session()

    for seed in range(2):
        life(seed)
    before = own_objects()
    for seed in range(MODELS):
        life(seed)
    assert all(x <= y for x, y in zip(own_objects(), before, strict=True))


WORKERS = """
import multiprocessing
import sys

import keras
import numpy as np

import keras_jointloss as kj

if __name__ == "__main__":
    multiprocessing.set_start_method(sys.argv[1])
    x = np.arange(48, dtype="float32")[:, None]
    options = {"labels": np.arange(48) % 4, "seed": 3}
    plain = kj.data.ClassBatches(x, x, 2, 3, **options)
    made = kj.data.ClassBatches(x, x, 2, 3, workers=2, use_multiprocessing=True, **options)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    histories = []
    for data in (plain, made):
        model.set_weights([np.zeros((1, 1)), np.zeros(1)])
        histories.append(model.fit(data, epochs=2, shuffle=False, verbose=0).history["loss"])
    assert histories[0] == histories[1], histories
    print("same")
"""


# A process of JAX and TensorFlow has threads once it has computed: Python should not fork it.
@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        pytest.param("fork", marks=pytest.mark.backend("torch")),
        pytest.param("spawn", marks=pytest.mark.backend("jax", "tensorflow")),
    ],
)
def test_data_of_processes_is_that_of_one(method, tmp_path):
    path = tmp_path / "train.py"
    path.write_text(WORKERS)
    code = "import runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
    ended = run_python(code, path, method, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[-1] == "same"
