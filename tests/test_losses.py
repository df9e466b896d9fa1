"""The losses against naive references, in value, gradient, shapes and errors."""

import functools
import inspect
import json
from typing import NamedTuple

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.backend import set_keras_mask  # What a layer uses to mark padded items.

import keras_jointloss as kj
from tests import reference
from tests.gradients import dtypes, value_and_gradient

CLASSES = {
    "contrastive": kj.losses.Contrastive,
    "cosine_embedding": kj.losses.CosineEmbedding,
    "margin_contrastive": kj.losses.MarginContrastive,
    "triplet": kj.losses.Triplet,
    "info_nce": kj.losses.InfoNCE,
    "siglip": kj.losses.SigLIP,
    "nt_xent": kj.losses.NTXent,
    "sup_con": kj.losses.SupCon,
    "decoupled_contrastive": kj.losses.DecoupledContrastive,
    "n_pairs": kj.losses.NPairs,
    "multi_similarity": kj.losses.MultiSimilarity,
    "circle": kj.losses.Circle,
    "vicreg": kj.losses.VICReg,
    "barlow_twins": kj.losses.BarlowTwins,
}
#: JAX compiles each loop anew, and each operation for each shape: there is time for less.
IS_JAX = keras.backend.backend() == "jax"
PAIR_LABELS = {"contrastive", "cosine_embedding", "margin_contrastive"}
CLASS_LABELS = {"triplet", "sup_con", "n_pairs", "multi_similarity", "circle"}
TILED = {"info_nce", "siglip", "nt_xent", "sup_con", "decoupled_contrastive", "n_pairs"}
#: Those whose similarity is the cosine unless an argument says otherwise.
COSINE = {
    "cosine_embedding",
    "info_nce",
    "siglip",
    "nt_xent",
    "sup_con",
    "decoupled_contrastive",
    "multi_similarity",
    "circle",
}
MORE_VIEWS = {"triplet", "nt_xent", "sup_con", "decoupled_contrastive"} | {
    "info_nce",
    "multi_similarity",
    "circle",
}


class Case(NamedTuple):
    """A loss with arguments, for items of so many views."""

    name: str
    arguments: dict = {}  # noqa: RUF012  # Nobody writes to it.
    views: int = 2

    @property
    def function(self):
        return getattr(kj.losses, self.name)

    @property
    def naive(self):
        return getattr(reference, self.name)

    @property
    def labels(self):
        """Which labels it takes: "pair", "class" or none."""
        if self.name in PAIR_LABELS:
            return "pair"
        return "class" if self.name in CLASS_LABELS or self.arguments.get("same_label") else None

    @property
    def tile_sizes(self):
        """Some sizes of tiles; those of a loss with arguments are fewer."""
        if self.name not in TILED or self.arguments.get("similarity") == "euclidean":
            return (None,)
        if IS_JAX:
            return (None,) if self.arguments else (None, 4)
        return (None, 4) if self.arguments else (None, 4, 2, 3, 100)

    @property
    def few_tile_sizes(self):
        """Those that do where the arguments, or the degenerate batch, are the point."""
        return self.tile_sizes[: 1 if self.arguments or IS_JAX else 2]

    @property
    def is_cosine(self):
        default = "cosine" if self.name in COSINE else None
        normalize = self.arguments.get("normalize", False)
        return normalize or self.arguments.get("similarity", default) == "cosine"

    def make(self, **arguments):
        return CLASSES[self.name](**self.arguments, **arguments)

    def with_tile_size(self, tile_size):
        """Returns the function with its arguments, in tiles of that size."""
        arguments = {"tile_size": tile_size} if self.name in TILED else {}
        return functools.partial(self.function, **self.arguments, **arguments)


CASES = {
    f"{case.name}-{case.views}"
    + "".join(f"-{key}={value}" for key, value in case.arguments.items()): case
    for case in [
        *(Case(name) for name in CLASSES),
        Case("contrastive", {"margin": 2.5}),
        Case("cosine_embedding", {"margin": 0.3}),
        Case("margin_contrastive", {"margin": 0.5, "normalize": True}),
        Case("triplet", {"mining": "all", "margin": 0.2}, 3),
        Case("triplet", {"mining": "hard", "similarity": "cosine"}),
        Case("triplet", {"mining": "semi_hard", "margin": "soft", "similarity": "dot"}, 3),
        Case("triplet", {"mining": "all", "margin": "soft", "similarity": "cosine"}),
        Case("info_nce", {"symmetric": False, "similarity": "euclidean", "temperature": 0.5}),
        Case("info_nce", {"similarity": "dot", "temperature": 2.0, "label_smoothing": 0.1}, 3),
        Case("info_nce", {"same_label": "positive", "label_smoothing": 0.2}),
        Case("info_nce", {"same_label": "positive", "temperature": 0.5}, 4),
        Case("info_nce", {"same_label": "ignore", "label_smoothing": 0.2}, 3),
        Case("siglip", {"similarity": "dot", "temperature": 1.0, "bias": -1.0}),
        Case("siglip", {"same_label": "positive", "bias": -2.0}),
        Case("siglip", {"same_label": "ignore", "bias": -2.0}),
        Case("nt_xent", {"similarity": "dot", "temperature": 1.0, "label_smoothing": 0.1}, 3),
        Case("nt_xent", {"same_label": "positive", "similarity": "euclidean"}),
        Case("nt_xent", {"same_label": "ignore", "label_smoothing": 0.1}, 3),
        Case("sup_con", {"similarity": "dot", "temperature": 1.0, "label_smoothing": 0.1}, 3),
        Case("sup_con", {"similarity": "euclidean", "temperature": 0.5}),
        Case("decoupled_contrastive", {"similarity": "euclidean", "same_label": "positive"}),
        Case("decoupled_contrastive", {"same_label": "ignore", "temperature": 0.5}, 3),
        Case("decoupled_contrastive", {"similarity": "dot", "temperature": 1.0}, 3),
        Case("n_pairs", {"similarity": "cosine", "label_smoothing": 0.1}),
        Case("multi_similarity", {"mining_margin": 0.1}),
        Case("multi_similarity", {"alpha": 3.0, "beta": 10.0, "base": 0.2}, 3),
        Case("circle", {"margin": 0.25, "gamma": 10.0}, 3),
        Case(
            "vicreg",
            {
                "invariance_weight": 2.0,
                "variance_weight": 3.0,
                "covariance_weight": 4.0,
                "epsilon": 1e-2,
            },
        ),
        Case("barlow_twins", {"off_diagonal_weight": 0.5}),
    ]
}
DEFAULTS = [Case(name) for name in CLASSES]
#: Those that meet degenerate batches: not those that differ from them in a number only.
VARIANTS = {
    key: case
    for key, case in CASES.items()
    if not case.arguments or case.arguments.keys() & {"mining", "similarity", "same_label"}
}
VALID = np.array([True, True, False, True, True])


def _views(case, batch=5, dim=3, scale=1.0, seed=0):
    """Returns items whose views lie near each other, in float64, but exact in float32, too."""
    generator = np.random.default_rng(seed)
    center = generator.normal(size=(batch, 1, dim))
    views = center + 0.8 * generator.normal(size=(batch, case.views, dim))
    return (scale * views).astype("float32").astype("float64")


def _labels(case, batch=5):
    if case.labels == "pair":
        return np.resize([0, 1, 1, 0, 0.25], batch)
    return np.resize([3, -1, 3, 0, 0], batch)


def _tensor(x):
    return None if x is None else ops.convert_to_tensor(x)


def _assert_close(actual, expected, tolerance, least=1.0, **more):
    """Compares relative to the largest value there is, or to `least`."""
    scale = max(np.abs(expected).max(), least)
    np.testing.assert_allclose(
        ops.convert_to_numpy(actual) / scale, expected / scale, rtol=0, atol=tolerance, **more
    )


def _expected_gradient(case, views, labels, valid, weight, scale=1.0):
    """Returns the central differences of the weighted sum of the naive values."""
    fixed = {"weights_at": views} if case.name == "circle" else {}

    def total(x):
        return np.sum(case.naive(x, labels, valid, **case.arguments, **fixed) * weight)

    return reference.central_differences(total, views, 1e-6 * scale)


def _value_and_gradient(function, views, labels, valid, weight):
    """Returns the weighted sum of the values, and its gradient."""
    labels, valid = _tensor(labels), _tensor(valid)
    weight = ops.convert_to_tensor(weight.astype(views.dtype))

    def total(x):
        return ops.sum(function(x, labels, valid) * weight)

    value, gradient = value_and_gradient(total, views)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    return value, gradient


def _assert_equals_reference(
    case, views, labels, valid=None, tile_sizes=None, gradient=True, dtype="float32"
):
    """Asserts equal values and gradients, for every size of tiles."""
    value_tolerance, tolerance = (1e-6, 1e-5) if dtype == "float64" else (1e-4, 1e-3)
    weight = np.linspace(0.5, 1.5, len(views))
    expected = np.sum(case.naive(views, labels, valid, **case.arguments) * weight)
    scale = max(np.nanmax(np.abs(views)), 1.0)
    numeric = _expected_gradient(case, views, labels, valid, weight, scale) if gradient else None
    for tile_size in tile_sizes or case.tile_sizes:
        value, actual = _value_and_gradient(
            case.with_tile_size(tile_size), views.astype(dtype), labels, valid, weight
        )
        _assert_close(value, expected, value_tolerance, err_msg=f"tile_size={tile_size}")
        if gradient:
            message = f"tile_size={tile_size}"
            _assert_close(actual, numeric, tolerance, least=0.1 / scale, err_msg=message)


# Values and gradients


@pytest.mark.parametrize("valid", [None, VALID], ids=["all", "masked"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_value_and_gradient_equal_the_reference(case, valid):
    views, labels = _views(case), _labels(case) if case.labels else None
    if valid is not None:
        views[~valid] = np.nan
    _assert_equals_reference(case, views, labels, valid, dtype=dtypes()[-1])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_class_equals_the_reference_at_other_shapes_and_other_labels(case):
    for batch, dim, labels in [
        (5, 3, np.ones(5, "int64")),
        (5, 3, np.arange(5) if case.labels == "class" else np.zeros(5)),
        (9, 4, _labels(case, 9)),
        (2, 1, np.array([1, 0])),
    ][: 2 if IS_JAX else 4]:
        views = _views(case, batch, dim, seed=batch)
        expected = case.naive(views, labels if case.labels else None, None, **case.arguments)
        column = labels[:, None] if batch == 9 else labels
        actual = case.make().call(_tensor(column), _tensor(views.astype("float32")))
        assert tuple(actual.shape) == (batch,)
        _assert_close(actual, expected, 1e-4, err_msg=f"batch={batch}, labels={labels}")


@pytest.mark.backend("tensorflow", "torch")
@pytest.mark.parametrize("name", sorted(TILED))
def test_tiles_change_neither_value_nor_gradient(name):
    case = Case(name)
    views, weight = _views(case, 17, 8).astype("float32"), np.linspace(-1, 1, 17)
    labels, valid = _labels(case, 17), np.arange(17) % 5 > 0
    dense, gradient = _value_and_gradient(case.function, views, labels, valid, weight)
    for tile_size in [1, 7, 17]:
        value, actual = _value_and_gradient(
            case.with_tile_size(tile_size), views, labels, valid, weight
        )
        _assert_close(value, dense, 1e-5)
        _assert_close(actual, gradient, 1e-5)


@pytest.mark.parametrize("tile_size", [None, 2])
@pytest.mark.parametrize("name", ["info_nce", "siglip"])
def test_temperature_and_bias_may_be_tensors_and_get_their_gradients(name, tile_size):
    views, weight = _views(Case(name)), np.linspace(0.5, 1.5, 5)
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
    _assert_close(actual, numeric, 1e-4)


# Labels

MULTI_HOT = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 1]])
WITH_LABELS = {key: case for key, case in CASES.items() if case.labels == "class"}


@pytest.mark.parametrize("case", WITH_LABELS.values(), ids=WITH_LABELS)
def test_items_share_a_label_if_their_sets_of_labels_meet(case):
    views = _views(case)
    for dtype, valid in [("int32", None), ("float32", VALID)]:
        expected = case.naive(views, MULTI_HOT, valid, **case.arguments)
        for tile_size in case.few_tile_sizes:
            actual = case.with_tile_size(tile_size)(
                ops.convert_to_tensor(views.astype("float32")),
                ops.convert_to_tensor(MULTI_HOT.astype(dtype)),
                _tensor(valid),
            )
            _assert_close(actual, expected, 1e-4, err_msg=f"tile_size={tile_size}")


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "bool"])
def test_class_labels_may_have_any_integer_type(dtype):
    case = Case("sup_con")
    labels = np.array([1, 0, 1, 0, 0])
    actual = case.function(_tensor(_views(case).astype("float32")), labels.astype(dtype))
    _assert_close(actual, case.naive(_views(case), labels), 1e-4)


@pytest.mark.backend("tensorflow", "torch")  # On JAX the 64-bit integers are off by default.
@pytest.mark.parametrize("case", WITH_LABELS.values(), ids=WITH_LABELS)
def test_large_class_labels_are_told_apart(case):
    labels = 2**40 + np.array([0, 1, 0, 1, 2], "int64")
    views = _views(case)
    expected = case.naive(views, labels, None, **case.arguments)
    for tile_size in case.few_tile_sizes:
        function = case.with_tile_size(tile_size)
        actual = function(_tensor(views.astype("float32")), _tensor(labels))
        _assert_close(actual, expected, 1e-4, err_msg=f"tile_size={tile_size}")


# Weights, masks and types

WEIGHT = np.array([0.5, 1.0, 0.0, 2.0, 1.5])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_item_of_weight_zero_is_left_out(case):
    views, labels = _views(case), _labels(case)
    views[2] = np.nan
    values = case.naive(views, labels if case.labels else None, WEIGHT > 0, **case.arguments)
    actual = case.make()(labels, views.astype("float32"), sample_weight=WEIGHT)
    assert float(actual) == pytest.approx(np.sum(values * WEIGHT) / 5, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("reduction", "divisor"),
    [("sum_over_batch_size", 5), ("sum", 1), ("mean_with_sample_weight", np.sum(WEIGHT))],
)
def test_weights_are_reduced_as_in_keras(reduction, divisor):
    case = Case("nt_xent")
    values = case.naive(_views(case), None, WEIGHT > 0)
    loss = case.make(reduction=reduction)
    for weight in [WEIGHT, WEIGHT[:, None]]:
        actual = loss(np.zeros(5), _views(case).astype("float32"), sample_weight=weight)
        assert float(actual) == pytest.approx(np.sum(values * WEIGHT) / divisor, rel=1e-4)


@pytest.mark.parametrize("case", DEFAULTS, ids=list(CLASSES))
def test_gradient_of_an_item_of_weight_zero_is_zero(case):
    views, labels = _views(case).astype("float32"), _labels(case)
    views[2] = np.nan
    loss = case.make()
    _, gradient = value_and_gradient(lambda x: loss(labels, x, WEIGHT), views)
    numeric = _expected_gradient(case, views.astype("float64"), labels, WEIGHT > 0, WEIGHT / 5)
    assert (gradient[2] == 0).all()
    _assert_close(gradient, numeric, 1e-3)


@pytest.mark.parametrize("case", DEFAULTS, ids=list(CLASSES))
def test_masked_item_is_left_out(case):
    views, labels = _views(case), _labels(case)
    views[3] = np.nan
    mask = np.array([True, True, True, False, True])
    for weight in [None, WEIGHT]:
        valid = mask if weight is None else mask & (weight > 0)
        values = case.naive(views, labels, valid, **case.arguments)
        expected = np.sum(values * (mask if weight is None else mask * weight)) / np.sum(mask)
        masked = ops.convert_to_tensor(views.astype("float32"))
        set_keras_mask(masked, ops.convert_to_tensor(mask))
        actual = case.make()(labels, masked, sample_weight=weight)
        assert float(actual) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("case", DEFAULTS, ids=list(CLASSES))
def test_batch_without_a_valid_item_costs_nothing(case):
    views = np.full((5, 2, 3), np.nan, "float32")
    loss = case.make()
    value, gradient = value_and_gradient(lambda x: loss(_labels(case), x, np.zeros(5)), views)
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", DEFAULTS, ids=list(CLASSES))
def test_half_precision_inputs_are_computed_in_float32(case, dtype):
    # Dot products of this size are beyond the range of float16.
    scale = 1.0 if case.is_cosine else 300.0
    views = ops.cast(_views(case, scale=scale).astype("float32"), dtype)
    rounded = ops.convert_to_numpy(ops.cast(views, "float32")).astype("float64")
    labels = _labels(case)
    expected = case.naive(rounded, labels, **case.arguments)
    for tile_size in case.few_tile_sizes:
        actual = case.with_tile_size(tile_size)(views, _tensor(labels))
        assert keras.backend.standardize_dtype(actual.dtype) == "float32"
        _assert_close(actual, expected, 1e-4)
    value = case.make()(labels, views)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(value) == pytest.approx(expected.mean(), rel=1e-3)


@pytest.mark.backend("tensorflow", "torch")  # On JAX float64 is off by default.
@pytest.mark.parametrize("case", DEFAULTS, ids=list(CLASSES))
def test_float64_inputs_are_computed_in_float64(case):
    views, labels = _views(case), _labels(case)
    for values in [
        case.function(_tensor(views), _tensor(labels)),
        case.make(dtype="float64").call(_tensor(labels), _tensor(views)),
    ]:
        assert keras.backend.standardize_dtype(values.dtype) == "float64"
        _assert_close(values, case.naive(views, labels), 1e-9)


# Degenerate batches

#: Those that do not choose among samples: a tie is no kink.
SMOOTH = {
    key: case
    for key, case in VARIANTS.items()
    if case.arguments.get("mining", "semi_hard" if case.name == "triplet" else "all") == "all"
    and "mining_margin" not in case.arguments
}


@pytest.mark.parametrize("case", DEFAULTS, ids=list(CLASSES))
def test_batch_of_one(case):
    labels = _labels(case, 1) if case.labels else None
    _assert_equals_reference(case, _views(case, 1), labels, tile_sizes=case.few_tile_sizes)


@pytest.mark.parametrize("labels", [np.full(5, 7), np.arange(5)], ids=["same", "different"])
@pytest.mark.parametrize("case", WITH_LABELS.values(), ids=WITH_LABELS)
def test_items_of_one_label_or_of_all_different_labels(case, labels):
    _assert_equals_reference(case, _views(case), labels, tile_sizes=case.few_tile_sizes)


@pytest.mark.parametrize("case", DEFAULTS, ids=list(CLASSES))
def test_one_valid_item(case):
    views, valid = _views(case), np.arange(5) == 1
    labels = _labels(case) if case.labels else None
    _assert_equals_reference(case, views, labels, valid, tile_sizes=case.few_tile_sizes)


@pytest.mark.parametrize("case", VARIANTS.values(), ids=VARIANTS)
def test_identical_embeddings(case):
    # Only values: at ties of mining and at bounds of hinges differences have no meaning.
    vector = np.random.default_rng(0).normal(size=3).astype("float32")
    views = np.broadcast_to(vector.astype("float64"), (5, case.views, 3)).copy()
    labels = _labels(case) if case.labels else None
    _assert_equals_reference(case, views, labels, tile_sizes=case.few_tile_sizes, gradient=False)


@pytest.mark.parametrize("case", SMOOTH.values(), ids=SMOOTH)
def test_item_of_identical_views(case):
    views = _views(case)
    views[1, 1] = views[1, 0]
    labels = _labels(case) if case.labels else None
    _assert_equals_reference(case, views, labels, tile_sizes=case.few_tile_sizes)


@pytest.mark.parametrize("name", ["vicreg", "barlow_twins"])
def test_feature_without_variance(name):
    case = Case(name)
    views = _views(case, 7).astype("float32")
    views[:, :, 1] = 0.1  # The rounded mean of seven is not 0.1.
    value, gradient = _value_and_gradient(case.function, views, None, None, np.ones(7))
    _assert_close(value, np.sum(case.naive(views.astype("float64"), None)), 1e-4)
    if name == "barlow_twins":
        np.testing.assert_allclose(gradient[:, :, 1], 0, atol=1e-4)


@pytest.mark.parametrize("case", VARIANTS.values(), ids=VARIANTS)
def test_zero_vectors(case):
    labels = _labels(case) if case.labels else None
    _assert_equals_reference(
        case, np.zeros((5, case.views, 3)), labels, tile_sizes=case.few_tile_sizes, gradient=False
    )
    views = _views(case)
    views[1, 0] = 0
    if not case.is_cosine:
        if case not in SMOOTH.values():  # All are as far from a zero vector by its dot product.
            return
        _assert_equals_reference(case, views, labels, tile_sizes=case.few_tile_sizes)
        return
    _assert_equals_reference(case, views, labels, tile_sizes=case.few_tile_sizes, gradient=False)
    weight = np.linspace(0.5, 1.5, 5)
    numeric = _expected_gradient(case, views, labels, None, weight)
    numeric[1, 0] = 0  # By convention: the cosine jumps there.
    for tile_size in case.few_tile_sizes:
        function = case.with_tile_size(tile_size)
        _, gradient = _value_and_gradient(function, views.astype("float32"), labels, None, weight)
        assert (gradient[1, 0] == 0).all()
        _assert_close(gradient, numeric, 1e-3)


@pytest.mark.parametrize("case", VARIANTS.values(), ids=VARIANTS)
def test_embeddings_times_ten_thousand(case):
    labels = _labels(case) if case.labels else None
    _assert_equals_reference(case, _views(case, scale=1e4), labels, tile_sizes=case.few_tile_sizes)


COLD = [
    Case(name, {**arguments, "temperature": 0.01})
    for name in sorted(TILED - {"n_pairs"})
    for arguments in ([{}] if name == "sup_con" else [{}, {"same_label": "positive"}])
]


@pytest.mark.parametrize("case", COLD, ids=str)
def test_low_temperature(case):
    labels = _labels(case) if case.labels else None
    _assert_equals_reference(
        case, _views(case), labels, tile_sizes=(None,) if IS_JAX else (None, 4)
    )


def test_equal_distances_between_far_embeddings_are_exact():
    # The identity |a|^2 + |b|^2 - 2ab would lose a distance of 1 at a length of 1e4 to rounding.
    views = np.array([[[0, 0], [1, 0]], [[0, 2], [0, 0]]]) + 10_000.0
    labels = np.array([0, 1])
    for case in [
        Case("contrastive"),
        Case("triplet", {"mining": "all"}),
        Case("info_nce", {"similarity": "euclidean", "temperature": 1.0}),
        Case("nt_xent", {"similarity": "euclidean", "temperature": 1.0}),
    ]:
        expected = case.naive(views, labels, **case.arguments)
        actual = case.with_tile_size(None)(_tensor(views.astype("float32")), _tensor(labels))
        _assert_close(actual, expected, 1e-4, err_msg=case.name)


def test_identical_embeddings_cost_the_log_of_the_batch_size():
    loss = kj.losses.InfoNCE()(np.zeros(7), np.ones((7, 2, 3), "float32"))
    assert float(loss) == pytest.approx(np.log(7), rel=1e-5)


# Compiled


def _compiled_value_and_gradient(function, views, labels, xla):
    """Compiles `function` and its gradient for any batch size, where the backend can."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        @tf.function(
            input_signature=[
                tf.TensorSpec((None, *views.shape[1:])),
                tf.TensorSpec((None,), "int32"),
            ],
            jit_compile=xla,
        )
        def compiled(views, labels):
            with tf.GradientTape() as tape:
                tape.watch(views)
                value = function(views, labels)
            return value, tape.gradient(value, views)

        value, gradient = compiled(views, labels)
        return value.numpy(), gradient.numpy()
    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(jax.value_and_grad(function))(views, labels)
    return value_and_gradient(lambda x: function(x, ops.convert_to_tensor(labels)), views)


@pytest.mark.parametrize(
    ("case", "tile_size"),
    [(Case(name), None) for name in sorted(TILED | {"triplet", "circle", "vicreg"})]
    + [(Case("info_nce", {"same_label": "positive"}, 3), 2), (Case("siglip"), 2)],
    ids=str,
)
def test_compiled_for_any_batch_size(case, tile_size):
    views, labels = _views(case), _labels(case).astype("int32")
    weight = np.linspace(0.5, 1.5, 5)
    loss = case.make(**({"tile_size": tile_size} if case.name in TILED else {}))
    value, gradient = _compiled_value_and_gradient(
        lambda x, y: ops.sum(loss.call(y, x) * ops.convert_to_tensor(weight.astype("float32"))),
        views.astype("float32"),
        labels,
        xla=tile_size is not None,
    )
    expected = np.sum(case.naive(views, labels, None, **case.arguments) * weight)
    assert value == pytest.approx(expected, rel=1e-4)
    _assert_close(gradient, _expected_gradient(case, views, labels, None, weight), 1e-3)


# Configs


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_config_round_trip(case):
    more = {"tile_size": 3} if len(case.tile_sizes) > 1 else {}
    loss = case.make(**more, name="mine", reduction="sum", dtype="float32")
    config = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(json.loads(json.dumps(config)))
    assert type(again) is CLASSES[case.name]
    assert again.get_config() == loss.get_config()
    assert {**case.arguments, **more}.items() <= loss.get_config().items()


@pytest.mark.parametrize("name", CLASSES)
def test_function_and_class_have_the_same_arguments(name):
    def defaults(function, *others):
        return {
            key: parameter.default
            for key, parameter in inspect.signature(function).parameters.items()
            if key not in others
        }

    expected = defaults(CLASSES[name], "unlabelled", "name", "reduction", "dtype")
    function = getattr(kj.losses, name)
    assert defaults(function, "views", "labels", "valid", "memory") == expected
    assert expected.keys() <= CLASSES[name]().get_config().keys()
    naive = defaults(getattr(reference, name), "views", "labels", "valid", "weights_at")
    assert naive == {key: value for key, value in expected.items() if key != "tile_size"}


# Errors


@pytest.mark.parametrize("name", CLASSES)
def test_views_of_another_shape_are_refused(name):
    shapes = [(4, 3), (4, 1, 3), (4, 2, 3, 1)]
    for shape in shapes if name in MORE_VIEWS else [*shapes, (4, 3, 3)]:
        with pytest.raises(ValueError, match=r"expects stacked views .*Received: shape="):
            CLASSES[name]().call(np.zeros(4), np.zeros(shape, "float32"))


@pytest.mark.parametrize("name", sorted(PAIR_LABELS | CLASS_LABELS))
def test_labels_of_another_shape_are_refused(name):
    shapes = [(), (3,), (3, 1), (4, 1, 1)]
    for shape in [*shapes, (4, 2)] if name in PAIR_LABELS else [*shapes, (3, 2)]:
        with pytest.raises(ValueError, match=r"expects labels .*Received: shape="):
            CLASSES[name]().call(np.zeros(shape), np.zeros((4, 2, 3), "float32"))


@pytest.mark.parametrize("name", ["info_nce", "siglip", "nt_xent", "decoupled_contrastive"])
def test_labels_that_are_needed_but_missing_are_refused(name):
    with pytest.raises(ValueError, match="label"):
        getattr(kj.losses, name)(np.zeros((4, 2, 3), "float32"), same_label="positive")


NO_POSITIVE_NUMBER = [0, -1.0, float("nan"), float("inf"), "0.1", None, True]
NEGATIVE = [-0.5, float("nan"), "1", None, True]
NO_CHOICE = ["manhattan", 1, True]
REFUSED = {
    "temperature": ("info_nce siglip nt_xent sup_con decoupled_contrastive", NO_POSITIVE_NUMBER),
    "margin": ("contrastive margin_contrastive triplet circle", [-0.5, float("nan"), "hard", None]),
    "mining": ("triplet", [*NO_CHOICE, None]),
    "similarity": (
        "triplet info_nce siglip nt_xent sup_con decoupled_contrastive n_pairs",
        [*NO_CHOICE, None],
    ),
    "same_label": ("info_nce siglip nt_xent decoupled_contrastive", NO_CHOICE),
    "label_smoothing": ("info_nce nt_xent sup_con n_pairs", [-0.1, 1.5, float("nan"), "0.1"]),
    "tile_size": (" ".join(sorted(TILED)), [0, -1, 1.5, "2", True]),
    "bias": ("siglip", [float("nan"), "0", None]),
    "alpha": ("multi_similarity", NO_POSITIVE_NUMBER),
    "beta": ("multi_similarity", NO_POSITIVE_NUMBER),
    "base": ("multi_similarity", [float("nan"), "0", None]),
    "mining_margin": ("multi_similarity", [float("nan"), "0"]),
    "gamma": ("circle", NO_POSITIVE_NUMBER),
    "invariance_weight": ("vicreg", NEGATIVE),
    "variance_weight": ("vicreg", NEGATIVE),
    "covariance_weight": ("vicreg", NEGATIVE),
    "epsilon": ("vicreg", NEGATIVE),
    "off_diagonal_weight": ("barlow_twins", NEGATIVE),
}


@pytest.mark.parametrize("argument", REFUSED)
def test_arguments_out_of_range_are_refused(argument):
    names, values = REFUSED[argument]
    for name in names.split():
        for value in values:
            with pytest.raises(ValueError, match=rf"`{argument}`.*Received: {argument}="):
                CLASSES[name](**{argument: value})


def test_tiles_of_euclidean_distances_are_refused():
    with pytest.raises(ValueError, match=r"`tile_size`.*Received: tile_size=4"):
        kj.losses.InfoNCE(similarity="euclidean", tile_size=4)


# Names


@pytest.mark.parametrize("name", CLASSES)
def test_get_finds_every_loss_by_its_name(name):
    loss = kj.losses.get(CLASSES[name].__name__)
    assert type(loss) is CLASSES[name]
    assert loss.name == name


def test_get_finds_losses_by_name_instance_and_config():
    assert isinstance(kj.losses.get("MeanSquaredError"), keras.losses.MeanSquaredError)
    loss = kj.losses.InfoNCE(0.3)
    assert kj.losses.get(loss) is loss
    config = keras.saving.serialize_keras_object(loss)
    assert kj.losses.get(config).get_config() == loss.get_config()


@pytest.mark.parametrize("identifier", ["NoSuchLoss", "Reduction", "ContrastiveTerm", 3, None])
def test_get_refuses_what_is_no_loss(identifier):
    with pytest.raises(ValueError, match=r"Expected a `keras.losses.Loss`.*Received: loss="):
        kj.losses.get(identifier)
