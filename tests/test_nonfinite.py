"""NaN and infinity are never hidden: they show in the loss and in every metric, unless excluded."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss._core.batch import Items
from tests.backends import once_compiled, values_only
from tests.comparisons import assert_all_close
from tests.gradients import COMPILES, compiled_value_and_gradient, value_and_gradient
from tests.loss_cases import CASES, DEFAULTS, VALID, Case, labels_of, tensor, views_of
from tests.test_metrics import CASES as METRICS

BAD = (np.nan, np.inf, -np.inf)
#: One item that the mask excludes and one that it does not.
EXCLUDED, INCLUDED = 2, 3
VARIED = DEFAULTS if COMPILES else list(CASES.values())
MEMORY_LOSSES = ("info_nce", "siglip", "nt_xent", "sup_con", "decoupled_contrastive")


def _spoiled(views, item, view, bad):
    views = views.astype("float32")
    views[item, view, 0] = bad
    return views


def _is_nan(x):
    return np.isnan(ops.convert_to_numpy(x))


@pytest.mark.parametrize("case", VARIED, ids=str)
def test_loss_and_gradient_show_what_is_not_finite_unless_it_is_excluded(case):
    views, labels = views_of(case), labels_of(case) if case.labels else np.zeros(5)
    clean = np.where(VALID[:, None, None], views, 0).astype("float32")
    for tile_size in case.few_tile_sizes:
        function = case.with_tile_size(tile_size)

        def mean(x, labels, valid, function=function):
            return ops.mean(function(x, labels, valid))

        compute = compiled_value_and_gradient(mean)
        expected = compute(clean, labels, VALID)
        for view, bad in [(0, np.nan), (case.views - 1, np.nan), *((0, x) for x in BAD[1:])]:
            value, gradient = compute(_spoiled(views, INCLUDED, view, bad), labels, VALID)
            assert np.isnan(value)
            assert np.isnan(gradient[INCLUDED]).any()
            value, gradient = compute(_spoiled(views, EXCLUDED, view, bad), labels, VALID)
            assert_all_close((value, gradient), expected, 1e-5, 1e-6)
            assert (gradient[EXCLUDED] == 0).all()


@values_only
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_item_that_is_not_finite_has_no_finite_loss(case):
    labels = tensor(labels_of(case)) if case.labels else None
    for view in range(case.views):
        for bad in BAD:
            views = tensor(_spoiled(views_of(case), INCLUDED, view, bad))
            assert _is_nan(case.function(views, labels, **case.arguments)[INCLUDED])
            loss = case.make()
            assert _is_nan(loss(labels, case.given(views)))
            assert _is_nan(loss.values(views, labels, None, Items(INCLUDED, 2))[0])
            for values in loss.part_values(views, labels).values():
                assert _is_nan(values[INCLUDED])


@values_only
@pytest.mark.parametrize("similarity", ["cosine", "dot", "euclidean"])
@pytest.mark.parametrize("name", MEMORY_LOSSES)
def test_memory_that_is_not_finite_shows_in_every_loss(name, similarity):
    case = Case(name, {"similarity": similarity})
    views, labels = tensor(views_of(case).astype("float32")), tensor(labels_of(case))
    held, valid = views_of(case, 4, seed=1), tensor(np.array([True, True, False, True]))

    def losses(held, views=views):
        memory = kj.losses.Memory(tensor(held), tensor(labels_of(case, 4)), valid)
        return case.function(views, labels, **case.arguments, memory=memory)

    expected = ops.convert_to_numpy(losses(held.astype("float32")))
    for bad in BAD:
        assert _is_nan(losses(_spoiled(held, 1, 1, bad))).all()
        empty = _spoiled(held, 2, 1, bad)
        np.testing.assert_allclose(ops.convert_to_numpy(losses(empty)), expected, rtol=1e-5)
        _, gradient = value_and_gradient(
            lambda x, empty=empty: ops.sum(losses(empty, x)), ops.convert_to_numpy(views)
        )
        assert np.isfinite(gradient).all()


TERMS = [*DEFAULTS, Case("MeanSquaredError"), Case("CosineSimilarity"), Case("LogCosh")]


@pytest.mark.parametrize("case", TERMS[-3:] if COMPILES else TERMS, ids=str)
def test_layer_term_shows_what_is_not_finite_unless_it_is_excluded(case):
    loss = getattr(keras.losses, case.name)() if case in TERMS[-3:] else case.make()
    layer = kj.layers.ContrastiveTerm(loss)
    labels = (tensor(labels_of(case)),) if case.labels else ()

    def added(x, weight=None):
        weight = None if weight is None else tensor(weight)
        layer((*ops.unstack(x, axis=1), *labels), sample_weight=weight, training=True)
        return layer.losses[0]

    views, weight = views_of(case), VALID.astype("float32")
    expected = value_and_gradient(lambda x: added(x, weight), views.astype("float32"))
    for bad in BAD[:2]:
        spoiled = _spoiled(views, EXCLUDED, 1, bad)
        value, gradient = value_and_gradient(lambda x: added(x, weight), spoiled)
        assert_all_close((value, gradient), expected, 1e-5, 1e-6)
        assert (gradient[EXCLUDED] == 0).all()
        assert not np.isfinite(ops.convert_to_numpy(added(tensor(spoiled))))


@once_compiled
@pytest.mark.parametrize("name", MEMORY_LOSSES)
def test_excluded_item_that_is_not_finite_does_not_spoil_the_memory(name):
    case = Case(name)
    views, weight = views_of(case).astype("float32"), tensor(VALID.astype("float32"))
    labels = (tensor(labels_of(case)),) if case.labels else ()
    losses = []
    for bad in (0.5, np.nan):
        layer = kj.layers.ContrastiveTerm(case.make(), memory_size=5)
        views[EXCLUDED, :, 0] = bad
        for _ in range(2):
            inputs = (*ops.unstack(tensor(views), axis=1), *labels)
            layer(inputs, sample_weight=weight, training=True)
        losses.append(float(layer.losses[0]))
    assert losses[0] == losses[1] > 0


@once_compiled
@pytest.mark.parametrize(
    "options", [{}, {"floor": 0.5}, {"target": 2.0}, {"floor": 0.5, "target": 1}]
)
@pytest.mark.parametrize("bad", BAD[:2])
def test_loss_term_shows_values_that_are_not_finite_unless_they_are_excluded(options, bad):
    layer = kj.layers.LossTerm(**options)
    values, weight = np.ones((5, 3), "float32"), tensor(VALID.astype("float32"))
    values[EXCLUDED, 1] = bad

    def added(x, weight=None):
        layer(x, x, sample_weight=weight)
        return layer.losses[0]

    value, gradient = value_and_gradient(lambda x: added(x, weight), values)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert (gradient[EXCLUDED] == 0).all()
    assert not np.isfinite(ops.convert_to_numpy(added(tensor(values))))


@once_compiled
@pytest.mark.parametrize("bad", BAD[:2])
def test_prediction_that_is_not_finite_shows_unless_its_target_is_missing(bad):
    loss = kj.joint_loss({"a": "mse"}, missing=np.nan)["loss"]["a"]
    target, prediction = np.ones((5, 1), "float32"), np.zeros((5, 1), "float32")
    prediction[EXCLUDED] = bad
    assert not np.isfinite(float(loss(target, prediction)))
    target[EXCLUDED] = np.nan
    value, gradient = value_and_gradient(lambda x: loss(target, x), prediction)
    assert value == 1
    assert gradient[EXCLUDED] == 0


@pytest.mark.parametrize("case", ["recall", "pairs", "uniformity"] if COMPILES else METRICS)
def test_metric_shows_what_is_not_finite_unless_it_is_excluded(case):
    make, _, arguments = METRICS[case]
    views, labels = np.random.default_rng(0).normal(size=(5, 2, 4)), np.array([0, 1, 1, 0, 1])
    weight = VALID.astype("float32")
    expected = float(make(**arguments)(labels, views.astype("float32"), weight))
    for bad in BAD:
        metric = make(**arguments)
        value = metric(labels, _spoiled(views, EXCLUDED, 1, bad), weight)
        assert float(value) == pytest.approx(expected, rel=1e-5)
        assert np.isnan(float(metric(labels, _spoiled(views, INCLUDED, 1, bad), weight)))
        metric.reset_state()
        assert float(metric(labels, views.astype("float32"), weight)) == pytest.approx(expected)
        batch = (tensor(_spoiled(views, INCLUDED, 0, bad)), tensor(labels), tensor(VALID))
        assert _is_nan(metric.sums(*batch, items=Items(INCLUDED, 2))[0])
