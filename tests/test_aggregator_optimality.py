"""Optimality or stationarity of each aggregator on gradients of many kinds.

The tests check the Karush-Kuhn-Tucker conditions for the given Gramian. An expression that should
be 0 is compared with the sum of the absolute values of its summands.
"""

import numpy as np
import pytest
from keras import ops

from keras_jointloss.aggregators import (
    IMTLG,
    MGDA,
    PCD,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    FairGrad,
    NashMTL,
    PCGrad,
    UPGrad,
)
from keras_jointloss.aggregators.pcgrad import random_orders
from tests import jacobians as kinds
from tests.backends import once_compiled
from tests.gradients import COMPILES
from tests.jacobians import REGULAR, SINGULAR, all_dtypes, assert_vectors_close, jacobians, solve

pytestmark = [once_compiled, all_dtypes]
WITHOUT_CONFLICT = [kind for kind in REGULAR if kind is not kinds.conflicting]
all_counts = pytest.mark.parametrize("count", [3] if COMPILES else [2, 3, 32])


def given(jacobian, dtype):
    """Returns the Gramian as an aggregator of this dtype gets it, the lengths and the cosines."""
    gramian = (jacobian @ jacobian.T).astype(dtype).astype("float64")
    lengths = np.sqrt(np.diag(gramian))
    return gramian, lengths, gramian / lengths[:, None] / lengths[None, :]


def optimality_tolerance(kind, dtype):
    # If gradients cancel, only rounding bounds the multipliers.
    return 1e-3 if kind is kinds.antiparallel and dtype == "float32" else 1e-5


@all_counts
def test_mgda_is_optimal(count, dtype):
    for kind, jacobian in jacobians([*REGULAR, *SINGULAR], count, dtype):
        _, lengths, cosines = given(jacobian, dtype)
        w = solve(MGDA(), jacobian, dtype)
        assert np.all(w >= 0), kind
        np.testing.assert_allclose(np.sum(w), 1, rtol=1e-5, err_msg=kind.__name__)
        parts = w * lengths / np.max(w * lengths)
        # The gain of each gradient beyond the gain of the combination.
        surplus = cosines @ parts - (parts @ cosines @ parts) / np.sum(parts / lengths) / lengths
        tolerance = optimality_tolerance(kind, dtype)
        assert np.all(surplus >= -tolerance), kind
        assert np.all(np.abs(parts * surplus) <= tolerance), kind


@all_counts
@pytest.mark.parametrize("cls", [UPGrad, DualProj])  # Of one gradient, both are the same.
def test_projection_is_optimal(cls, count, dtype):
    one_hot = np.eye(count)[0]
    aggregator = cls(preference=one_hot)
    for kind, jacobian in jacobians([*REGULAR, *SINGULAR], count, dtype):
        _, lengths, cosines = given(jacobian, dtype)
        v = solve(aggregator, jacobian, dtype) * lengths / lengths[0]
        assert np.all(v >= one_hot * (1 - 1e-6)), kind
        gain = cosines @ v / np.sum(v)
        tolerance = optimality_tolerance(kind, dtype)
        assert np.all(gain >= -tolerance), kind
        assert np.all(np.abs((v - one_hot) * gain) <= tolerance * np.max(v)), kind


@all_counts
def test_dual_proj_is_optimal(count, dtype):
    for kind, jacobian in jacobians([*REGULAR, *SINGULAR], count, dtype):
        _, lengths, cosines = given(jacobian, dtype)
        mean = lengths / count
        parts = solve(DualProj(), jacobian, dtype) * lengths
        size = np.max(parts)
        added = (parts - mean) / size
        assert np.all(added >= -1e-6), kind
        gain = cosines @ parts / size
        tolerance = optimality_tolerance(kind, dtype)
        assert np.all(gain >= -tolerance), kind
        assert np.all(np.abs(added * gain) <= tolerance), kind


@pytest.mark.parametrize("count", [3] if COMPILES else [2, 3, 8])
@pytest.mark.parametrize("tau", [0.1] if COMPILES else [0.0, 0.1, 1.0])
def test_pcd_is_optimal(tau, count, dtype):
    main = count - 1
    is_main = np.eye(count)[main]
    for kind, jacobian in jacobians([*REGULAR, kinds.collinear, kinds.antiparallel], count, dtype):
        _, lengths, cosines = given(jacobian, dtype)
        result = solve(PCD(main=main, tau=tau), jacobian, dtype)
        if kind is kinds.antiparallel and tau == 0:  # The direction is 0.
            assert np.linalg.norm(result @ jacobian) <= 1e-3 * lengths[main]
            continue
        # In the first step each gradient is its own unit of length.
        parts = result * lengths / (result * lengths)[main]
        assert result[main] > 0, kind
        assert np.all(parts >= -1e-6), kind
        surplus = (cosines @ parts - tau) * (1 - is_main)
        scale = np.max(parts)
        tolerance = optimality_tolerance(kind, dtype)
        assert np.all(surplus >= -tolerance * scale), kind
        assert np.all(np.abs(parts * (1 - is_main) * surplus) <= tolerance * scale**2), kind
        length = np.linalg.norm(result @ jacobian)
        np.testing.assert_allclose(length, lengths[main], rtol=1e-3, err_msg=str(kind))


def test_impossible_conditions_of_pcd_are_dropped(dtype):
    for _, jacobian in jacobians([kinds.antiparallel, kinds.well_conditioned], 3, dtype):
        if np.linalg.matrix_rank(jacobian) == 3:  # Three auxiliary gradients that add up to 0.
            jacobian = np.concatenate([jacobian, -jacobian[1:2] - jacobian[2:]])
            main = 0
        else:  # Two that are opposed.
            main = 1
        for tau in (1e-3, 1.0):
            w = solve(PCD(main=main, tau=tau), jacobian, dtype)
            np.testing.assert_allclose(w, np.eye(len(w))[main], atol=1e-5)
        # Without a share of their own, there is a direction.
        w = solve(PCD(main=main, tau=0.0), jacobian, dtype)
        gains = jacobian @ (w @ jacobian)
        assert np.all(gains >= -1e-2 * np.max(np.abs(gains)))


@pytest.mark.parametrize(
    ("c", "count"), [(0.5, 3)] if COMPILES else [(0.5, 2), (0.1, 3), (0.9, 3), (0.5, 32)]
)
def test_cagrad_is_optimal(count, dtype, c):
    for kind, jacobian in jacobians([*REGULAR, *SINGULAR], count, dtype):
        if dtype == "float32" and kind is kinds.antiparallel:
            continue  # Rounding determines the length of a direction without gain.
        gramian, _, _ = given(jacobian, dtype)
        mean = np.full(count, 1 / count)
        added = solve(CAGrad(c=c), jacobian, dtype) - mean
        assert np.all(added >= -1e-6 * (np.max(np.abs(added)) + 1 / count)), kind

        def length(w, gramian=gramian):
            return np.sqrt(np.maximum(w @ gramian @ w, 0))

        # Conflicting gradients cancel, so their mean is short.
        tolerance = 1e-3 if kind is kinds.conflicting and dtype == "float32" else 1e-5
        size = mean + np.abs(added)
        sizes = np.abs(gramian) @ size
        assert length(added) - c * length(mean) <= tolerance * np.sqrt(size @ sizes), kind
        # Weak duality: the minimum over w is at least the smallest gain. At the optimum they agree.
        w = np.maximum(added, 0) / np.sum(np.maximum(added, 0))
        dual = w @ gramian @ mean + c * length(mean) * length(w)
        assert np.all(gramian @ (mean + added) - dual >= -tolerance * sizes), kind


@all_counts
@pytest.mark.parametrize("alpha", [1.0] if COMPILES else [1.0, 0.3, 3.0])
def test_nash_mtl_and_fair_grad_are_stationary(alpha, count, dtype):
    # Nash-MTL is FairGrad with `alpha` 1.
    name, arguments = (NashMTL, {}) if alpha == 1 else (FairGrad, {"alpha": alpha})
    aggregator = name(**arguments, rescale=False)
    for kind, jacobian in jacobians(
        [*REGULAR, kinds.collinear, kinds.nearly_antiparallel], count, dtype
    ):
        gramian, _, _ = given(jacobian, dtype)
        w = solve(aggregator, jacobian, dtype)
        assert np.all(w > 0), kind
        power = w ** (1 / alpha)
        errors = np.abs(power * (gramian @ w) - 1)
        # A large `alpha` has coefficients that differ by a factor of 1e5.
        tolerance = 1e-4 if alpha > 1 and dtype == "float32" else 1e-5
        assert np.all(errors <= tolerance * power * (np.abs(gramian) @ w)), kind


@pytest.mark.parametrize("count", [3] if COMPILES else [2, 3, 32])
def test_config_has_the_preferred_cosines(count, dtype):
    tolerance = 1e-3 if dtype == "float32" else 1e-5
    preference = np.arange(1.0, count + 1)
    for given_one in (None, preference):
        for kind, jacobian in jacobians(WITHOUT_CONFLICT, count, dtype):
            unit = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
            result = solve(ConFIG(preference=given_one), jacobian, dtype) @ jacobian
            length = np.linalg.norm(result)
            projections = unit @ result / (1 if given_one is None else preference)
            np.testing.assert_allclose(projections, np.mean(projections), rtol=tolerance)
            expected = np.sum(jacobian @ result) / length
            np.testing.assert_allclose(length, expected, rtol=tolerance, err_msg=str(kind))


@all_counts
def test_imtl_g_has_equal_projections(count, dtype):
    tolerance = 1e-3 if dtype == "float32" else 1e-5
    for kind, jacobian in jacobians(WITHOUT_CONFLICT, count, dtype):
        unit = jacobian / np.linalg.norm(jacobian, axis=1, keepdims=True)
        w = solve(IMTLG(rescale=False), jacobian, dtype)
        np.testing.assert_allclose(np.sum(w), 1, rtol=1e-3, err_msg=kind.__name__)
        for rescaled in (False, True):
            w = solve(IMTLG(rescale=True), jacobian, dtype) if rescaled else w
            projections = unit @ (w @ jacobian)
            # If the sum of the coefficients is negative, so are the projections.
            np.testing.assert_allclose(projections, np.mean(projections), rtol=tolerance)
            assert np.mean(projections) > 0 or not rescaled, kind


@pytest.mark.parametrize("count", [3] if COMPILES else [2, 3])
def test_aligned_mtl_is_the_mean_of_orthogonal_gradients(count, dtype):
    for spread in (1, 1e4):
        lengths = np.geomspace(1, spread, count)[:, None]
        for _, jacobian in jacobians([kinds.well_conditioned], count, dtype):
            jacobian = lengths * jacobian
            u, singular, v = np.linalg.svd(jacobian, full_matrices=False)
            expected = np.mean(singular[-1] * u @ v, axis=0)
            actual = solve(AlignedMTL(), jacobian, dtype) @ jacobian
            # The accuracy of the shortest gradient is the rounding error of the longest.
            assert_vectors_close(actual, expected, 1e-4 if spread == 1 else 1e-2)


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


@pytest.mark.parametrize("count", [3] if COMPILES else [2, 3, 8])
def test_pcgrad_equals_sequential_projections(count, dtype):
    tolerance = 1e-4 if dtype == "float32" else 1e-10
    for step in (0, 3):
        orders = ops.convert_to_numpy(random_orders(count, 7, step))
        for _, jacobian in jacobians([kinds.conflicting], count):
            actual = solve(PCGrad(seed=7), jacobian, dtype, step) @ jacobian
            assert_vectors_close(actual, naive_pcgrad(jacobian, orders), tolerance)


@pytest.mark.parametrize(
    ("aggregator", "counts"),
    [
        (MGDA(), (2, 32, 3)),
        (UPGrad(), (2, 3)),
        (DualProj(), (2, 3)),
        (NashMTL(), (2, 3)),
        (FairGrad(alpha=2.0), (2, 3)),
        (ConFIG(), (2, 3)),
        (CAGrad(c=1.0), (2, 3)),
        (PCGrad(), (2,)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_result_conflicts_with_no_gradient(aggregator, counts, dtype):
    for count in counts[-1:] if COMPILES else counts:
        for kind, jacobian in jacobians([*WITHOUT_CONFLICT, kinds.collinear], count, dtype):
            result = solve(aggregator, jacobian, dtype) @ jacobian
            gains = jacobian @ result / np.linalg.norm(jacobian, axis=1) / np.linalg.norm(result)
            assert np.all(gains >= (-1e-3 if dtype == "float32" else -1e-5)), kind
