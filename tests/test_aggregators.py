"""The aggregators: pinned values, optimality, and the properties that all of them share."""

import functools
import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_jointloss import aggregators
from keras_jointloss.aggregators import (
    IMTLG,
    MGDA,
    AlignedMTL,
    CAGrad,
    Mean,
    NashMTL,
    PCGrad,
    PreferenceAggregator,
    Sum,
    UPGrad,
)
from tests.gradients import dtypes, value_and_gradient

BACKEND = keras.backend.backend()
COUNTS = (1, 2, 3, 8, 32)
PINNED_JACOBIAN = [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]

CASES = {
    "Sum": Sum(),
    "Mean": Mean(),
    "PCGrad": PCGrad(),
    "MGDA": MGDA(),
    "MGDA-l2": MGDA(normalize="l2"),
    "MGDA-loss": MGDA(normalize="loss"),
    "MGDA-loss+": MGDA(normalize="loss+"),
    "CAGrad": CAGrad(),
    "CAGrad-1.5": CAGrad(c=1.5),
    "NashMTL": NashMTL(),
    "AlignedMTL": AlignedMTL(),
    "IMTLG": IMTLG(),
    "UPGrad": UPGrad(),
}
all_aggregators = pytest.mark.parametrize("aggregator", CASES.values(), ids=CASES)
all_dtypes = pytest.mark.parametrize("dtype", dtypes())
all_counts = pytest.mark.parametrize("count", COUNTS)


def well_conditioned(count, generator):
    return generator.normal(size=(count, 64))


def similar(count, generator):
    return well_conditioned(count, generator) + 1


def ill_scaled(count, generator):
    lengths = 10 ** np.linspace(-3, 3, count)[:, None]
    return generator.permutation(lengths * well_conditioned(count, generator))


def rank_deficient(count, generator):
    rank = max(1, count // 2)
    return generator.normal(size=(count, rank)) @ generator.normal(size=(rank, 64))


def collinear(count, generator):
    result = well_conditioned(count, generator)
    result[-1] = 2 * result[0]
    return result


def antiparallel(count, generator):
    result = well_conditioned(count, generator)
    result[-1] = -2 * result[0]
    return result


def nearly_antiparallel(count, generator):
    result = well_conditioned(count, generator)
    result[-1] = -2 * result[0] + 1e-2 * result[-1]
    return result


def conflicting(count, generator):
    result = well_conditioned(count, generator)
    return result - 0.99 * np.mean(result, axis=0)


def orthogonal(count, generator):
    return np.eye(count, 64)


REGULAR = (well_conditioned, similar, ill_scaled, conflicting, orthogonal)
SINGULAR = (rank_deficient, collinear, antiparallel, nearly_antiparallel)
all_kinds = pytest.mark.parametrize("kind", [*REGULAR, *SINGULAR])


def jacobians(kind, count, dtype="float64", number=2):
    """Yields matrices of a kind in float64, of which each entry is one of `dtype`."""
    for seed in range(number):
        yield kind(count, np.random.default_rng(seed)).astype(dtype).astype("float64")


def losses_of(jacobian):
    return np.linspace(1.0, 2.0, len(jacobian))


def solve(aggregator, jacobian, dtype="float32", step=0):
    """Returns the coefficients as a float64 array."""
    gramian = ops.convert_to_tensor(jacobian @ jacobian.T, dtype)
    return call(aggregator, "solve", gramian, losses_of(jacobian), step)


def combine(aggregator, jacobian, dtype="float32", step=0):
    """Returns the combined gradient as a float64 array."""
    matrix = ops.convert_to_tensor(jacobian, dtype)
    return call(aggregator, "__call__", matrix, losses_of(jacobian), step)


def call(aggregator, method, matrix, losses, step=0):
    return to_float64(call_graph(aggregator, method, matrix, losses, step))


def call_graph(aggregator, method, matrix, losses, step=0):
    losses = ops.convert_to_tensor(losses, "float32")
    step = ops.convert_to_tensor(step, "int32")
    config = json.dumps(aggregator.get_config())
    return graph(type(aggregator), config, method)(matrix, losses, step)


@functools.cache
def graph(cls, config, method):
    """Returns a method as a graph, of which there is one for all tests as it takes a while."""
    function = getattr(cls(**json.loads(config)), method)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)
    return function if BACKEND == "torch" else compiled(function)


def to_float64(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def assert_vectors_close(actual, expected, tolerance):
    assert np.all(np.isfinite(actual))
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def compiled(function):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True, autograph=False)
    import jax

    return jax.jit(function)


# Values.


@all_dtypes
@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [
        (Sum(), (2, 2)),
        (Mean(), (1, 1)),
        (MGDA(), (0, 1)),
        (PCGrad(), (0.5848, 3.8012)),
        (CAGrad(c=0.5), (0.1835, 1.2041)),
        (AlignedMTL(), (0.2133, 0.9673)),
        (IMTLG(rescale=False), (0.0767, 1.0)),
        (NashMTL(rescale=False), (0.0766, 0.9985)),
        (UPGrad(), (0.2924, 1.9006)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pinned_values(aggregator, expected, dtype):
    jacobian = np.array(PINNED_JACOBIAN, dtype)
    result = aggregator(jacobian)
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    first, second = expected
    np.testing.assert_allclose(to_float64(result), (first, second, second), atol=1e-3)
    # The coefficients for the Gramian are those that the combination is made of.
    np.testing.assert_allclose(
        solve(aggregator, jacobian.astype("float64"), dtype) @ jacobian, result, atol=1e-4
    )


def test_pinned_coefficients_of_mgda():
    np.testing.assert_allclose(solve(MGDA(), np.array(PINNED_JACOBIAN)), (0.6, 0.4), atol=1e-5)


def naive_pcgrad(jacobian, orders):
    """PCGrad on the gradients themselves, one projection at a time."""
    result = np.zeros(jacobian.shape[1])
    for i, order in enumerate(orders):
        gradient = jacobian[i].copy()
        for j in order:
            product = gradient @ jacobian[j]
            if j != i and product < 0:
                gradient -= product / (jacobian[j] @ jacobian[j]) * jacobian[j]
        result += gradient
    return result


@all_dtypes
@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_pcgrad_equals_projections_one_by_one(count, step, dtype):
    from keras_jointloss.aggregators.pcgrad import random_orders

    orders = ops.convert_to_numpy(random_orders(count, 7, step))
    tolerance = 1e-4 if dtype == "float32" else 1e-10
    for jacobian in jacobians(conflicting, count):
        actual = solve(PCGrad(seed=7), jacobian, dtype, step) @ jacobian
        assert_vectors_close(actual, naive_pcgrad(jacobian, orders), tolerance)


def test_random_orders():
    from keras_jointloss.aggregators.pcgrad import random_orders

    orders = np.array(
        [
            ops.convert_to_numpy(random_orders(4, seed, step))
            for seed in (0, 1)
            for step in range(99)
        ]
    )
    np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(4), orders.shape))
    assert len({order.tobytes() for order in orders}) == len(orders)
    # Every number comes as often at every place, to five standard deviations.
    frequencies = np.mean(orders[..., None] == np.arange(4), axis=(0, 1))
    np.testing.assert_allclose(frequencies, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / (4 * len(orders))))
    # The same on every backend, wherever the step comes from.
    np.testing.assert_array_equal(orders[0, :2], [[1, 2, 0, 3], [0, 3, 1, 2]])
    step = ops.convert_to_tensor(5, "int32")
    np.testing.assert_array_equal(ops.convert_to_numpy(random_orders(4, 1, step)), orders[99 + 5])


# Optimality, by the conditions of Karush, Kuhn and Tucker, for the Gramian that is given. What has
# to be 0 is held against the sum of the sizes of what it is made of.


def given(jacobian, dtype):
    """Returns the Gramian as an aggregator of that dtype gets it, the lengths and the cosines."""
    gramian = (jacobian @ jacobian.T).astype(dtype).astype("float64")
    lengths = np.sqrt(np.diag(gramian))
    return gramian, lengths, gramian / lengths[:, None] / lengths[None, :]


def tolerance_for(dtype, single=1e-3):
    return single if dtype == "float32" else 1e-5


def optimality_tolerance(kind, dtype):
    # Of gradients that cancel, multipliers are as large as rounding lets them be.
    return 1e-3 if kind is antiparallel and dtype == "float32" else 1e-5


@all_dtypes
@all_counts
@all_kinds
def test_mgda_is_optimal(kind, count, dtype):
    for jacobian in jacobians(kind, count, dtype):
        _, lengths, cosines = given(jacobian, dtype)
        w = solve(MGDA(), jacobian, dtype)
        assert np.all(w >= 0)
        np.testing.assert_allclose(np.sum(w), 1, rtol=1e-5)
        parts = w * lengths / np.max(w * lengths)
        # How much more each gradient gains than the combination itself.
        surplus = cosines @ parts - (parts @ cosines @ parts) / np.sum(parts / lengths) / lengths
        tolerance = optimality_tolerance(kind, dtype)
        assert np.all(surplus >= -tolerance)
        assert np.all(np.abs(parts * surplus) <= tolerance)


@all_dtypes
@all_counts
@all_kinds
def test_upgrad_is_optimal(kind, count, dtype):
    for jacobian in jacobians(kind, count, dtype):
        _, lengths, cosines = given(jacobian, dtype)
        one_hot = np.eye(count)[0]
        v = solve(UPGrad(preference=one_hot), jacobian, dtype) * lengths / lengths[0]
        assert np.all(v >= one_hot * (1 - 1e-6))
        gain = cosines @ v / np.sum(v)
        tolerance = optimality_tolerance(kind, dtype)
        assert np.all(gain >= -tolerance)
        assert np.all(np.abs((v - one_hot) * gain) <= tolerance * np.max(v))


@all_dtypes
@pytest.mark.parametrize(
    ("c", "count"), [(0.5, 2), (0.1, 3), (0.9, 3), (0.5, 8), (0.9, 8), (0.5, 32)]
)
@all_kinds
def test_cagrad_is_optimal(kind, count, dtype, c):
    if dtype == "float32" and kind is antiparallel:
        pytest.skip("how far a direction without gain leads is up to rounding")
    for jacobian in jacobians(kind, count, dtype):
        gramian, _, _ = given(jacobian, dtype)
        mean = np.full(count, 1 / count)
        added = solve(CAGrad(c=c), jacobian, dtype) - mean
        assert np.all(added >= -1e-6 * (np.max(np.abs(added)) + 1 / count))

        def length(w, gramian=gramian):
            return np.sqrt(np.maximum(w @ gramian @ w, 0))

        # The mean of conflicting gradients is itself short by cancelling.
        tolerance = 1e-3 if kind is conflicting and dtype == "float32" else 1e-5
        size = mean + np.abs(added)
        sizes = np.abs(gramian) @ size
        assert length(added) - c * length(mean) <= tolerance * np.sqrt(size @ sizes)
        # Weak duality: the minimum over w is no less than the least gain; they meet.
        w = np.maximum(added, 0) / np.sum(np.maximum(added, 0))
        dual = w @ gramian @ mean + c * length(mean) * length(w)
        assert np.all(gramian @ (mean + added) - dual >= -tolerance * sizes)


@all_dtypes
@all_counts
@pytest.mark.parametrize("kind", [*REGULAR, collinear, nearly_antiparallel])
def test_nash_mtl_is_stationary(kind, count, dtype):
    for jacobian in jacobians(kind, count, dtype):
        gramian, _, _ = given(jacobian, dtype)
        w = solve(NashMTL(rescale=False), jacobian, dtype)
        assert np.all(w > 0)
        assert np.all(np.abs(w * (gramian @ w) - 1) <= 1e-5 * w * (np.abs(gramian) @ w))


@all_dtypes
@all_counts
@pytest.mark.parametrize("kind", [well_conditioned, similar, ill_scaled, orthogonal])
def test_imtl_g_has_equal_projections(kind, count, dtype):
    for jacobian in jacobians(kind, count, dtype):
        unit = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
        projections = unit @ combine(IMTLG(), jacobian, dtype)
        tolerance = tolerance_for(dtype)
        np.testing.assert_allclose(projections, np.mean(projections), rtol=tolerance)
        assert np.mean(projections) > 0
        w = solve(IMTLG(rescale=False), jacobian, dtype)
        np.testing.assert_allclose(np.sum(w), 1, rtol=1e-3)


@all_dtypes
@pytest.mark.parametrize("spread", [1, 1e4])
@pytest.mark.parametrize("count", [2, 3, 8])
def test_aligned_mtl_is_the_mean_of_orthogonal_gradients(count, spread, dtype):
    lengths = np.geomspace(1, spread, count)[:, None]
    for jacobian in jacobians(well_conditioned, count, dtype):
        jacobian = lengths * jacobian
        u, singular, v = np.linalg.svd(jacobian, full_matrices=False)
        expected = np.mean(singular[-1] * u @ v, axis=0)
        actual = solve(AlignedMTL(), jacobian, dtype) @ jacobian
        # The shortest gradient is known to the rounding of the longest.
        assert_vectors_close(actual, expected, 1e-4 if spread == 1 else 1e-2)


@all_dtypes
@pytest.mark.parametrize(
    ("aggregator", "counts"),
    [
        (MGDA(), (2, 8)),
        (UPGrad(), (2, 8)),
        (NashMTL(), (2, 8)),
        (CAGrad(c=1.0), (2, 8)),
        (PCGrad(), (2,)),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("kind", [well_conditioned, similar, ill_scaled, orthogonal, collinear])
def test_result_is_in_conflict_with_no_gradient(kind, aggregator, counts, dtype):
    for count in counts:
        for jacobian in jacobians(kind, count, dtype):
            result = combine(aggregator, jacobian, dtype)
            gains = jacobian @ result / np.linalg.norm(jacobian, axis=1) / np.linalg.norm(result)
            assert np.all(gains >= (-1e-3 if dtype == "float32" else -1e-5))


# What all aggregators have in common.


@all_dtypes
@pytest.mark.parametrize("count", [3, 32])
@all_aggregators
def test_finite(count, dtype, aggregator):
    for kind in (*REGULAR, *SINGULAR):
        for jacobian in jacobians(kind, count, dtype, number=1):
            assert np.all(np.isfinite(solve(aggregator, jacobian, dtype))), kind


@all_aggregators
def test_one_term_keeps_its_gradient(aggregator):
    np.testing.assert_allclose(combine(aggregator, np.array([[3.0, -4.0]])), [3, -4], rtol=1e-5)


@pytest.mark.parametrize("factor", [1e-6, 1e6, 1e-18, 1e15])
@pytest.mark.parametrize("kind", [well_conditioned, conflicting])
@all_aggregators
def test_scale_does_not_matter(aggregator, kind, factor):
    for jacobian in jacobians(kind, 4):
        expected = combine(aggregator, jacobian)
        # Division by powers of 2 alone would be free of rounding.
        assert_vectors_close(combine(aggregator, factor * jacobian) / factor, expected, 1e-3)
        if factor in (1e-6, 1e6):
            actual = solve(aggregator, factor * jacobian)
            assert_vectors_close(actual, solve(aggregator, jacobian), 1e-3)


def test_length_of_nash_mtl_does_not_follow_the_scale_unless_rescaled():
    (jacobian,) = jacobians(well_conditioned, 4, number=1)
    for factor in (1e-15, 1e-6, 1.0, 1e6):
        result = combine(NashMTL(rescale=False), factor * jacobian)
        np.testing.assert_allclose(np.linalg.norm(result), 2, rtol=1e-5)


@all_dtypes
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("kind", [well_conditioned, ill_scaled])
@all_aggregators
def test_permuted_terms_permute_the_coefficients(aggregator, kind, count, dtype):
    if isinstance(aggregator, PCGrad) and count > 2:
        pytest.skip("the orders are random")
    if isinstance(aggregator, AlignedMTL) and kind is ill_scaled:
        pytest.skip("rounding decides which components are left out")
    for jacobian in jacobians(kind, count, dtype):
        order = np.random.default_rng(0).permutation(count)
        losses = losses_of(jacobian)
        gramian = ops.convert_to_tensor(jacobian @ jacobian.T, dtype)
        expected = call(aggregator, "solve", gramian, losses)
        gramian = ops.convert_to_tensor(jacobian[order] @ jacobian[order].T, dtype)
        actual = call(aggregator, "solve", gramian, losses[order])
        np.testing.assert_allclose(
            (actual @ jacobian[order]),
            expected @ jacobian,
            atol=tolerance_for(dtype) * np.linalg.norm(expected @ jacobian),
        )


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("kind", [well_conditioned, conflicting, collinear])
@all_aggregators
def test_term_without_gradient_is_as_if_absent(aggregator, kind, place):
    if isinstance(aggregator, PCGrad):
        kind = similar  # Without conflict the order does not matter.
    if kind is collinear and aggregator.get_config().get("normalize") in ("l2", "loss+"):
        pytest.skip("the two gradients in one direction share their coefficient anyhow")
    for jacobian in jacobians(kind, 3):
        with_zero = np.insert(jacobian, place, 0, axis=0)
        losses = np.array([1.0, 2.0, 3.0])
        gramian = ops.convert_to_tensor(with_zero @ with_zero.T, "float32")
        w = call(aggregator, "solve", gramian, np.insert(losses, place, 1.5))
        assert w[place] == 0
        gramian = ops.convert_to_tensor(jacobian @ jacobian.T, "float32")
        expected = call(aggregator, "solve", gramian, losses) @ jacobian
        assert_vectors_close(w @ with_zero, expected, 2e-3)


@all_aggregators
def test_no_gradient_at_all(aggregator):
    np.testing.assert_array_equal(combine(aggregator, np.zeros((3, 5))), np.zeros(5))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@all_aggregators
def test_not_finite_is_not_hidden(aggregator, value):
    jacobian = np.array([[1.0, 2.0], [0.0, 0.0], [value, 1.0]], "float32")
    result = combine(aggregator, jacobian)
    assert not np.any(np.isfinite(result))


@pytest.mark.parametrize("kind", [well_conditioned, similar, ill_scaled])
@pytest.mark.parametrize("count", [2, 3, 32])
@pytest.mark.backend("tensorflow", "torch")
@all_aggregators
def test_single_precision_is_near_double_precision(aggregator, count, kind):
    if isinstance(aggregator, AlignedMTL) and kind is ill_scaled:
        pytest.skip("in single precision it knows nothing of the shortest gradients")
    for jacobian in jacobians(kind, count, "float32"):
        expected = combine(aggregator, jacobian, "float64")
        assert_vectors_close(combine(aggregator, jacobian, "float32"), expected, 1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@all_aggregators
def test_half_precision_is_computed_in_single_precision(aggregator, dtype):
    (jacobian,) = jacobians(well_conditioned, 3, number=1)
    jacobian = ops.cast(ops.convert_to_tensor(1e-3 * jacobian, "float32"), dtype)
    losses = np.ones(3)
    result = call_graph(aggregator, "__call__", jacobian, losses)
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    expected = call(aggregator, "__call__", ops.cast(jacobian, "float32"), losses)
    tolerance = 2e-2 if dtype == "bfloat16" else 2e-3
    assert_vectors_close(to_float64(ops.cast(result, "float32")), expected, tolerance)


@pytest.mark.backend("tensorflow", "jax")
@all_dtypes
@pytest.mark.parametrize("count", [3])
@all_aggregators
def test_compiled_equals_eager(aggregator, count, dtype):
    function = compiled(lambda gramian, losses, step: aggregator.solve(gramian, losses, step))
    step = ops.convert_to_tensor(3, "int32")
    (jacobian,) = jacobians(well_conditioned, count, dtype, number=1)
    gramian = ops.convert_to_tensor(jacobian @ jacobian.T, dtype)
    losses = ops.convert_to_tensor(losses_of(jacobian), dtype)
    actual = to_float64(function(gramian, losses, step)) @ jacobian
    expected = to_float64(aggregator.solve(gramian, losses, step)) @ jacobian
    assert_vectors_close(actual, expected, 1e-3 if dtype == "float32" else 1e-7)


@all_aggregators
def test_no_gradient_flows_through_the_coefficients(aggregator):
    (jacobian,) = jacobians(well_conditioned, 3, "float32", number=1)
    jacobian = jacobian.astype("float32")
    losses = np.ones(3, "float32")

    def total(matrix):
        return ops.sum(call_graph(aggregator, "__call__", matrix, losses))

    _, gradient = value_and_gradient(total, jacobian)
    w = call(aggregator, "solve", ops.convert_to_tensor(jacobian @ jacobian.T), losses)
    np.testing.assert_allclose(gradient, np.broadcast_to(w[:, None], jacobian.shape), rtol=1e-3)


# Arguments.


@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize(
    "aggregator",
    [cls(rescale=True) for cls in (Sum, Mean, MGDA, CAGrad, UPGrad, AlignedMTL, NashMTL, IMTLG)],
    ids=lambda value: type(value).__name__,
)
def test_rescaled_result_has_the_length_of_the_mean(aggregator, dtype):
    for jacobian in jacobians(well_conditioned, 4):
        with_zero = np.insert(jacobian, 2, 0, axis=0)
        result = combine(aggregator, with_zero, dtype)
        expected = np.linalg.norm(np.mean(jacobian, axis=0))
        np.testing.assert_allclose(np.linalg.norm(result), expected, rtol=1e-4)


def test_rescaling_amplifies_no_rounding():
    jacobian = np.array([[1.0, 2.0, 3.0], [-2.0, -4.0, -6.0]])
    for cls in (NashMTL, IMTLG, MGDA):
        assert np.linalg.norm(combine(cls(rescale=True), jacobian)) <= 1e-2


@pytest.mark.parametrize("cls", [Mean, CAGrad, UPGrad, AlignedMTL])
def test_preference(cls):
    for jacobian in jacobians(well_conditioned, 3):
        expected = combine(cls(), jacobian)
        assert_vectors_close(combine(cls(preference=[2, 2, 2]), jacobian), expected, 1e-5)
        # A term counts half as much if there are two of it.
        preferred = combine(cls(preference=[1, 1, 2]), jacobian)
        assert np.linalg.norm(preferred - expected) > 1e-3
        if cls is not AlignedMTL:
            twice = np.concatenate([jacobian, jacobian[2:]])
            assert_vectors_close(combine(cls(), twice), preferred, 2e-3)


@pytest.mark.parametrize("normalize", ["l2", "loss", "loss+"])
def test_normalized_mgda_is_that_of_normalized_gradients(normalize):
    for jacobian in jacobians(ill_scaled, 3, number=2):
        divisor = np.ones(3)
        if "loss" in normalize:
            divisor = divisor * losses_of(jacobian)
        if normalize != "loss":
            divisor = divisor * np.linalg.norm(jacobian, axis=1)
        expected = solve(MGDA(), jacobian / divisor[:, None])
        np.testing.assert_allclose(solve(MGDA(normalize=normalize), jacobian), expected, atol=1e-4)


def test_smooth():
    new = ops.convert_to_tensor([1.0, 0.0])
    previous = ops.convert_to_tensor([0.0, 1.0])
    np.testing.assert_allclose(
        ops.convert_to_numpy(MGDA(ema=0.75).smooth(previous, new)), [0.25, 0.75]
    )
    assert MGDA(ema=0.75).smooth(None, new) is new
    assert MGDA().smooth(previous, new) is new


CHANGED = [
    Sum(rescale=True),
    Mean(preference=[1, 2]),
    PCGrad(seed=3, ema=0.5),
    MGDA(normalize="loss+"),
    CAGrad(c=0.4, preference=[2, 1]),
    NashMTL(rescale=False),
    AlignedMTL(ema=0.9),
    IMTLG(rescale=False),
    UPGrad(preference=np.array([1.0, 3.0])),
]


@pytest.mark.parametrize("aggregator", CHANGED, ids=lambda value: type(value).__name__)
def test_config_round_trip(aggregator):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(aggregator)))
    loaded = aggregators.get(config)
    assert type(loaded) is type(aggregator)
    assert loaded.get_config() == aggregator.get_config()
    assert aggregator.get_config() != type(aggregator)().get_config()
    jacobian = np.array(PINNED_JACOBIAN)
    np.testing.assert_array_equal(solve(loaded, jacobian), solve(aggregator, jacobian))


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        *((cls.__name__, cls) for cls in (Sum, Mean, PCGrad, MGDA, CAGrad, UPGrad)),
        ("pcgrad", PCGrad),
        ("nash_mtl", NashMTL),
        ("nashmtl", NashMTL),
        ("aligned_mtl", AlignedMTL),
        ("imtl_g", IMTLG),
    ],
)
def test_get_by_name(name, cls):
    assert type(aggregators.get(name)) is cls


def test_get_by_instance_and_of_ones_own():
    @keras.saving.register_keras_serializable(package="tests")
    class FirstOnly(aggregators.Aggregator):
        def coefficients(self, gramian):
            return ops.one_hot(0, gramian.shape[0])

    own = FirstOnly()
    assert aggregators.get(own) is own
    assert type(aggregators.get("first_only")) is FirstOnly
    np.testing.assert_allclose(combine(own, np.array(PINNED_JACOBIAN)), PINNED_JACOBIAN[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: aggregators.get("best"), "Received: aggregator='best'"),
        (lambda: aggregators.get(None), "Received: aggregator=None"),
        (lambda: aggregators.get("Aggregator"), "Received: aggregator='Aggregator'"),
        (lambda: Sum(ema=1.0), "ema=1.0"),
        (lambda: Sum(ema=-0.1), "ema=-0.1"),
        (lambda: CAGrad(c=-1), "c=-1"),
        (lambda: CAGrad(c=None), "c=None"),
        (lambda: PCGrad(seed=-1), "seed=-1"),
        (lambda: PCGrad(seed=0.5), "seed=0.5"),
        (lambda: MGDA(normalize="l1"), "normalize='l1'"),
        (lambda: Mean(preference=[0, 0]), "preference="),
        (lambda: Mean(preference=[1, -1]), r"preference\[1\]=-1"),
        (lambda: Mean(preference=2), "preference=2"),
        (lambda: Mean(preference="ab"), "preference='ab'"),
        (lambda: Mean(preference=[1, 1, 1])(PINNED_JACOBIAN), "Expected 2 numbers"),
        (lambda: Sum()([1.0, 2.0]), "`matrix`"),
        (lambda: Sum().solve(PINNED_JACOBIAN), "`gramian`"),
        (lambda: MGDA(normalize="loss")(PINNED_JACOBIAN), "losses=None"),
        (lambda: MGDA(normalize="loss")(PINNED_JACOBIAN, [1.0]), "`losses`"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_only_some_have_a_preference():
    having = {name for name, value in CASES.items() if isinstance(value, PreferenceAggregator)}
    assert having == {"Mean", "CAGrad", "CAGrad-1.5", "AlignedMTL", "UPGrad"}


# The package `torchjd`.


@pytest.mark.backend("torch")
@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem:UserWarning")
@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize(
    ("aggregator", "name", "arguments"),
    [
        (Sum(), "Sum", {}),
        (Mean(), "Mean", {}),
        (Mean(preference=[1, 2, 3, 4, 5, 6, 7, 8]), "Constant", {}),
        (PCGrad(), "PCGrad", {}),
        (MGDA(), "MGDA", {"epsilon": 1e-9, "max_iters": 10000}),
        (CAGrad(), "CAGrad", {"c": 0.5}),
        (AlignedMTL(), "AlignedMTL", {}),
        (IMTLG(rescale=False), "IMTLG", {}),
        (NashMTL(rescale=False), "NashMTL", {}),
        (UPGrad(), "UPGrad", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equals_torchjd(aggregator, name, arguments, count):
    torch = pytest.importorskip("torch")
    aggregation = pytest.importorskip("torchjd.aggregation")
    if name == "PCGrad" and count > 2:
        pytest.skip("the orders are random")
    if name == "NashMTL":
        arguments = {"n_tasks": count, "max_norm": 0.0}
    if name == "Constant":
        shares = torch.arange(1.0, count + 1, dtype=torch.float64)
        arguments = {"weights": shares / shares.sum()}
        aggregator = Mean(preference=shares.tolist())
    try:
        other = getattr(aggregation, name)(**arguments)
    except (ImportError, NameError):
        pytest.skip("torchjd lacks the solver that this one needs")
    for jacobian in jacobians(well_conditioned, count):
        expected = other(torch.as_tensor(jacobian)).numpy()
        assert_vectors_close(combine(aggregator, jacobian, "float64"), expected, 1e-3)
