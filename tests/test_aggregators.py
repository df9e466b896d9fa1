"""The aggregators: pinned values, common properties, arguments and config."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_jointloss import aggregators
from keras_jointloss.aggregators import (
    DBMTL,
    IMTLG,
    MGDA,
    PCD,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    GradVac,
    Mean,
    NashMTL,
    PCGrad,
    PreferenceAggregator,
    Shares,
    Sum,
    UPGrad,
    _gramian,
    cagrad,
)
from keras_jointloss.aggregators.pcgrad import random_orders
from tests import jacobians as kinds
from tests.backends import BACKEND, once_compiled, tf, values_only
from tests.gradients import COMPILES, value_and_gradient
from tests.jacobians import (
    CASES,
    PINNED_JACOBIAN,
    all_aggregators,
    all_dtypes,
    assert_vectors_close,
    call,
    combine,
    jacobians,
    losses_of,
    solve,
    to_float64,
)
from tests.refusals import refuses_calls

# One aggregator of each kind, for tests of the base class: without a solver, with random numbers,
# with loops, and with its own scale.
of_each_sort = pytest.mark.parametrize("name", ["Mean", "PCGrad", "CAGrad", "NashMTL"])


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
        (Shares(), (0.0794, 1.0353)),
        # By torchjd 0.18.
        (FairGrad(alpha=2.0, rescale=False), (0.0313, 0.7908)),
        (ConFIG(), (0.1588, 2.0706)),
        (DualProj(), (0.5556, 1.1111)),
        (GradVac(), (0.5848, 3.8012)),
        (PCD(), (-0.8200, 2.9434)),
        (PCD(main=1, tau=0.5), (-2.4370, 4.0038)),
        # By the formula: unit vectors times the longest length.
        (DBMTL(), (0.1881, 2.4530)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_pinned_values(aggregator, expected, dtype):
    jacobian = np.array(PINNED_JACOBIAN, dtype)
    if BACKEND == "jax":  # Eager JAX compiles each operation separately.
        result = call(aggregator, "__call__", jacobian, losses_of(jacobian))
    else:
        result = aggregator(jacobian)
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    first, second = expected
    result = to_float64(result)
    np.testing.assert_allclose(result, (first, second, second), atol=1e-3)
    np.testing.assert_allclose(
        solve(aggregator, jacobian.astype("float64"), dtype) @ jacobian, result, atol=1e-4
    )


def test_cagrad_with_c_0_is_the_mean():
    jacobian = np.array(PINNED_JACOBIAN)
    np.testing.assert_allclose(solve(CAGrad(c=0), jacobian), [0.5, 0.5], rtol=1e-6)
    np.testing.assert_allclose(solve(CAGrad(c=0, preference=[1, 3]), jacobian), [0.25, 0.75])


# Those with loops or decompositions.
XLA = ("PCGrad", "MGDA", "CAGrad", "NashMTL", "AlignedMTL", "UPGrad", "GradVac", "PCD")


@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("name", XLA)
def test_xla_result_equals_graph_result(name):
    aggregator = CASES[name]
    ((_, jacobian),) = jacobians([kinds.well_conditioned], 3, "float32", number=1)
    gramian = ops.convert_to_tensor(jacobian @ jacobian.T, "float32")
    w = tf.function(aggregator.solve, jit_compile=True, autograph=False)(gramian)
    assert_vectors_close(to_float64(w) @ jacobian, solve(aggregator, jacobian) @ jacobian, 1e-3)


# Common properties of all aggregators.


@values_only
@all_aggregators
def test_single_term_keeps_its_gradient(aggregator):
    np.testing.assert_allclose(combine(aggregator, np.array([[3.0, -4.0]])), [3, -4], rtol=1e-5)


@values_only
@all_aggregators
def test_coefficients_are_scale_invariant(aggregator):
    for kind, jacobian in jacobians(kinds.REGULAR, 3, number=1):
        expected = combine(aggregator, jacobian)
        # Only division by powers of 2 is free of rounding errors.
        for factor in (1e-6, 1e6, 1e-18, 1e15):
            actual = combine(aggregator, factor * jacobian) / factor
            assert_vectors_close(actual, expected, 1e-3, (kind, factor))
        expected = solve(aggregator, jacobian)
        for factor in (1e-6, 1e6):
            actual = solve(aggregator, factor * jacobian)
            assert_vectors_close(actual, expected, 1e-3, (kind, factor))


@values_only
@pytest.mark.parametrize("name", ["CAGrad", "CAGrad-1.5", "DualProj", "UPGrad"])
def test_guesses_solve_usual_gramians(name, monkeypatch):
    """What else solves them takes many times as long."""
    first_right = _gramian.first_right

    def without_fallback(guess, start, fallback):
        return first_right(guess, start, lambda: pytest.fail("The guesses did not converge"))

    for module in (_gramian, cagrad):
        monkeypatch.setattr(module, "first_right", without_fallback)
    for dtype in ("float32", "float64"):
        usual = kinds.well_conditioned, kinds.similar, kinds.ill_scaled, kinds.orthogonal
        for _, jacobian in jacobians(usual, 4, number=5):
            solve(kinds.CASES[name], jacobian, dtype)


@values_only
def test_nash_mtl_length_is_scale_invariant_unless_rescaled():
    ((_, jacobian),) = jacobians([kinds.well_conditioned], 3, number=1)
    for factor in (1e-15, 1e-6, 1.0, 1e6):
        result = combine(NashMTL(rescale=False), factor * jacobian)
        np.testing.assert_allclose(np.linalg.norm(result), np.sqrt(3), rtol=1e-5)


@values_only
@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_fair_grad_scale_is_that_of_the_formula_unless_rescaled(alpha):
    ((_, jacobian),) = jacobians([kinds.well_conditioned], 3, number=1)
    aggregator = FairGrad(alpha, rescale=False)
    expected = combine(aggregator, jacobian)
    for factor in (1e-6, 1e6):
        power = factor ** ((1 - alpha) / (1 + alpha))
        assert_vectors_close(combine(aggregator, factor * jacobian) / power, expected, 1e-4)


@values_only
@all_dtypes
@all_aggregators
def test_permuted_terms_permute_the_coefficients(aggregator, dtype):
    is_random = isinstance(aggregator, PCGrad | GradVac)
    for count in (2,) if is_random else (2, 3):
        order = np.roll(np.arange(count), 1)
        # The term that was first is second now.
        of_permuted = PCD(main=1) if isinstance(aggregator, PCD) else aggregator
        for kind, jacobian in jacobians([kinds.well_conditioned, kinds.ill_scaled], count, dtype):
            losses = losses_of(jacobian)
            expected = solve(aggregator, jacobian, dtype, losses=losses) @ jacobian
            permuted = solve(of_permuted, jacobian[order], dtype, losses=losses[order])
            tolerance = 1e-3 if dtype == "float32" else 1e-5
            assert_vectors_close(permuted @ jacobian[order], expected, tolerance, kind)


@values_only
@pytest.mark.parametrize("aggregator", [PCGrad(), GradVac()], ids=["PCGrad", "GradVac"])
def test_permuted_terms_have_the_same_random_directions(aggregator):
    """Each term meets the others in a random order, which is drawn in each step."""

    def directions(jacobian):
        found = (solve(aggregator, jacobian, "float64", step=step) for step in range(64))
        return {tuple(np.round(w @ jacobian, 6) + 0.0) for w in found}

    for _, jacobian in jacobians([kinds.conflicting], 3):
        expected = directions(jacobian)
        assert len(expected) > 2
        assert directions(np.roll(jacobian, 1, axis=0)) == expected


@once_compiled
@all_aggregators
def test_term_without_gradient_is_ignored(aggregator):
    chosen = [kinds.well_conditioned, kinds.conflicting, kinds.collinear]
    if aggregator.get_config().get("normalize") in ("l2", "loss+"):
        chosen.remove(kinds.collinear)  # The coefficients of equal gradients are not unique.
    for kind, jacobian in jacobians(chosen, 2):
        losses = np.array([1.0, 2.0])
        expected = solve(aggregator, jacobian, losses=losses) @ jacobian
        for place in (1, 2) if isinstance(aggregator, PCD) else range(3):  # Not the main term.
            with_zero = np.insert(jacobian, place, 0, axis=0)
            w = solve(aggregator, with_zero, losses=np.insert(losses, place, 1.5))
            assert w[place] == 0
            assert_vectors_close(w @ with_zero, expected, 2e-3, kind)


@once_compiled
@all_aggregators
def test_gradients_of_unlike_size_are_finite(aggregator):
    for _, jacobian in jacobians([kinds.conflicting], 3, number=1):
        for length in (1e-18, 1e-20, 1e-21, 1e-22, 1e-25):
            unlike = jacobian * np.array([1, length, 3 * length])[:, None]
            assert np.isfinite(combine(aggregator, unlike)).all(), length


@all_aggregators
def test_all_zero_gradients_give_zero(aggregator):
    np.testing.assert_array_equal(combine(aggregator, np.zeros((3, 64))), np.zeros(64))


@all_aggregators
def test_nonfinite_gradient_propagates(aggregator):
    jacobian = kinds.well_conditioned(3, np.random.default_rng(0))
    jacobian[1] = 0
    for value in (np.nan, np.inf):
        jacobian[2, 5] = value
        assert not np.any(np.isfinite(combine(aggregator, jacobian))), value


@pytest.mark.backend("torch")
@all_aggregators
def test_float32_is_close_to_float64(aggregator):
    chosen = [kinds.well_conditioned, kinds.similar]
    if not isinstance(aggregator, AlignedMTL):  # Rounding errors dominate its shortest gradients.
        chosen.append(kinds.ill_scaled)
    for count in (3, 32):
        for kind, jacobian in jacobians(chosen, count, "float32"):
            expected = combine(aggregator, jacobian, "float64")
            assert_vectors_close(combine(aggregator, jacobian, "float32"), expected, 1e-3, kind)


@once_compiled
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"][: 1 if COMPILES else 2])
@of_each_sort
def test_half_precision_is_computed_in_float32(name, dtype):
    ((_, jacobian),) = jacobians([kinds.well_conditioned], 3, number=1)
    jacobian = ops.cast(ops.convert_to_tensor(1e-3 * jacobian, "float32"), dtype)
    result = call(CASES[name], "__call__", jacobian, np.ones(3))
    assert keras.backend.standardize_dtype(result.dtype) == dtype
    expected = to_float64(call(CASES[name], "__call__", ops.cast(jacobian, "float32"), np.ones(3)))
    tolerance = 2e-2 if dtype == "bfloat16" else 2e-3
    assert_vectors_close(to_float64(ops.cast(result, "float32")), expected, tolerance)


@of_each_sort
def test_no_gradient_flows_through_coefficients(name):
    ((_, jacobian),) = jacobians([kinds.well_conditioned], 3, "float32", number=1)
    jacobian = jacobian.astype("float32")

    def total(matrix):
        return ops.sum(call(CASES[name], "__call__", matrix, np.ones(3)))

    _, gradient = value_and_gradient(total, jacobian)
    w = solve(CASES[name], jacobian, losses=np.ones(3))
    np.testing.assert_allclose(gradient, np.broadcast_to(w[:, None], jacobian.shape), rtol=1e-3)


def test_random_orders_are_uniform_and_reproducible():
    draws = [random_orders(4, seed, step) for seed in (0, 1) for step in range(99)]
    orders = np.array([ops.convert_to_numpy(order) for order in draws])
    np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(4), orders.shape))
    assert len({order.tobytes() for order in orders}) == len(orders)
    # All positions are equally likely, within five standard deviations.
    frequencies = np.mean(orders[..., None] == np.arange(4), axis=(0, 1))
    np.testing.assert_allclose(frequencies, 0.25, atol=5 * np.sqrt(0.25 * 0.75 / (4 * len(orders))))
    # The orders are the same on every backend and for every type of step.
    np.testing.assert_array_equal(orders[0, :2], [[1, 2, 0, 3], [0, 3, 1, 2]])
    step = ops.convert_to_tensor(5, "int32")
    np.testing.assert_array_equal(ops.convert_to_numpy(random_orders(4, 1, step)), orders[99 + 5])


# Arguments.


@once_compiled
@all_dtypes
@pytest.mark.parametrize(
    "aggregator",
    [
        type(x)(rescale=True)
        for name, x in CASES.items()
        if "-" not in name and name not in ("PCGrad", "GradVac")
    ],
    ids=lambda value: type(value).__name__,
)
def test_rescaled_result_has_length_of_mean(aggregator, dtype):
    for _, jacobian in jacobians([kinds.well_conditioned], 2):
        with_zero = np.insert(jacobian, 1, 0, axis=0)
        result = combine(aggregator, with_zero, dtype)
        expected = np.linalg.norm(np.mean(jacobian, axis=0))
        np.testing.assert_allclose(np.linalg.norm(result), expected, rtol=1e-4)


@once_compiled
@pytest.mark.parametrize("cls", [NashMTL, IMTLG, MGDA, Shares, FairGrad, ConFIG, DualProj, DBMTL])
def test_rescaling_does_not_amplify_rounding(cls):
    ((_, jacobian),) = jacobians([kinds.antiparallel], 2, number=1)
    cancelling = np.insert(jacobian, 1, 0, axis=0)
    assert np.linalg.norm(combine(cls(rescale=True), cancelling)) <= 1e-2


@once_compiled
@pytest.mark.parametrize("cls", [Mean, CAGrad, UPGrad, AlignedMTL, DualProj])
def test_preference_weights_terms(cls):
    for _, jacobian in jacobians([kinds.well_conditioned], 2):
        expected = solve(cls(), jacobian) @ jacobian
        assert_vectors_close(solve(cls(preference=[2, 2]), jacobian) @ jacobian, expected, 1e-5)
        # Duplicating a term is equivalent to doubling its preference.
        preferred = solve(cls(preference=[1, 2]), jacobian) @ jacobian
        assert np.linalg.norm(preferred - expected) > 1e-3
        if cls is not AlignedMTL:
            twice = jacobian[[0, 1, 1]]
            assert_vectors_close(solve(cls(), twice) @ twice, preferred, 2e-3)


@once_compiled
def test_normalized_mgda_equals_mgda_of_normalized_gradients():
    for _, jacobian in jacobians([kinds.ill_scaled], 3):
        losses, lengths = losses_of(jacobian), np.linalg.norm(jacobian, axis=1)
        for normalize, divisor in {
            "l2": lengths,
            "loss": losses,
            "loss+": losses * lengths,
        }.items():
            expected = solve(MGDA(), jacobian / divisor[:, None])
            actual = solve(MGDA(normalize=normalize), jacobian)
            np.testing.assert_allclose(actual, expected, atol=1e-4, err_msg=normalize)


@once_compiled
def test_contributions_have_the_asked_shares_of_the_length():
    for kind, jacobian in jacobians([kinds.ill_scaled, kinds.conflicting, kinds.antiparallel], 3):
        lengths = np.linalg.norm(jacobian, axis=1)
        expected = np.array([0.7, 0.2, 0.1]) * lengths.mean()
        w = solve(Shares([7, 2, 1]), jacobian)
        np.testing.assert_allclose(w * lengths, expected, rtol=1e-4, err_msg=str(kind))
    # Those that have a gradient divide the length of one that has none.
    w = solve(Shares([7, 2, 1]), np.insert(jacobian[:2], 1, 0, axis=0))
    expected = np.array([7, 0, 1]) / 8 * lengths[:2].mean()
    np.testing.assert_allclose(w * [lengths[0], 1, lengths[1]], expected, rtol=1e-4)


@once_compiled
def test_contributions_to_db_mtl_are_as_long_as_the_longest_log_gradient():
    for kind, jacobian in jacobians([kinds.ill_scaled, kinds.antiparallel], 3):
        losses, lengths = losses_of(jacobian), np.linalg.norm(jacobian, axis=1)
        for aggregator, longest in {
            DBMTL(): np.max(lengths),
            DBMTL(log=True): np.max(lengths / losses),
        }.items():
            w = solve(aggregator, jacobian)
            np.testing.assert_allclose(w * lengths, longest, rtol=1e-4, err_msg=str(kind))
    # Neither a term without gradient counts nor, with the log, the unit of the losses.
    jacobian = np.array([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    w = solve(DBMTL(log=True), jacobian, losses=np.array([1e-9, 4e-9, 1e-9]))
    np.testing.assert_allclose(w[:2] * [3, 4], 3e9, rtol=1e-4)


@values_only
def test_random_numbers_are_those_of_the_first_step_by_default():
    ((_, jacobian),) = jacobians([kinds.conflicting], 5, number=1)
    matrix, aggregator = ops.convert_to_tensor(jacobian), PCGrad()
    for method, x in (("solve", matrix @ matrix.T), ("__call__", matrix)):
        found = getattr(aggregator, method)(x)
        first, second = (getattr(aggregator, method)(x, step=step) for step in (0, 1))
        np.testing.assert_array_equal(found, first)
        assert np.abs(to_float64(found - second)).max() > 1e-3


# The state of a rule.


def steps_of(aggregator, jacobians, dtype="float32"):
    """Yields the combined gradient of each step and the state after it, in float64."""
    state = None
    for step, jacobian in enumerate(jacobians):
        gramian = ops.convert_to_tensor(jacobian @ jacobian.T, dtype)
        w, state = aggregator.solve_next(gramian, state, step=step)
        yield to_float64(w) @ jacobian, to_float64(state)


def naive_gradvac(jacobian, targets, orders, beta):
    """GradVac on the gradients themselves, one at a time; changes the targets."""
    result = np.zeros(jacobian.shape[1])
    for i, order in enumerate(orders):
        gradient = jacobian[i].copy()
        for j in order:
            if j == i or not jacobian[i].any() or not jacobian[j].any():
                continue
            length, other = np.linalg.norm(gradient), np.linalg.norm(jacobian[j])
            cosine, target = gradient @ jacobian[j] / length / other, targets[i, j]
            if cosine < target:
                sine, target_sine = np.sqrt(1 - cosine**2), np.sqrt(1 - target**2)
                turned = length * (target * sine - cosine * target_sine) / target_sine
                gradient += turned / other * jacobian[j]
                assert np.isclose(gradient @ jacobian[j] / np.linalg.norm(gradient) / other, target)
            targets[i, j] += beta * (cosine - target)
        result += gradient
    return result


@once_compiled
@all_dtypes
def test_grad_vac_equals_sequential_turns(dtype):
    tolerance = 1e-4 if dtype == "float32" else 1e-9
    matrices = [kinds.similar(3, np.random.default_rng(seed)) for seed in range(3)]
    matrices[1][2] = 0
    matrices[2] = kinds.conflicting(3, np.random.default_rng(2))
    targets = np.zeros((3, 3))
    for step, (result, state) in enumerate(steps_of(GradVac(0.3, seed=7), matrices, dtype)):
        orders = ops.convert_to_numpy(random_orders(3, 7, step))
        expected = naive_gradvac(matrices[step], targets, orders, 0.3)
        assert_vectors_close(result, expected, tolerance, step)
        np.testing.assert_allclose(state, targets, atol=tolerance)


@once_compiled
def test_first_step_of_grad_vac_is_pcgrad():
    for _, jacobian in jacobians([kinds.conflicting], 3):
        expected = combine(PCGrad(seed=5), jacobian)
        assert_vectors_close(combine(GradVac(seed=5), jacobian), expected, 1e-4)


@once_compiled
def test_means_of_pcd_are_those_of_squared_lengths():
    generator = np.random.default_rng(0)
    matrices = [1e15 * kinds.well_conditioned(2, generator), 1e-15 * np.eye(2, 64)]
    matrices += [kinds.well_conditioned(2, generator), np.zeros((2, 64))]
    squares, sizes = 0, 0
    for matrix, (_, state) in zip(matrices, steps_of(PCD(beta=0.7), matrices), strict=True):
        squares = 0.7 * squares + np.sum(matrix**2, axis=1)
        sizes = 0.7 * sizes + 1
        np.testing.assert_allclose(state, [[sizes] * 2, np.sqrt(squares / sizes)], rtol=1e-5)


@once_compiled
@pytest.mark.parametrize("rule", [GradVac(), PCD()], ids=["GradVac", "PCD"])
def test_nonfinite_step_does_not_change_the_state(rule):
    matrices = [kinds.similar(3, np.random.default_rng(seed)) for seed in range(3)]
    matrices[1][0, 0] = np.nan
    (_, before), (result, after), (next_result, _) = steps_of(rule, matrices)
    assert not np.any(np.isfinite(result))
    np.testing.assert_array_equal(before, after)
    assert np.all(np.isfinite(next_result))


def test_scale_is_that_of_the_gradients_before_their_division():
    jacobian = kinds.well_conditioned(2, np.random.default_rng(0)) / 8
    gramian = ops.convert_to_tensor(jacobian @ jacobian.T, "float32")
    w, state = PCD().solve_next(gramian, None, scale=8.0)
    np.testing.assert_allclose(to_float64(w), solve(PCD(), jacobian), rtol=1e-6)
    lengths = 8 * np.linalg.norm(jacobian, axis=1)
    np.testing.assert_allclose(to_float64(state)[1], lengths, rtol=1e-5)


def test_names_of_terms_become_places():
    rule = PCD("b", {"a": 0.25, "c": 0.5}, beta=0.5, ema=0.5, rescale=True).for_terms("abc")
    config = {"main": 1, "tau": [0.25, 0.5], "beta": 0.5, "rescale": True, "ema": 0.5}
    assert rule.get_config() == config
    assert rule.for_terms("abc") is rule


def test_smoothing_of_coefficients():
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
    Shares([1, 2]),
    Shares({"a": 1, "b": 2}, ema=0.5),
    FairGrad(alpha=2.0),
    ConFIG(preference=[1, 2]),
    DualProj(preference=[1, 2]),
    DBMTL(log=True),
    GradVac(beta=0.1, seed=2),
    PCD(main=1, tau=[0.1], beta=0.9),
    PCD(main="b", tau={"a": 0.1}),
]


@pytest.mark.parametrize("aggregator", CHANGED, ids=lambda value: type(value).__name__)
def test_config_round_trip(aggregator):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(aggregator)))
    loaded = aggregators.get(config)
    assert type(loaded) is type(aggregator)
    assert loaded.get_config() == aggregator.get_config()
    assert aggregator.get_config() != type(aggregator)().get_config()


OTHER_SPELLINGS = (
    "pcgrad",
    "nash_mtl",
    "nashmtl",
    "aligned_mtl",
    "imtl_g",
    "fair_grad",
    "db_mtl",
    "grad_vac",
)


@pytest.mark.parametrize("name", [*(x for x in CASES if "-" not in x), *OTHER_SPELLINGS])
def test_get_by_name(name):
    assert type(aggregators.get(name)).__name__.lower() == name.replace("_", "").lower()


def test_get_by_instance_and_custom_aggregator():
    @keras.saving.register_keras_serializable(package="tests")
    class FirstOnly(aggregators.Aggregator):
        def coefficients(self, gramian):
            return ops.one_hot(0, gramian.shape[0])

    own = FirstOnly()
    assert aggregators.get(own) is own
    assert type(aggregators.get("first_only")) is FirstOnly
    np.testing.assert_allclose(combine(own, np.array(PINNED_JACOBIAN)), PINNED_JACOBIAN[0])


test_errors = refuses_calls(
    (lambda: aggregators.get("best"), "Received: aggregator='best'"),
    (lambda: aggregators.get(None), "Received: aggregator=None"),
    (
        lambda: aggregators.get(keras.saving.serialize_keras_object(keras.layers.Flatten())),
        "Received: aggregator=.*Flatten",
    ),
    (lambda: aggregators.get("Aggregator"), "Received: aggregator='Aggregator'"),
    (lambda: Sum(ema=1.0), "ema=1.0"),
    (lambda: Sum(ema=-0.1), "ema=-0.1"),
    (lambda: CAGrad(c=-1), "c=-1"),
    (lambda: CAGrad(c=None), "c=None"),
    (lambda: FairGrad(alpha=0), "alpha=0"),
    (lambda: FairGrad(alpha="high"), "alpha='high'"),
    (lambda: DBMTL(log=1), "log=1"),
    (lambda: DBMTL(log=True)(PINNED_JACOBIAN), "losses=None"),
    (lambda: GradVac(beta=1.5), "beta=1.5"),
    (lambda: GradVac(beta=-0.5), "beta=-0.5"),
    (lambda: GradVac(seed=0.5), "seed=0.5"),
    (lambda: PCD(main=-1), "main=-1"),
    (lambda: PCD(main=0.5), "main=0.5"),
    (lambda: PCD(tau=1.5), "tau=1.5"),
    (lambda: PCD(tau="high"), "tau='high'"),
    (lambda: PCD(tau=[0.5, 2]), r"tau\[1\]=2"),
    (lambda: PCD(tau={"a": -1}), r"tau\['a'\]=-1"),
    (lambda: PCD(beta=1.0), "beta=1.0"),
    (lambda: PCD(main=2)(PINNED_JACOBIAN), "one of 2 terms.*main=2"),
    (lambda: PCD(main="a")(PINNED_JACOBIAN), "known in a layer only.*main='a'"),
    (lambda: PCD(tau={"a": 0.1})(PINNED_JACOBIAN), "known in a layer only.*tau="),
    (lambda: PCD(tau=[0.1, 0.2])(PINNED_JACOBIAN), "Expected 1 numbers"),
    (lambda: PCD(main="c").for_terms(["a", "b"]), r"one of the terms \['a', 'b'\].*main='c'"),
    (lambda: PCD(main=2).for_terms(["a", "b"]), "main=2"),
    (
        lambda: PCD("a", {"a": 0.1}).for_terms(["a", "b"]),
        r"unknown names \['a'\] and no .* \['b'\]",
    ),
    (lambda: PCD().solve_next(np.eye(2), np.eye(3)), r"`state`.*shape \(2, 2\).*\(3, 3\)"),
    (lambda: PCGrad(seed=-1), "seed=-1"),
    (lambda: PCGrad(seed=0.5), "seed=0.5"),
    (lambda: MGDA(normalize="l1"), "normalize='l1'"),
    (lambda: Mean(preference=[0, 0]), "preference="),
    (lambda: Mean(preference=[1, -1]), r"preference\[1\]=-1"),
    (lambda: Mean(preference=2), "preference=2"),
    (lambda: Mean(preference=np.array(2.0)), "preference="),
    (lambda: Mean(preference="ab"), "preference='ab'"),
    (lambda: Mean(preference=[1, 1, 1])(PINNED_JACOBIAN), "Expected 2 numbers"),
    (lambda: Shares([0, 0]), r"`shares`.*shares=\[0, 0\]"),
    (lambda: Shares({"a": 1, "b": -1}), r"shares\['b'\]=-1"),
    (lambda: Shares({"a": 0}), r"not all 0.*shares=\{'a': 0\}"),
    (lambda: Shares({}), r"`shares`.*shares=\{\}"),
    (lambda: Shares([1, 2, 3])(PINNED_JACOBIAN), "Expected 2 numbers"),
    (lambda: Shares({"a": 1, "b": 2})(PINNED_JACOBIAN), "known in a layer only"),
    (lambda: Shares({"a": 1, "b": 2}).for_terms(["a", "c"]), r"\['b'\] and no .* \['c'\]"),
    (lambda: Sum()([1.0, 2.0]), "`matrix`"),
    (lambda: Sum().solve(PINNED_JACOBIAN), "`gramian`"),
    (lambda: Sum().solve(np.ones((3, 2))), "`gramian`"),
    (lambda: MGDA(normalize="loss")(PINNED_JACOBIAN), "losses=None"),
    (lambda: MGDA(normalize="loss")(PINNED_JACOBIAN, [1.0]), "`losses`"),
)


def test_only_some_aggregators_accept_a_preference():
    having = {name for name, value in CASES.items() if isinstance(value, PreferenceAggregator)}
    assert having == {
        *("Mean", "CAGrad", "CAGrad-1.5", "AlignedMTL", "UPGrad", "Shares", "ConFIG", "DualProj"),
    }


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
    for _, jacobian in jacobians([kinds.well_conditioned], count):
        expected = other(torch.as_tensor(jacobian)).numpy()
        assert_vectors_close(combine(aggregator, jacobian, "float64"), expected, 1e-3)
