"""The valid labels of losses and metrics."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.backends import once_compiled, torch
from tests.loss_cases import (
    CLASSES,
    DEFAULTS,
    PAIR_LABELS,
    SCORE_LABELS,
    VALID,
    WITH_LABELS,
    Case,
    assert_close,
    assert_equals_reference,
    labels_of,
    tensor,
    views_of,
)
from tests.refusals import refuses_calls

MULTI_HOT = np.array([[1, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 0], [0, 0, 1]])


def _assert_equals_reference(case, labels, valid=None):
    given = case, views_of(case), labels, valid
    assert_equals_reference(*given, tile_sizes=case.few_tile_sizes, gradient=False)


@once_compiled
@pytest.mark.parametrize("case", WITH_LABELS.values(), ids=WITH_LABELS)
def test_items_share_a_label_if_their_label_sets_intersect(case):
    _assert_equals_reference(case, MULTI_HOT.astype("int32"))
    _assert_equals_reference(case, MULTI_HOT.astype("float32"), VALID)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64", "bool"])
def test_class_labels_may_have_any_integer_type(dtype):
    case, labels = Case("sup_con"), np.array([1, 0, 1, 0, 0])
    actual = case.function(tensor(views_of(case).astype("float32")), labels.astype(dtype))
    assert_close(actual, case.naive(views_of(case), labels), 1e-4)


@pytest.mark.backend("tensorflow", "torch")  # JAX disables 64-bit integers by default.
@pytest.mark.parametrize("case", WITH_LABELS.values(), ids=WITH_LABELS)
def test_large_class_labels_are_distinguished(case):
    _assert_equals_reference(case, 2**40 + np.array([0, 1, 0, 1, 2], "int64"))


@once_compiled
@pytest.mark.parametrize("case", WITH_LABELS.values(), ids=WITH_LABELS)
def test_unlabelled_items_are_excluded(case):
    views, labels = views_of(case), labels_of(case)
    rows = np.where(labels[:, None] == -1, -1, labels[:, None] == np.array([0, 3]))
    loss = case.make(unlabelled=-1)
    has_label = labels != -1
    expected = np.zeros(5)
    expected[has_label] = case.naive(views[has_label], labels[has_label], None, **case.arguments)
    for given in (labels, labels.astype("float32"), rows):
        actual = loss.call(tensor(given), tensor(views.astype("float32")))
        assert_close(actual, expected, 1e-4)
    assert float(loss(labels, views.astype("float32"))) == pytest.approx(
        expected.mean(), rel=1e-4, abs=1e-5
    )


def test_negative_unlabelled_never_matches_unsigned_labels():
    case = Case("sup_con")
    views, labels = views_of(case), np.array([0, 1, 0, 1, 1], "uint8")
    actual = case.make(unlabelled=-1).call(tensor(labels), tensor(views.astype("float32")))
    assert_close(actual, case.naive(views, labels), 1e-4)


@once_compiled
@pytest.mark.parametrize(
    "metric",
    [
        kj.metrics.MeanAveragePrecisionAtR(unlabelled=-1),
        kj.metrics.RecallAtK(1, same_label="positive", unlabelled=-1),
        kj.metrics.MeanReciprocalRank(same_label="ignore", unlabelled=-1),
        kj.metrics.NegativeSimilarity(same_label="ignore", unlabelled=-1),
        kj.metrics.SimilarityGap(same_label="ignore", unlabelled=-1),
    ],
    ids=lambda metric: metric.name,
)
def test_metrics_exclude_unlabelled_items(metric):
    views = np.random.default_rng(0).normal(size=(8, 2, 4)).astype("float32")
    labels = np.array([0, -1, 1, 0, -1, -1, 1, 2])
    metric.reset_state()
    actual = float(metric(labels, views))
    metric.reset_state()
    expected = float(metric(labels[labels >= 0], views[labels >= 0]))
    assert actual == pytest.approx(expected, rel=1e-4)


def _term_losses(labels, kept=slice(None), steps=2, **arguments):
    """Returns the losses of training steps with a memory, which is full in the last steps."""
    layer = kj.layers.ContrastiveTerm(kj.losses.SupCon(**arguments), memory_size=5)
    views = views_of(Case("sup_con")).astype("float32")[kept]
    found = []
    for _ in range(steps):
        layer(tuple(map(tensor, (views[:, 0], views[:, 1], labels[kept]))), training=True)
        found.append(float(ops.convert_to_numpy(sum(layer.losses))))
    return found


@once_compiled
@pytest.mark.parametrize(
    "labels",
    [
        np.array([0.25, 0.5, 0.25, 0.75, 0.75], "float32"),
        np.array([-0.5, 1.5, -0.5, 0.5, 0.5], "float32"),
        np.eye(3, dtype="float32")[[0, 1, 0, 2, 2]] * 0.9 + 0.1 / 3,
    ],
    ids=["fractions", "signs", "smoothed rows"],
)
def test_memory_keeps_soft_and_fractional_labels(labels):
    expected = _term_losses(np.array([0, 1, 0, 2, 2]))
    assert _term_losses(labels) == pytest.approx(expected, rel=1e-6)


@once_compiled
def test_memory_skips_unlabelled_items():
    labels = np.array([0, -1, 0, 2, 2])
    among_all = _term_losses(labels, unlabelled=-1)
    alone = _term_losses(labels, labels >= 0, unlabelled=-1)
    assert 5 * np.array(among_all) == pytest.approx(4 * np.array(alone), rel=1e-5)


def test_labels_and_masks_may_be_arrays():
    views, labels = views_of(Case("contrastive")).astype("float32"), np.array([1, 0, 1, 9, 0])
    values = kj.losses.Contrastive().values(tensor(views), labels, labels < 2)
    assert ops.convert_to_numpy(values)[3] == 0
    with pytest.raises(ValueError, match="Received: labels from 0 to 9"):
        kj.losses.Contrastive().values(tensor(views), labels)


def test_bool_labels_may_be_of_two_classes():
    views, labels = views_of(Case("sup_con")).astype("float32"), np.array([1, 0, 1, 1, 0])
    expected = float(kj.losses.SupCon()(labels, views))
    for loss in (kj.losses.SupCon(), kj.losses.SupCon(unlabelled=-1)):
        assert float(loss(labels.astype(bool), views)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", sorted(PAIR_LABELS))
def test_pair_labels_other_than_0_and_1_are_refused(name):
    views, labels = views_of(Case(name)).astype("float32"), np.array([1, -1, 1, 1, -1])
    message = r"from 0 .* to 1 .*\(y \+ 1\) / 2.*Received: labels from -1 to 1"
    with pytest.raises(ValueError, match=message):
        CLASSES[name]()(labels, views)
    # Excluded items may have any label.
    assert np.isfinite(float(CLASSES[name]()(labels, views, labels > 0)))
    with pytest.raises(ValueError, match=message):
        kj.metrics.PairAccuracy()(labels, views)


@once_compiled
@pytest.mark.parametrize("name", sorted(SCORE_LABELS))
@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_scores_that_are_not_finite_are_refused_or_show(name, bad):
    case = next(case for case in DEFAULTS if case.name == name)
    views, scores = views_of(case).astype("float32"), labels_of(case).astype("float32")
    scores[3] = bad
    with pytest.raises(
        ValueError, match=r"expects finite scores\. Received: labels from (nan|-inf)"
    ):
        case.make()(scores, views)
    # A compiled step cannot refuse them.
    values = ops.convert_to_numpy(case.function(tensor(views), tensor(scores)))
    assert not np.isfinite(values[3])
    # Excluded items may have any label.
    valid = np.arange(5) != 3
    expected = case.naive(views.astype("float64"), labels_of(case), valid)
    actual = case.make()(scores, views, valid.astype("float32"))
    assert float(actual) == pytest.approx(expected.mean(), rel=1e-4)


@pytest.mark.backend("torch")
@pytest.mark.parametrize("name", sorted(PAIR_LABELS))
def test_values_without_meaning_are_no_wrong_labels(name, monkeypatch):

    def loss(y_true, y_pred):
        if y_pred.device.type == "meta":
            raise NotImplementedError("The loss needs values.")
        return ops.square(y_true - y_pred)

    # Keras then builds the model with what the memory holds, mostly 0.
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: torch.full_like(x, 7, **options))
    x, index = keras.Input((3,)), keras.Input((), dtype="int32")
    a, b = keras.layers.Dense(2)(x), keras.layers.Dense(2)(x)
    a, _ = kj.layers.ContrastiveTerm(Case(name).make())((a, b, ops.zeros_like(index)))
    model = keras.Model([x, index], keras.layers.Dense(1)(a))
    model.compile("sgd", loss)
    history = model.fit([np.eye(6, 3), np.arange(6)], np.ones(6), batch_size=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()


@pytest.mark.parametrize("case", WITH_LABELS.values(), ids=WITH_LABELS)
def test_rows_of_ids_are_refused(case):
    views, rows = views_of(case).astype("float32"), np.arange(10).reshape(5, 2)
    with pytest.raises(ValueError, match=r"class rows.*Received: labels from 0 to 9"):
        case.make()(rows, views)


@pytest.mark.backend("jax")
def test_truncated_integer_labels_are_refused():
    views, ids = views_of(Case("sup_con")).astype("float32"), np.arange(5) * 2**32
    message = r"np.unique.*Received: labels from 0 to 17179869184"
    for compute in (
        kj.losses.SupCon(),
        lambda labels, views: kj.losses.sup_con(views, labels),
        kj.metrics.MeanAveragePrecisionAtR(),
    ):
        with pytest.raises(ValueError, match=message):
            compute(ids, views)


test_invalid_unlabelled_is_refused = refuses_calls(
    (lambda: kj.losses.SupCon(unlabelled="x"), "`unlabelled`.*Received: unlabelled='x'"),
    (lambda: kj.losses.InfoNCE(unlabelled=-1), "Expected None, since same_label=None"),
    (lambda: kj.metrics.RecallAtK(unlabelled=-1), "Expected None, since same_label=None"),
)
