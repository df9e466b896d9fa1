"""The losses: values and gradients compared with naive references, shapes and errors."""

import inspect
import json

import keras
import numpy as np
import pytest
from keras import ops
from keras.src.backend import set_keras_mask  # Layers mark padded items with it.

import keras_jointloss as kj
from keras_jointloss._core.batch import Items
from keras_jointloss.losses.sigreg import directions
from tests import loss_cases as cases
from tests import reference
from tests.backends import BACKEND, once_compiled, values_only
from tests.gradients import COMPILES, dtypes, value_and_gradient
from tests.loss_cases import (
    CASES,
    CLASSES,
    DEFAULTS,
    EACH_KIND,
    PAIR_LABELS,
    SCORE_LABELS,
    TILED,
    VALID,
    VIEWS,
    Case,
    assert_close,
    labels_of,
    tensor,
    views_of,
)

#: JAX compiles each operation for each shape, so it tests only the default arguments.
IS_JAX = BACKEND == "jax"
MASKED = [*DEFAULTS, Case("sup_con", views=1), Case("triplet", views=1)]
COMPARED = {key: case for key, case in CASES.items() if not (IS_JAX and case.arguments)}
#: The operations are the same on all backends, so the arguments are varied most on PyTorch.
VARIED = {key: case for key, case in CASES.items() if not (COMPILES and case.arguments)}

# Values and gradients


@pytest.mark.parametrize(
    "valid", [pytest.param(None, marks=once_compiled), VALID], ids=["all", "masked"]
)
@pytest.mark.parametrize("case", COMPARED.values(), ids=COMPARED)
def test_value_and_gradient_equal_the_reference(case, valid):
    views, labels = views_of(case), labels_of(case) if case.labels else None
    if valid is not None:
        views[~valid] = np.nan
    cases.assert_equals_reference(case, views, labels, valid, dtype=dtypes()[-1])


@once_compiled
@pytest.mark.parametrize("case", VARIED.values(), ids=VARIED)
def test_class_equals_the_reference_for_other_shapes_and_labels(case):
    for batch, dim, labels in [
        (5, 3, np.ones(5, "int64")),
        (5, 3, np.arange(5) if case.labels == "class" else np.zeros(5)),
        (9, 4, labels_of(case, 9)),
        (2, 1, np.array([1, 0])),
    ]:
        views = views_of(case, batch, dim, seed=batch)
        expected = case.naive(views, labels if case.labels else None, None, **case.arguments)
        column = labels[:, None] if batch == 9 else labels
        actual = case.make().call(tensor(column), tensor(case.given(views.astype("float32"))))
        assert tuple(actual.shape) == (batch,)
        assert_close(actual, expected, 1e-4, err_msg=f"batch={batch}, labels={labels}")


@once_compiled  # JAX has no replicas.
@pytest.mark.parametrize("case", (DEFAULTS if COMPILES else [*CASES.values()]), ids=str)
def test_losses_of_some_items_are_those_among_all(case):
    views, labels = views_of(case).astype("float32"), labels_of(case) if case.labels else None
    weight = np.linspace(0.5, 1.5, len(views))
    loss = case.make()
    for tile_size in (None, 2) if case.name in TILED and not case.arguments else (None,):
        loss.tile_size = tile_size or getattr(loss, "tile_size", None)

        def values(x, labels, valid, loss=loss):
            parts = (Items(0, 2), Items(2, 3))
            return ops.concatenate([loss.values(x, labels, valid, items) for items in parts])

        expected = cases.weighted_value_and_gradient(loss.values, views, labels, VALID, weight)
        actual = cases.weighted_value_and_gradient(values, views, labels, VALID, weight)
        for x, y in zip(actual, expected, strict=True):
            assert_close(x, y, 1e-5)


# Weights, masks and types

WEIGHT = np.array([0.5, 1.0, 0.0, 2.0, 1.5])


@once_compiled
@pytest.mark.parametrize("case", VARIED.values(), ids=VARIED)
def test_item_of_weight_zero_is_excluded(case):
    views, labels = views_of(case), labels_of(case)
    views[2] = np.nan
    values = case.naive(views, labels if case.labels else None, WEIGHT > 0, **case.arguments)
    given = case.given(views.astype("float32"))
    actual = case.make()(labels, given, sample_weight=WEIGHT)
    assert float(actual) == pytest.approx(np.sum(values * WEIGHT) / 5, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("reduction", "divisor"),
    [("sum_over_batch_size", 5), ("sum", 1), ("mean_with_sample_weight", np.sum(WEIGHT))],
)
def test_weights_are_reduced_as_in_keras(reduction, divisor):
    case = Case("nt_xent")
    values = case.naive(views_of(case), None, WEIGHT > 0)
    loss = case.make(reduction=reduction)
    for weight in [WEIGHT, WEIGHT[:, None]]:
        actual = loss(np.zeros(5), views_of(case).astype("float32"), sample_weight=weight)
        assert float(actual) == pytest.approx(np.sum(values * WEIGHT) / divisor, rel=1e-4)


@once_compiled
@pytest.mark.parametrize("case", DEFAULTS, ids=list(CLASSES))
def test_gradient_of_an_item_of_weight_zero_is_zero(case):
    views, labels = views_of(case).astype("float32"), labels_of(case)
    views[2] = np.nan
    loss = case.make()
    _, gradient = value_and_gradient(lambda x: loss(labels, x, WEIGHT), views)
    numeric = cases.expected_gradient(case, views.astype("float64"), labels, WEIGHT > 0, WEIGHT / 5)
    assert (gradient[2] == 0).all()
    assert_close(gradient, numeric, 1e-3)


@pytest.mark.parametrize("case", EACH_KIND if IS_JAX else MASKED, ids=str)
def test_masked_item_is_excluded(case):
    views, labels = views_of(case), labels_of(case)
    views[3] = np.nan
    mask = np.array([True, True, True, False, True])
    for weight in [None, WEIGHT]:
        valid = mask if weight is None else mask & (weight > 0)
        values = case.naive(views, labels, valid, **case.arguments)
        expected = np.sum(values * (mask if weight is None else mask * weight)) / np.sum(mask)
        masked = ops.convert_to_tensor(case.given(views.astype("float32")))
        set_keras_mask(masked, ops.convert_to_tensor(mask))
        actual = case.make()(labels, masked, sample_weight=weight)
        assert float(actual) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@once_compiled
@pytest.mark.parametrize("case", DEFAULTS, ids=list(CLASSES))
def test_batch_without_valid_items_has_zero_loss(case):
    views = np.full(views_of(case).shape, np.nan, "float32")
    loss = case.make()
    value, gradient = value_and_gradient(lambda x: loss(labels_of(case), x, np.zeros(5)), views)
    assert value == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("case", EACH_KIND if IS_JAX else DEFAULTS, ids=str)
def test_half_precision_inputs_are_computed_in_float32(case, dtype):
    # These dot products exceed the range of float16.
    scale = 1.0 if case.is_cosine else 300.0
    views = ops.cast(views_of(case, scale=scale).astype("float32"), dtype)
    rounded = ops.convert_to_numpy(ops.cast(views, "float32")).astype("float64")
    labels = labels_of(case)
    expected = case.naive(rounded, labels, **case.arguments)
    for tile_size in case.few_tile_sizes:
        actual = case.with_tile_size(tile_size)(views, tensor(labels))
        assert keras.backend.standardize_dtype(actual.dtype) == "float32"
        assert_close(actual, expected, 1e-4)
    value = case.make()(labels, views)
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(value) == pytest.approx(expected.mean(), rel=1e-3)


@pytest.mark.backend("tensorflow", "torch")  # JAX disables float64 by default.
@pytest.mark.parametrize("case", DEFAULTS, ids=list(CLASSES))
def test_float64_inputs_are_computed_in_float64(case):
    views, labels = views_of(case), labels_of(case)
    for values in [
        case.function(tensor(views), tensor(labels)),
        case.make(dtype="float64").call(tensor(labels), tensor(views)),
    ]:
        assert keras.backend.standardize_dtype(values.dtype) == "float64"
        assert_close(values, case.naive(views, labels), 1e-9)


@once_compiled
def test_directions_of_sigreg_are_uniform_and_new_in_each_batch():
    generator = np.random.default_rng(0)
    first, second = (generator.normal(size=(32, 1, 6)) for _ in range(2))

    def drawn(views, seed=0):
        found = directions(tensor(views.astype("float32")), 4096, seed)
        return ops.convert_to_numpy(found)

    slices = drawn(first)
    np.testing.assert_allclose(np.linalg.norm(slices, axis=0), 1, rtol=1e-5)
    np.testing.assert_allclose(slices @ slices.T / 4096, np.eye(6) / 6, atol=0.01)
    np.testing.assert_allclose(slices.mean(axis=1), 0, atol=0.02)
    for others in (drawn(second), drawn(first, seed=1), drawn(1.1 * first + 0.1)):
        assert abs(np.sum(slices * others, axis=0).mean()) < 0.03
    # Rounding does not change them; standardized features, whose sums are 0, do.
    np.testing.assert_array_equal(drawn(first * (1 + 1e-7)), slices)
    standard = [drawn((x - x.mean(0)) / x.std(0)) for x in (first, second)]
    assert abs(np.sum(standard[0] * standard[1], axis=0).mean()) < 0.03


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
    given = "memory", "items", "exchange", *CLASSES[name].call_arguments
    assert defaults(function, "views", "labels", "valid", *given) == expected
    assert expected.keys() <= CLASSES[name]().get_config().keys()
    naive = defaults(getattr(reference, name), "views", "labels", "valid", "fixed_at", *given)
    assert naive == {key: value for key, value in expected.items() if key != "tile_size"}


# Errors


@pytest.mark.parametrize("name", CLASSES)
def test_views_of_wrong_shape_are_refused(name):
    shapes = [(4,), (4, 2, 3, 1)]
    shapes += [] if name in cases.ONE_VIEW else [(4, 3), (4, 1, 3)]
    shapes += [(4, 3, 3)] if name == "negative_cosine_similarity" else []
    shapes += [] if name in cases.MORE_VIEWS else [(4, 5 - VIEWS.get(name, 2), 3)]
    for shape in shapes:
        with pytest.raises(ValueError, match=r"expects stacked views .*Received: shape="):
            CLASSES[name]().call(np.zeros(4), np.zeros(shape, "float32"))


@pytest.mark.parametrize("name", ["nt_xent", "decoupled_contrastive"])
@pytest.mark.parametrize("same_label", [None, "ignore"])
def test_one_view_without_positives_of_other_items_is_refused(name, same_label):
    with pytest.raises(ValueError, match=r"\(batch, 2 or more, dim\)\. Received: shape=\(4, 3\)"):
        CLASSES[name](same_label=same_label).call(np.zeros(4), np.zeros((4, 3), "float32"))


@once_compiled
def test_margins_of_several_negatives_are_the_mean_over_triplets():
    views, scores = (
        views_of(Case("margin_mse", views=5)).astype("float32"),
        views_of(Case("x", {}, 4)),
    )
    scores = scores[:, :, 0].astype("float32")  # Of the positive and of three negatives.
    loss, margins = kj.losses.MarginMSE(), scores[:, :1] - scores[:, 1:]
    triplets = [views[:, [0, 1, 2 + i]] for i in range(3)]
    expected = np.mean([loss(margins[:, i], x) for i, x in enumerate(triplets)])
    assert float(loss(margins, views)) == pytest.approx(expected, rel=1e-5)
    assert float(loss(scores, views)) == pytest.approx(expected, rel=1e-5)
    term = kj.layers.ContrastiveTerm(loss)
    term((*ops.unstack(tensor(views), axis=1), tensor(margins)))
    assert float(term.losses[0]) == pytest.approx(expected, rel=1e-5)
    for labels in (margins[:, 0], margins[:, :2], views[:, :, 0]):
        with pytest.raises(ValueError, match=r"MarginMSE expects .*\(5, 3\).*Received: shape="):
            loss(labels, views)


#: The losses of one number for each item.
ONE_LABEL = PAIR_LABELS | SCORE_LABELS - {"margin_mse"}


@pytest.mark.parametrize("name", sorted(ONE_LABEL | {"margin_mse"} | cases.CLASS_LABELS))
def test_labels_of_wrong_shape_are_refused(name):
    shapes = [(), (3,), (3, 1), (4, 1, 1)]
    for shape in [*shapes, (4, 2) if name in ONE_LABEL else (3, 2)]:
        with pytest.raises(ValueError, match=r"expects labels .*Received: shape="):
            CLASSES[name]().call(np.zeros(shape), np.zeros((4, VIEWS.get(name, 2), 4), "float32"))


@values_only
def test_loss_without_labels_ignores_them():
    views = np.random.default_rng(0).normal(size=(5, 2, 4))
    expected = ops.convert_to_numpy(kj.losses.VICReg().values(views))
    found = kj.losses.VICReg().values(views, np.full(5, np.nan))
    np.testing.assert_array_equal(ops.convert_to_numpy(found), expected)


@pytest.mark.parametrize("name", ["info_nce", "siglip", "nt_xent", "decoupled_contrastive"])
def test_missing_labels_are_refused(name):
    views = np.zeros((4, 2, 3), "float32")
    with pytest.raises(ValueError, match="label"):
        getattr(kj.losses, name)(views, same_label="positive")
    with pytest.raises(ValueError, match="expects labels"):
        kj.losses.SupCon()(None, views)


def test_loss_without_parts_has_none_to_log():
    assert kj.losses.SupCon().part_values(np.zeros((4, 2, 3))) == {}


NO_POSITIVE_NUMBER = [0, -1.0, float("nan"), float("inf"), "0.1", None, True]
NEGATIVE = [-0.5, float("nan"), "1", None, True]
NO_CHOICE = ["manhattan", 1, True]
NO_MARGIN = [-0.5, float("nan"), "hard", None]
REFUSED = {
    "temperature": (
        "info_nce siglip nt_xent sup_con decoupled_contrastive similarity_distillation",
        NO_POSITIVE_NUMBER,
    ),
    "margin": ("contrastive margin_contrastive triplet triplet_margin circle", NO_MARGIN),
    "swap": ("triplet_margin", [None, 1, "yes"]),
    "mining": ("triplet", [*NO_CHOICE, None]),
    "similarity": (
        "triplet triplet_margin info_nce siglip nt_xent sup_con decoupled_contrastive n_pairs "
        "margin_mse similarity_distillation",
        [*NO_CHOICE, None],
    ),
    "same_label": ("info_nce siglip nt_xent decoupled_contrastive", NO_CHOICE),
    "label_smoothing": ("info_nce nt_xent sup_con n_pairs", [-0.1, 1.5, float("nan"), "0.1"]),
    "tile_size": (" ".join(sorted(TILED)), [0, -1, 1.5, "2", True, 2**31]),
    "num_hard_negatives": ("info_nce", [0, 1.5, "2", True]),
    "false_negative_margin": ("info_nce", NEGATIVE[:-2]),
    "false_negative_margin_strategy": ("info_nce", [*NO_CHOICE, None]),
    "hardness": ("info_nce", NEGATIVE),
    "directions": ("info_nce", NO_CHOICE),
    "partition": ("info_nce", [*NO_CHOICE, None]),
    "bias": ("siglip", [float("nan"), "0", None]),
    "alpha": ("multi_similarity alignment_uniformity", NO_POSITIVE_NUMBER),
    "beta": ("multi_similarity", NO_POSITIVE_NUMBER),
    "base": ("multi_similarity", [float("nan"), "0", None]),
    "mining_margin": ("multi_similarity", [float("nan"), "0"]),
    "gamma": ("circle", NO_POSITIVE_NUMBER),
    **{f"{part}_weight": ("vicreg", NEGATIVE) for part in ("invariance", "variance", "covariance")},
    "epsilon": ("vicreg koleo", NEGATIVE),
    "off_diagonal_weight": ("barlow_twins", NEGATIVE),
    "scale": ("cosent angle", NO_POSITIVE_NUMBER),
    "teacher_temperature": ("similarity_distillation", NO_POSITIVE_NUMBER),
    "symmetric": ("info_nce similarity_distillation", [None, 1, "yes"]),
    "mean_weight": ("spread_out", NEGATIVE),
    "second_moment_weight": ("spread_out", NEGATIVE),
    "uniformity_weight": ("alignment_uniformity", NEGATIVE),
    "t": ("alignment_uniformity", NO_POSITIVE_NUMBER),
    "num_slices": ("sigreg", [0, -1, 1.5, "2", True]),
    "knots": ("sigreg", [1, 1.5, "2", True]),
    "t_max": ("sigreg", NO_POSITIVE_NUMBER),
    "seed": ("sigreg", [-1, 1.5, "2", True]),
}


@pytest.mark.parametrize("argument", REFUSED)
def test_arguments_out_of_range_are_refused(argument):
    names, values = REFUSED[argument]
    for name in names.split():
        for value in values:
            with pytest.raises(ValueError, match=rf"`{argument}`.*Received: {argument}="):
                CLASSES[name](**{argument: value})


# Names


@pytest.mark.parametrize("name", CLASSES)
def test_get_finds_every_loss_by_name(name):
    for identifier in (CLASSES[name].__name__, name):
        loss = kj.losses.get(identifier)
        assert type(loss) is CLASSES[name]
        assert loss.name == name


def test_get_finds_losses_by_name_instance_and_config():
    for name in ("MeanSquaredError", "mean_squared_error", "mse"):
        assert isinstance(kj.losses.get(name), keras.losses.MeanSquaredError)
    for name in ("_Custom", "custom"):
        assert isinstance(kj.losses.get(name), _Custom)
    loss = kj.losses.InfoNCE(0.3)
    assert kj.losses.get(loss) is loss
    config = keras.saving.serialize_keras_object(loss)
    assert kj.losses.get(config).get_config() == loss.get_config()


NO_LOSSES = [
    *("NoSuchLoss", "Reduction", "ContrastiveTerm", "Loss", 3, None),
    keras.saving.serialize_keras_object(keras.metrics.Mean()),
    keras.saving.serialize_keras_object(keras.layers.Dense(1)),
    keras.saving.serialize_keras_object(keras.losses.mean_squared_error),
]


@pytest.mark.parametrize("get", [kj.losses.get, kj.layers.ContrastiveTerm])
@pytest.mark.parametrize("identifier", NO_LOSSES, ids=lambda x: str(x)[:60])
def test_other_objects_are_refused(identifier, get):
    with pytest.raises(ValueError, match=r"Expected a member of .*'InfoNCE'.*Received: loss="):
        get(identifier)


# Custom losses


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
class _Custom(kj.losses.ViewsLoss):
    """A loss that reuses argument names of other losses with a different meaning."""

    @staticmethod
    def function(views, labels, valid, **arguments):
        return ops.sum(views, axis=(1, 2))

    def __init__(self, alpha=-1.0, margin=None, mode="sum", scales=(1, 2), **options):
        super().__init__(**options, alpha=alpha, margin=margin, mode=mode, scales=list(scales))


def test_custom_loss_may_have_arguments_of_any_kind():
    loss = _Custom(alpha=0.0, margin="wide", mode=True, name="mine")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert (again.alpha, again.margin, again.mode, again.scales) == (0.0, "wide", True, [1, 2])
    assert loss.call(None, ops.ones((3, 2, 4))).shape == (3,)
