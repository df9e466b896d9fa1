"""The state of a shared trunk, compared with that of a plain one, and the trunks it refuses."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.backends import BACKEND, tf, torch
from tests.balanced_models import LOSSES
from tests.comparisons import assert_all_close

GENERATOR = np.random.default_rng(9)
X = GENERATOR.normal(size=(24, 5, 6))
Y = {term: GENERATOR.normal(size=(24, 1)) for term in "ab"}


def shared(trunk, aggregator=None):
    return kj.layers.SharedTrunk(trunk, ["a", "b"], aggregator)


class Counting(keras.layers.Layer):
    """Counts its calls in variables that Keras does not list, and scales by one of them."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4)
        # Keras does not look into an object that is no layer.
        self.counts = type("Counts", (), {})()
        self.counts.value = keras.Variable(1.0, trainable=False)

    def build(self, input_shape):
        self.dense.build(input_shape)

    def call(self, inputs):
        z = self.dense(inputs) * ops.copy(self.counts.value) / 10
        self.counts.value.assign(self.counts.value + 1)
        return z

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 4)


def train(trunk, is_shared, run_eagerly=False):
    """Trains a model with a head for each term."""
    inputs = keras.Input(batch_shape=(8, 5, 6))
    z = shared(trunk, "sum")(inputs) if is_shared else dict.fromkeys("ab", trunk(inputs))
    flat = {term: keras.layers.Flatten()(x) for term, x in z.items()}
    model = keras.Model(inputs, {term: keras.layers.Dense(1)(x) for term, x in flat.items()})
    model.compile(keras.optimizers.SGD(0.05), **kj.joint_loss(LOSSES), run_eagerly=run_eagerly)
    for start in (0, 8, 16, 0, 8, 16):  # With a batch size that a stateful RNN knows.
        rows = slice(start, start + 8)
        model.train_on_batch(X[rows], {term: y[rows] for term, y in Y.items()})


def assert_state_is_that_of_plain_trunk(create, state_of=lambda trunk: (), train=train, **options):
    found = []
    for is_shared in (False, True):
        keras.utils.set_random_seed(0)
        trunk = create()
        train(trunk, is_shared, **options)
        found.append([ops.convert_to_numpy(x) for x in [*state_of(trunk), *trunk.weights]])
    assert_all_close(found[1], found[0], 1e-4, 1e-5)
    return found[0]


@pytest.mark.backend("tensorflow")  # On PyTorch, Keras cannot train it; on JAX, it loses the state.
@pytest.mark.parametrize("run_eagerly", [False, True], ids=["compiled", "eager"])
def test_stateful_rnn_keeps_its_state(run_eagerly):
    create = functools.partial(keras.layers.LSTM, 4, stateful=True)
    state = assert_state_is_that_of_plain_trunk(create, lambda x: x.states, run_eagerly=run_eagerly)
    assert np.all(state[0] != 0)


@pytest.mark.backend("tensorflow", "torch")  # On JAX, Keras keeps only the variables it lists.
def test_variable_that_keras_does_not_list_changes_once_in_a_step():
    state = assert_state_is_that_of_plain_trunk(Counting, lambda x: [x.counts.value])
    assert state[0] == 7


def test_second_call_in_a_step_continues_the_state():
    def create():
        return keras.Sequential([keras.layers.BatchNormalization(), keras.layers.Dense(4)])

    def train(trunk, is_shared):
        trunk.build((8, 6))
        inputs = {term: keras.Input((6,), name=term) for term in "ab"}
        layer = shared(trunk, "sum") if is_shared else trunk
        outputs = {term: layer(inputs[term]) for term in "ab"}
        outputs = {x: keras.layers.Dense(1)(z[x] if is_shared else z) for x, z in outputs.items()}
        model = keras.Model(inputs, outputs)
        model.compile("sgd", loss=LOSSES)
        model.fit({"a": X[:, 0], "b": X[:, 1]}, Y, batch_size=8, shuffle=False, verbose=0)

    assert_state_is_that_of_plain_trunk(create, train=train)


def trained(trunk):
    """Calls a shared trunk as in training."""
    return shared(trunk)(ops.convert_to_tensor(X[:, 0].astype("float32")), training=True)


def test_trunk_that_assigns_to_a_parameter_is_refused():
    dense = keras.layers.Dense(2, name="normalized")
    with pytest.raises(ValueError, match=r"Received: .*normalized/kernel'"):
        trained(keras.Sequential([keras.layers.SpectralNormalization(dense)]))


def test_layer_with_several_inputs_says_to_wrap_it_in_a_model():
    attention = keras.layers.MultiHeadAttention(2, 4)
    message = r"keras.Model\(\[query, value\], layer\(query, value\)\)"
    with pytest.raises(ValueError, match=message):
        shared(attention)
    x = ops.convert_to_tensor(X[:4].astype("float32"))
    with pytest.raises(ValueError, match="Expected one input of the `SharedTrunk`"):
        shared(keras.layers.Dense(2))(x, x)
    query, value = keras.Input((5, 6)), keras.Input((5, 6))
    layer = shared(keras.Model([query, value], attention(query, value)))
    assert layer([x, x], training=True)["b"].shape == (4, 5, 6)


def test_trunk_whose_training_argument_has_no_default_is_one_input():
    class Explicit(keras.layers.Dense):
        def call(self, inputs, training):
            return super().call(inputs)

    assert trained(Explicit(2))["a"].shape == (24, 2)


@pytest.mark.backend("tensorflow")
def test_recomputed_function_that_reads_a_parameter_is_refused():
    class Recomputed(keras.layers.Dense):
        def call(self, inputs):
            return keras.remat(super().call)(inputs)

    with pytest.raises(ValueError, match=r"use `ChunkedTower`.*the parameter '.*guilty/kernel'"):
        trained(keras.Sequential([Recomputed(2, name="guilty")]))


@pytest.mark.backend("tensorflow", "torch")
def test_state_of_the_backend_is_refused():
    class Native(keras.layers.Dense):
        def build(self, input_shape):
            super().build(input_shape)
            if BACKEND == "torch":
                self.register_buffer("count", torch.zeros(()))
            else:
                self.count = tf.Variable(0.0)

    with pytest.raises(ValueError, match=r"`add_weight`.*<Native name=guilty.*'count'"):
        trained(keras.Sequential([Native(2, name="guilty")]))


@pytest.mark.backend("torch")
def test_torch_module_is_refused():
    layer = keras.layers.TorchModuleWrapper(torch.nn.Linear(6, 2), name="guilty")
    with pytest.raises(ValueError, match=r"`GradientBalancer`.*<TorchModuleWrapper name=guilty"):
        shared(keras.Sequential([layer]))
