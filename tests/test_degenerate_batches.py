"""Degenerate batches: the losses equal the references and their gradients are finite."""

import numpy as np
import pytest
from keras import ops

from tests import loss_cases as cases
from tests.gradients import COMPILES, compiled_value_and_gradient
from tests.loss_cases import DEFAULTS, VARIANTS, Case, assert_close, labels_of, views_of

#: The losses that do not select samples, and so are smooth at ties.
SMOOTH = {
    key: case
    for key, case in VARIANTS.items()
    if case.name != "koleo"
    and case.arguments.get("mining", "semi_hard" if case.name == "triplet" else "all") == "all"
    and not case.arguments.keys() & {"mining_margin", "swap", "num_hard_negatives"}
}
#: All backends use the same operations, so those that compile test only the defaults.
BATCHED = DEFAULTS if COMPILES else list(VARIANTS.values())


@pytest.mark.parametrize("name", ["vicreg", "barlow_twins"])
def test_feature_without_variance_equals_the_reference(name):
    case = Case(name)
    views = views_of(case, 7).astype("float32")
    views[:, :, 1] = 0.1  # The rounded mean of seven is not 0.1.
    value, gradient = cases.weighted_value_and_gradient(
        case.function, views, None, None, np.ones(7)
    )
    assert_close(value, np.sum(case.naive(views.astype("float64"), None)), 1e-4)
    if name == "barlow_twins":
        np.testing.assert_allclose(gradient[:, :, 1], 0, atol=1e-4)


def _batches(case):
    """Yields batches of five items: name, views, labels, valid items, gradients to compare.

    Central differences are meaningless at ties of mining and at kinks of hinges, where only the
    values are compared.
    """
    everyone, is_smooth = np.ones(5, "bool"), case in SMOOTH.values()
    views, labels = views_of(case), labels_of(case) if case.labels else np.zeros(5, "int64")
    same = np.broadcast_to(views[:1, :1], views.shape).copy()
    identical_views, zero = views.copy(), views.copy()
    identical_views[1, -1] = identical_views[1, 0]
    zero[1, 0] = 0
    yield "one valid item", views, labels, np.arange(5) == 1, everyone
    yield "identical embeddings", same, labels, everyone, None
    yield "zero vectors", np.zeros_like(views), labels, everyone, None
    # The cosine of a large number has few digits in float32.
    large = 10.0 if case.name == "sigreg" else 1e4
    yield "large embeddings", views_of(case, scale=large), labels, everyone, everyone
    if case.labels == "class":
        yield "one label", views, np.full(5, 7), everyone, everyone
        yield "all labels different", views, np.arange(5), everyone, everyone
    if is_smooth and case.views > 1:
        yield "item of identical views", identical_views, labels, everyone, everyone
    if case.is_cosine:
        yield "zero vector", zero, labels, everyone, everyone if is_smooth else None
    elif is_smooth:  # With dot products, all vectors tie with a zero vector.
        yield "zero vector", zero, labels, everyone, everyone


@pytest.mark.parametrize("case", BATCHED, ids=str)
def test_degenerate_batches_equal_the_reference(case):
    weight = np.linspace(0.5, 1.5, 5)
    for tile_size in case.few_tile_sizes:
        function = case.with_tile_size(tile_size)

        def total(x, labels, valid, function=function):
            return ops.sum(function(x, labels, valid) * ops.convert_to_tensor(weight, x.dtype))

        compute = compiled_value_and_gradient(total)
        for name, views, labels, valid, compared in _batches(case):
            value, gradient = compute(views.astype("float32"), labels, valid)
            given = labels if case.labels else None
            naive = case.naive(views, given, valid, **case.arguments)
            assert_close(value, np.sum(naive * weight), 1e-4, err_msg=name)
            assert np.isfinite(gradient).all(), name
            if compared is None:
                continue
            scale = max(np.abs(views).max(), 1.0)
            numeric = cases.expected_gradient(case, views, given, valid, weight, scale)
            if name == "zero vector" and case.is_cosine:
                numeric[1, 0] = 0  # By convention, because the cosine is discontinuous there.
                assert (gradient[1, 0] == 0).all()
            assert_close(gradient, numeric, 1e-3, least=0.1 / scale, err_msg=name)


@pytest.mark.parametrize("batch", [1] if COMPILES else [1, 2])
@pytest.mark.parametrize("case", cases.EACH_KIND if COMPILES else BATCHED, ids=str)
def test_batches_of_one_and_two_items_equal_the_reference(case, batch):
    labels = labels_of(case, batch) if case.labels else None
    is_smooth = case in [*SMOOTH.values(), Case("triplet")]
    cases.assert_equals_reference(
        case, views_of(case, batch), labels, tile_sizes=case.few_tile_sizes, gradient=is_smooth
    )
