"""The chunked tower: values, gradients and training equal those of the plain tower."""

import re
import types

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.backends import BACKEND, jax, tf
from tests.comparisons import assert_all_close
from tests.gradients import dtypes
from tests.small_models import copies_of

DTYPE = dtypes()[-1]
EXACT = {"rtol": 1e-9, "atol": 1e-11} if DTYPE == "float64" else {"rtol": 2e-5, "atol": 1e-5}
# On PyTorch, Keras multiplies matrices in float32, with rounding that depends on their size.
TOLERANCE = EXACT if BACKEND == "tensorflow" else {"rtol": 2e-5, "atol": 1e-5}
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(10, 5))
UPSTREAM = GENERATOR.normal(size=(10, 3))
CHUNK = 4


@pytest.fixture
def widest():
    """Makes new layers compute in the widest dtype."""
    keras.config.set_floatx(DTYPE)
    keras.config.set_dtype_policy(DTYPE)


def encoder(dropout=0.0, seed=3):
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(7, activation="tanh", kernel_regularizer="l2"),
        keras.layers.Dropout(dropout, seed=seed),
        keras.layers.LayerNormalization(),
        keras.layers.Dense(3),
    ]
    return keras.Sequential(layers)


def in_loop(tower, x):
    """Returns the output of a tower, applied in training to the same chunks as in the layer."""
    rows = len(x)
    size = min(CHUNK, rows)
    parts = []
    for start in range(0, rows, size):
        # On TensorFlow the last chunk overlaps the one before it.
        first = min(start, rows - size) if BACKEND == "tensorflow" else start
        parts.append(tower(x[first : start + size], training=True)[start - first :])
    return ops.concatenate(parts)


def results(function, layer, x, compiled=False):
    """Returns the output, its gradients for input and parameters, and the states afterwards."""
    x, variables = ops.convert_to_tensor(x), layer.trainable_variables
    others = layer.non_trainable_variables
    upstream = ops.convert_to_tensor(UPSTREAM[: len(x)].astype(DTYPE))
    if BACKEND == "tensorflow":

        def compute(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                z = function(x)
                value = ops.sum(ops.cast(z, DTYPE) * upstream)
            return z, tape.gradient(value, [x, *(v.value for v in variables)])

        if compiled:
            unknown = [tf.TensorSpec((None, *x.shape[1:]), x.dtype)]
            compute = tf.function(compute, input_signature=unknown, jit_compile=True)
        z, gradients = compute(x)
        states = others
    elif BACKEND == "jax":

        def compute(x, values, states):
            mapping = [*zip(variables, values, strict=True), *zip(others, states, strict=True)]
            with keras.StatelessScope(mapping) as scope:
                z = function(x)
            states = [scope.get_current_value(variable) for variable in others]
            return ops.sum(ops.cast(z, DTYPE) * upstream), (z, states)

        compute = jax.value_and_grad(compute, argnums=(0, 1), has_aux=True)
        compute = jax.jit(compute) if compiled else compute
        values = [[v.value for v in vs] for vs in (variables, others)]
        (_, (z, states)), gradients = compute(x, *values)
        gradients = [gradients[0], *gradients[1]]
    else:
        x = x.clone().requires_grad_()
        z = function(x)
        layer.zero_grad()
        ops.sum(ops.cast(z, DTYPE) * upstream).backward()
        gradients, states = [x.grad, *(v.value.grad for v in variables)], others
    return [0 if v is None else ops.convert_to_numpy(v) for v in (z, *gradients, *states)]


def assert_equals_plain(tower, x, compiled=False, tolerance=TOLERANCE):
    """Asserts that values, gradients and states in chunks are those of the plain tower."""
    layer = kj.layers.ChunkedTower(tower, CHUNK)
    actual = results(lambda x: layer(x, training=True), tower, x, compiled)
    expected = results(lambda x: tower(x, training=True), tower, x)
    assert_all_close(actual, expected, **tolerance)


compiles = pytest.param(10, True, marks=pytest.mark.backend("tensorflow", "jax"))


@pytest.mark.parametrize(("rows", "compiled"), [(8, False), (10, False), (3, False), compiles])
def test_values_and_gradients_equal_those_of_the_plain_tower(rows, compiled, widest):
    assert_equals_plain(encoder(), X[:rows].astype(DTYPE), compiled)


def test_gradients_of_convolutions_equal_those_of_the_plain_tower(widest):
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((5,)),
        keras.layers.Dense(48, activation="tanh"),
        keras.layers.Reshape((6, 4, 2)),
        keras.layers.Conv2D(4, 3, strides=2, padding="same", activation="relu"),
        keras.layers.DepthwiseConv2D((2, 1)),
        keras.layers.Conv2DTranspose(2, 2, strides=2),
        keras.layers.Reshape((16, 2)),
        keras.layers.Conv1D(3, 3, dilation_rate=2),
        keras.layers.GlobalAveragePooling1D(),
    ]
    assert_equals_plain(keras.Sequential(layers), X.astype(DTYPE))


@pytest.mark.backend("jax")
def test_primitives_of_jax_up_to_0_8():
    """Their parameters came with functions, which are the first inputs."""
    from keras_jointloss._core.backend.jax import convolutions

    primitive = types.SimpleNamespace(
        get_bind_params=lambda params: (["function"], {**params, "b": 2}),
        bind=lambda *inputs, **params: (inputs, params),
        multiple_results=False,
    )
    equation = types.SimpleNamespace(primitive=primitive)
    found = convolutions._bound(equation, ["x"], {"a": 1})
    assert found == [(("function", "x"), {"a": 1, "b": 2})]


@pytest.mark.backend("jax")
def test_compiled_loop_stores_no_activations_and_has_fast_convolutions():
    tower = keras.Sequential(
        [keras.Input((6, 6, 2)), keras.layers.Conv2D(16, 3, activation="tanh")]
    )
    tower.add(keras.layers.Conv2D(4, 1))
    layer = kj.layers.ChunkedTower(tower, 2)
    values = [variable.value for variable in tower.trainable_variables]

    def loss(values, x):
        with keras.StatelessScope([*zip(tower.trainable_variables, values, strict=True)]):
            return ops.sum(ops.square(layer(x, training=True)))

    def compiled(rows):
        x = jax.ShapeDtypeStruct((rows, 6, 6, 2), "float32")
        return jax.jit(jax.grad(loss)).lower(values, x).compile()

    small, large = compiled(8), compiled(128)
    labels = re.findall(r"convolution\(.*dim_labels=([\w>-]+)", small.as_text())
    assert labels
    assert set(labels) == {"b01f_01io->b01f"}
    sizes = [step.memory_analysis().temp_size_in_bytes for step in (small, large)]
    outputs = 4 * (128 - 8) * 4 * 4 * 4  # In bytes.
    assert sizes[1] - sizes[0] <= 2.1 * outputs  # The outputs and their gradient.


@pytest.mark.parametrize("seed", [3, None])
def test_both_passes_use_the_same_random_numbers(seed, widest):
    x = X.astype(DTYPE)
    tower = encoder(0.5, seed)
    expected = results(lambda x: in_loop(tower, x), tower, x)
    tower = encoder(0.5, seed)
    layer = kj.layers.ChunkedTower(tower, CHUNK)
    actual = results(lambda x: layer(x, training=True), tower, x)
    assert_all_close(actual, expected, **EXACT)
    assert not np.allclose(actual[0], results(lambda x: tower(x), tower, x)[0])


def test_inference_is_the_plain_tower():
    tower = encoder(0.5)
    layer = kj.layers.ChunkedTower(tower, CHUNK)
    for options in ({}, {"training": False}):
        assert_all_close([layer(X, **options)], [tower(X, training=False)], 0)


class Pair(keras.layers.Layer):
    """Encodes a dict of tokens and numbers; its `call` has no argument `training`."""

    def __init__(self):
        super().__init__()
        self.embedding = keras.layers.Embedding(6, 3, mask_zero=True)
        self.dense, self.dropout = keras.layers.Dense(3), keras.layers.Dropout(0.5, seed=1)
        self.lstm = keras.layers.LSTM(3, return_sequences=True)

    def build(self, input_shape):
        self.embedding.build(input_shape["tokens"])
        self.lstm.build((*input_shape["tokens"], 3))
        self.dense.build(input_shape["numbers"])

    def call(self, inputs):
        numbers = self.dropout(self.dense(inputs["numbers"]))
        return {"sequence": self.lstm(self.embedding(inputs["tokens"])), "vector": numbers}


def test_structures_integers_and_masks_pass_through():
    keras.utils.set_random_seed(1)
    tokens = np.array([[1, 2, 0], [3, 0, 0], [4, 5, 1], [2, 2, 2], [1, 0, 0]])
    inputs = {"tokens": tokens, "numbers": X[:5].astype("float32")}
    tower = Pair()
    layer = kj.layers.ChunkedTower(tower, 5)
    actual = layer(inputs, training=True)
    state = [ops.convert_to_numpy(v) for v in tower.dropout.variables]
    tower.dropout.seed_generator.state.assign([1, 0])
    expected = tower(inputs, training=True)
    assert_all_close(actual, expected, 1e-5, 1e-6)
    assert state[0][1] == 1
    pooled, chunked = keras.layers.GlobalAveragePooling1D(), kj.layers.ChunkedTower(tower, 2)
    sequences = [chunked(inputs)["sequence"], chunked(inputs, training=True)["sequence"]]
    assert_all_close(map(pooled, sequences), [pooled(expected["sequence"])] * 2, 1e-5, 1e-6)


def contrastive_model(is_chunked):
    keras.utils.set_random_seed(2)
    tower = encoder()
    image, text = keras.Input((5,)), keras.Input((4,))
    encode = kj.layers.ChunkedTower(tower, CHUNK, name="chunked") if is_chunked else tower
    views = (encode(image), keras.layers.Dense(3, name="text")(text))
    loss = kj.losses.InfoNCE(tile_size=3)
    a, b = kj.layers.ContrastiveTerm(loss, name="pair")(views)
    model = keras.Model([image, text], a + b)
    model.compile(keras.optimizers.SGD(0.1))
    return model


def test_fit_equals_fit_of_the_plain_tower(tmp_path):
    x = [X.astype("float32"), X[:, ::-1][:, :4].astype("float32")]
    options = {"batch_size": 6, "epochs": 3, "shuffle": False, "verbose": 0}
    plain, chunked = contrastive_model(False), contrastive_model(True)
    expected = plain.fit(x, **options).history["loss"]
    np.testing.assert_allclose(chunked.fit(x, **options).history["loss"], expected, rtol=1e-4)
    assert_all_close(chunked.trainable_variables, plain.trainable_variables, 1e-3, 1e-5)
    clone, loaded = copies_of(chunked, tmp_path)
    assert loaded.get_layer("chunked").chunk_size == CHUNK
    assert clone.get_layer("chunked").tower is not chunked.get_layer("chunked").tower
    assert_all_close([loaded(x), clone(x)], [chunked(x)] * 2, 1e-6)


def test_frozen_parameters_and_mixed_precision():
    keras.config.set_dtype_policy("mixed_bfloat16")
    tower = encoder()
    tower.layers[0].trainable = False
    layer, x = kj.layers.ChunkedTower(tower, CHUNK), X.astype("float32")
    assert keras.backend.standardize_dtype(layer(x, training=True).dtype) == "bfloat16"
    assert_equals_plain(tower, x, tolerance={"rtol": 3e-2, "atol": 3e-2})


@pytest.mark.parametrize("chunk_size", [0, 2.5, True, None])
def test_invalid_arguments_are_refused(chunk_size):
    with pytest.raises(ValueError, match=r"`chunk_size`.*Received"):
        kj.layers.ChunkedTower(encoder(), chunk_size)
    with pytest.raises(ValueError, match=r"`tower`.*Received: tower='dense'"):
        kj.layers.ChunkedTower("dense", 4)


class AddsLoss(keras.layers.Layer):
    def call(self, x):
        self.add_loss(ops.mean(x))
        return x


def with_term():
    inputs = keras.Input((5,))
    a, b = kj.layers.ContrastiveTerm("InfoNCE", name="guilty")((inputs, inputs))
    return keras.Model(inputs, a + b)


def regularized():
    return keras.layers.Dense(2, activity_regularizer="l2", name="guilty")


LAYERS = {
    "tower": lambda layer: kj.layers.ChunkedTower(layer, 4),
    "trunk": lambda layer: kj.layers.SharedTrunk(layer, ["a", "b"]),
}
ADD_LOSSES = {
    "term": with_term,
    "regularizer": regularized,
    "inner regularizer": lambda: keras.Sequential([keras.Sequential([regularized()])]),
    "layer": lambda: keras.Sequential([keras.layers.Dense(2), AddsLoss(name="guilty")]),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("kind", ADD_LOSSES)
def test_layer_that_adds_losses_is_refused(layer, kind):
    advice = {"tower": "", "trunk": r"apply terms to the outputs of the `SharedTrunk`.*"}[layer]
    with pytest.raises(ValueError, match=rf"no layer adds to the loss.*{advice}<\w+ name=guilty"):
        LAYERS[layer](ADD_LOSSES[kind]())(X[:4], training=True)


@pytest.mark.parametrize(
    "synchronized", [False, pytest.param(True, marks=pytest.mark.backend("tensorflow"))]
)
def test_batch_normalization_is_refused_unless_frozen(synchronized):
    normalization = keras.layers.BatchNormalization(synchronized=synchronized)
    inner = keras.Sequential([keras.layers.Dense(3), normalization])
    tower = keras.Sequential([keras.Input((5,)), inner, keras.layers.Dense(2)])
    layer = kj.layers.ChunkedTower(tower, 4)
    with pytest.raises(ValueError, match=r"changes no variables.*moving_mean"):
        layer(X, training=True)
    layer(X, training=False)
    normalization.trainable = False
    assert_all_close([layer(X, training=True)], [tower(X, training=False)], 1e-5, 1e-6)


def test_tower_of_8_bit_floats_is_refused():
    tower = encoder()
    tower.layers[0].quantize("float8")
    with pytest.raises(ValueError, match=r"changes no variables.*scales of 8-bit floats"):
        kj.layers.ChunkedTower(tower, CHUNK)(X.astype("float32"), training=True)


def test_output_without_gradients_adds_none(widest):
    inputs = keras.Input((5,))
    constant = keras.layers.Lambda(ops.stop_gradient)(keras.layers.Dense(3)(inputs))
    tower = keras.Model(inputs, [keras.layers.Dense(3)(inputs), constant])
    layer = kj.layers.ChunkedTower(tower, CHUNK)
    expected = results(lambda x: tower(x, training=True)[0], tower, X)
    actual = results(lambda x: layer(x, training=True)[0], tower, X)
    assert_all_close(actual, expected, **TOLERANCE)
    _, *gradients = results(lambda x: layer(x, training=True)[1], tower, X)
    assert all(np.all(gradient == 0) for gradient in gradients)


def test_output_without_rows_is_refused():
    layer = kj.layers.ChunkedTower(keras.layers.Lambda(lambda x: ops.sum(x, axis=0)), 4)
    with pytest.raises(ValueError, match=r"one output row for each input row.*\(5,\)"):
        layer(X, training=True)
