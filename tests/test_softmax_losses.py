"""The softmax and sigmoid losses: tiles, temperatures, compilation and nonnegative values."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss._core import math as _math
from keras_jointloss.losses import _tiles
from tests import loss_cases as cases
from tests import reference
from tests.backends import BACKEND, once_compiled, tf, torch
from tests.gradients import (
    COMPILES,
    compiled,
    compiled_value_and_gradient,
    dtypes,
    value_and_gradient,
)
from tests.loss_cases import TILED, Case, assert_close, labels_of, tensor, views_of


@pytest.mark.parametrize(
    ("is_accelerator", "expected"),
    [
        (False, {2048: "dense", 2049: 256, 65536: 256}),
        (True, {5792: "dense", 5793: 5792, 16384: 2048, 65536: 512, 2**20: 256}),
    ],
)
def test_default_tiles_fit_caches_or_fill_an_accelerator(monkeypatch, is_accelerator, expected):
    monkeypatch.setattr(_tiles, "is_on_accelerator", lambda x: is_accelerator)
    for items, form in expected.items():
        x = ops.zeros((items, 1))
        assert _tiles.choose(lambda: "dense", lambda tile_size: tile_size, x, x, None) == form


@pytest.mark.backend("tensorflow", "torch")
@pytest.mark.parametrize("name", sorted(TILED))
def test_tiles_change_neither_value_nor_gradient(name):
    case = Case(name)
    views, weight = views_of(case, 17, 8).astype("float32"), np.linspace(-1, 1, 17)
    labels, valid = labels_of(case, 17), np.arange(17) % 5 > 0
    dense, gradient = cases.weighted_value_and_gradient(case.function, views, labels, valid, weight)
    for tile_size in [1, 7, 17]:
        value, actual = cases.weighted_value_and_gradient(
            case.with_tile_size(tile_size), views, labels, valid, weight
        )
        assert_close(value, dense, 1e-5)
        assert_close(actual, gradient, 1e-5)


@pytest.mark.parametrize("tile_size", [None, 2])
@pytest.mark.parametrize("name", ["info_nce", "siglip"])
def test_tensor_temperature_and_bias_get_gradients(name, tile_size):
    views, weight = views_of(Case(name)), np.linspace(0.5, 1.5, 5)
    start = np.array([0.3, -2.0])
    dtype = dtypes()[-1]

    def arguments(x):
        return {"temperature": x[0]} | ({"bias": x[1]} if name == "siglip" else {})

    def total(x):
        function = getattr(kj.losses, name)
        values = function(ops.convert_to_tensor(views.astype(dtype)), tile_size=tile_size, **x)
        return ops.sum(values * ops.convert_to_tensor(weight.astype(dtype)))

    _, actual = value_and_gradient(lambda x: total(arguments(x)), start.astype(dtype))
    numeric = reference.central_differences(
        lambda x: np.sum(getattr(reference, name)(views, **arguments(x)) * weight), start
    )
    assert_close(actual, numeric, 1e-4)


COLD = [
    Case(name, {**arguments, "temperature": 0.01})
    for name in sorted(TILED - {"n_pairs"})
    for arguments in ([{}] if name == "sup_con" else [{}, {"same_label": "positive"}])
]


@once_compiled
@pytest.mark.parametrize("case", COLD, ids=str)
def test_low_temperature_equals_the_reference(case):
    labels = labels_of(case) if case.labels else None
    sizes = (None,) if COMPILES else (None, 4)
    cases.assert_equals_reference(case, views_of(case), labels, tile_sizes=sizes)


@once_compiled
def test_equal_distances_between_far_embeddings_are_exact():
    # At a length of 1e4, rounding in |a|^2 + |b|^2 - 2ab would hide a distance of 1.
    views = np.array([[[0, 0], [1, 0]], [[0, 2], [0, 0]]]) + 10_000.0
    labels = np.array([0, 1])
    for case in [
        Case("contrastive"),
        Case("triplet", {"mining": "all"}),
        Case("info_nce", {"similarity": "euclidean", "temperature": 1.0}),
        Case("nt_xent", {"similarity": "euclidean", "temperature": 1.0}),
    ]:
        expected = case.naive(views, labels, **case.arguments)
        actual = case.with_tile_size(None)(tensor(views.astype("float32")), tensor(labels))
        assert_close(actual, expected, 1e-4, err_msg=case.name)


# Compiled


@pytest.mark.parametrize(
    ("case", "tile_size"),
    # On JAX, which compiles for one batch size, `test_degenerate_batches` compiles these.
    [
        pytest.param(Case(name), None, marks=once_compiled)
        for name in sorted(TILED | {"triplet", "circle", "vicreg"})
    ]
    + [(Case("info_nce", {"same_label": "positive"}, 3), 2), (Case("siglip"), 2)]
    + [(Case("info_nce", {"num_hard_negatives": 2, "hardness": 1.0, "directions": "within"}), 2)]
    + [(Case("sup_con", views=1), 2), (Case("triplet_margin", {"swap": True}, 3), None)],
    ids=str,
)
def test_compiles_for_any_batch_size(case, tile_size):
    views, labels = views_of(case), labels_of(case).astype("int32")
    weight = np.linspace(0.5, 1.5, 5)
    loss = case.make(**({"tile_size": tile_size} if case.name in TILED else {}))
    given, options = case.given(views.astype("float32")), {"jit_compile": tile_size is not None}
    if BACKEND == "tensorflow":
        specs = tf.TensorSpec((None, *given.shape[1:])), tf.TensorSpec((None,), "int32")
        options["input_signature"] = specs
    compute = compiled_value_and_gradient(
        lambda x, y: ops.sum(loss.call(y, x) * ops.convert_to_tensor(weight.astype("float32"))),
        **options,
    )
    value, gradient = compute(given, labels)
    expected = np.sum(case.naive(views, labels, None, **case.arguments) * weight)
    assert value == pytest.approx(expected, rel=1e-4)
    expected = cases.expected_gradient(case, views, labels, None, weight)
    assert_close(gradient, case.given(expected), 1e-3)


def test_tiled_euclidean_distances_are_refused():
    with pytest.raises(ValueError, match=r"`tile_size`.*Received: tile_size=4"):
        kj.losses.InfoNCE(similarity="euclidean", tile_size=4)


NEVER_NEGATIVE = ["info_nce", "n_pairs", "nt_xent", "sup_con"]


def _one_item(seed):
    return np.random.default_rng(seed).normal(size=(1, 2, 64))


def _solved(seed):
    return np.random.default_rng(seed).normal(size=(64, 1, 64)).repeat(2, axis=1)


@pytest.mark.parametrize("tile_size", [None, 16])
@pytest.mark.parametrize("name", NEVER_NEGATIVE)
def test_loss_is_never_negative(name, tile_size):
    # The positive and the sum that contains it use the same product, with the same rounding.
    for make, seeds in [(_one_item, 20), (_solved, 2)]:
        case = Case(name, {} if name == "n_pairs" else {"temperature": 0.01})
        function = compiled(case.with_tile_size(tile_size))
        labels = ops.arange(len(make(0)))
        for seed in range(seeds):
            values = ops.convert_to_numpy(function(tensor(make(seed).astype("float32")), labels))
            assert values.min() >= 0, seed
            assert values.max() < 1e-5 or name == "n_pairs", seed


@once_compiled
@pytest.mark.parametrize("kind", ["bfloat16", "TF32"])
@pytest.mark.parametrize("name", NEVER_NEGATIVE)
def test_loss_is_never_negative_with_rounded_products(name, kind, monkeypatch):
    def rounded(x):
        x = ops.convert_to_numpy(x)
        bits = 16 if kind == "bfloat16" else 13  # Dropped from the 23 bits of float32.
        kept = (x.view("int32") + (1 << (bits - 1))) >> bits << bits
        return ops.convert_to_tensor(kept.astype("int32").view("float32"))

    product = _math.matrix_product
    monkeypatch.setattr(_math, "matrix_product", lambda a, b: product(rounded(a), rounded(b)))
    case = Case(name, {} if name == "n_pairs" else {"temperature": 0.01})
    # NumPy cannot round inside the compiled loops of the other backends.
    for tile_size in [None, 16] if BACKEND == "torch" else [None]:
        function = case.with_tile_size(tile_size)
        for views in (_one_item(0), _solved(0)):
            values = function(tensor(views.astype("float32")), ops.arange(len(views)))
            assert ops.convert_to_numpy(values).min() >= 0


@pytest.mark.backend("torch")
@pytest.mark.parametrize("name", sorted(TILED))
def test_number_of_host_synchronizations_is_independent_of_tiles(name, monkeypatch):
    waits, count = [], torch.Tensor.__bool__
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda x: waits.append(1) or count(x))
    case, found = Case(name), []
    views, labels = views_of(case, 16).astype("float32"), labels_of(case, 16)
    for tile_size in (2, 8):
        waits.clear()
        function = case.with_tile_size(tile_size)
        cases.weighted_value_and_gradient(function, views, labels, None, np.ones(16))
        found.append(len(waits))
    assert found[0] == found[1] <= 2


DTYPES = [("float16", "float16")]
if BACKEND != "jax":  # It has no float64 by default.
    DTYPES += [("float32", "float64"), ("float64", "float32")]
if not COMPILES:
    DTYPES += [("bfloat16", "bfloat16")]


@pytest.mark.parametrize(("floatx", "policy"), DTYPES)
def test_losses_and_metrics_train_with_any_floatx_and_policy(floatx, policy):
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    losses = {
        "dense": kj.losses.SupCon(),
        "tiled": kj.losses.InfoNCE(tile_size=4),
        "mined": kj.losses.Triplet(),
    }
    inputs = keras.Input((2, 4))
    model = keras.Model(inputs, {name: keras.layers.Dense(3, name=name)(inputs) for name in losses})
    views = np.random.default_rng(0).normal(size=(16, 2, 4))
    labels = np.arange(16) % 5
    metrics = [
        kj.metrics.RecallAtK(same_label="positive"),
        kj.metrics.MeanAveragePrecisionAtR(),
        kj.metrics.Uniformity(),
    ]
    model.compile("sgd", losses, metrics={"dense": metrics})
    logs = model.fit(views, dict.fromkeys(losses, labels), batch_size=8, verbose=0).history
    assert len(logs) == 1 + len(losses) + len(metrics)
    assert all(np.isfinite(float(value)) for (value,) in logs.values())
