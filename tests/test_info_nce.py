"""The options of InfoNCE: the choice of negatives, their weights, directions and probabilities."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss._core.batch import Items
from tests import reference
from tests.backends import once_compiled
from tests.gradients import COMPILES, value_and_gradient
from tests.loss_cases import VALID, Case, assert_close, labels_of, tensor, views_of

GENERATOR = np.random.default_rng(3)
PROBABILITY = GENERATOR.uniform(0.05, 0.9, 9)
GUIDE = GENERATOR.normal(size=(9, 3, 2))
WEIGHT = np.linspace(0.5, 1.5, 5)
_MARGIN = {"false_negative_margin": 0.3, "temperature": 0.5}
_CHOSEN = {"num_hard_negatives": 2, "hardness": 3.0, **_MARGIN}
OPTIONS = {
    "probability": {"sampling_probability": PROBABILITY},
    "probability_of_labelled": {"sampling_probability": PROBABILITY, "same_label": "positive"},
    "guide": {"guide": GUIDE, **_MARGIN},
    "relative_guide": {
        "guide": GUIDE,
        "sampling_probability": PROBABILITY,
        "false_negative_margin_strategy": "relative",
        **_CHOSEN,
    },
    "all": {
        "guide": GUIDE,
        "sampling_probability": PROBABILITY,
        "same_label": "ignore",
        "directions": "within",
        "label_smoothing": 0.2,
        "similarity": "dot",
        **_CHOSEN,
    },
    "joint": {
        "guide": GUIDE,
        "sampling_probability": PROBABILITY,
        "same_label": "positive",
        "directions": "within",
        "partition": "joint",
        "label_smoothing": 0.1,
        **_CHOSEN,
    },
}


def for_items(options, items):
    """Returns the arguments with those that hold a value for each item cut to some items."""
    of_items = ("sampling_probability", "guide")
    return {key: x[items] if key in of_items else x for key, x in options.items()}


def expected_of(options, views, labels, valid, weight):
    """Returns the weighted sum of the naive values and its gradient."""
    fixed = {"fixed_at": views} if options.get("hardness") else {}

    def total(x, **more):
        arguments = {"labels": labels, "valid": valid, **options, **more}
        return np.sum(reference.info_nce(x, **arguments)[: len(weight)] * weight)

    return total(views), reference.central_differences(lambda x: total(x, **fixed), views)


def tensors(options, dtype="float32"):
    """Returns the arguments with tensors in place of arrays."""
    is_array = {key: isinstance(x, np.ndarray) for key, x in options.items()}
    return {key: tensor(x.astype(dtype)) if is_array[key] else x for key, x in options.items()}


@once_compiled
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_value_and_gradient_equal_the_reference(options):
    options = for_items(options, slice(5))
    views = views_of(Case("info_nce", views=3))
    labels = labels_of(Case("sup_con")) if "same_label" in options else None
    value, gradient = expected_of(options, views, labels, VALID, WEIGHT)
    assert value != pytest.approx(expected_of({}, views, None, VALID, WEIGHT)[0])
    invalid = views.copy()
    invalid[~VALID] = np.nan
    given = {"labels": tensor(labels), "valid": tensor(VALID), **tensors(options)}
    for key in ("guide", "sampling_probability"):  # Nor are those of invalid items used.
        if key in options:
            values = options[key].astype("float32")
            values[~VALID] = np.nan
            given[key] = tensor(values)
    parts = (Items(0, 2), Items(2, 3))
    sizes = (None, 2) if not COMPILES else (2,)
    for tile_size, items in itertools.product(sizes, ([None], parts)):

        def total(x, tile_size=tile_size, items=items):
            arguments = {"tile_size": tile_size, **given}
            values = [kj.losses.info_nce(x, **arguments, items=part) for part in items]
            return ops.sum(ops.concatenate(values) * tensor(WEIGHT.astype("float32")))

        actual, slope = value_and_gradient(total, invalid.astype("float32"))
        assert_close(actual, value, 1e-4, err_msg=f"{tile_size}, {items}")
        assert_close(slope, gradient, 1e-3, least=0.1, err_msg=f"{tile_size}, {items}")


@pytest.mark.parametrize("options", [OPTIONS["all"], OPTIONS["joint"]], ids=["all", "joint"])
def test_memory_has_candidates_with_labels_probability_and_guide(options):
    views = views_of(Case("info_nce", views=2), 9)
    options = {**options, "guide": GUIDE[:, :2]}
    labels = labels_of(Case("sup_con"), 9)
    value, gradient = expected_of(options, views, labels, None, WEIGHT)
    batch, held = (tensors(for_items(options, x)) for x in (slice(5), slice(5, 9)))
    memory = kj.losses.Memory(
        tensor(views[5:].astype("float32")),
        tensor(labels[5:]),
        tensor(np.ones(4, "bool")),
        held["sampling_probability"],
        held["guide"],
    )

    def total(x):
        values = kj.losses.info_nce(x, tensor(labels[:5]), **batch, memory=memory)
        return ops.sum(values * tensor(WEIGHT.astype("float32")))

    actual, slope = value_and_gradient(total, views[:5].astype("float32"))
    assert_close(actual, value, 1e-4)
    assert_close(slope, gradient[:5], 1e-3, least=0.1)
    without = kj.losses.Memory(*memory[:3])
    for key in ("sampling_probability", "guide"):
        given = {**batch, **{x: None for x in ("sampling_probability", "guide") if x != key}}
        with pytest.raises(ValueError, match=f"Expected `{key}` for batch and memory"):
            kj.losses.info_nce(
                tensor(views[:5].astype("float32")), tensor(labels[:5]), **given, memory=without
            )


def test_largest_negatives_count_exactly_in_ties():
    same = np.ones((6, 2, 3), "float32")
    for count in (1, 3, 100):
        loss = kj.losses.InfoNCE(num_hard_negatives=count)(np.zeros(6), same)
        assert float(loss) == pytest.approx(np.log(1 + min(count, 5)), rel=1e-5)


def test_anchor_without_negatives_has_only_its_positive_of_each_direction():
    views = np.stack([np.eye(3), -np.eye(3)], axis=1).astype("float32")
    for partition, expected in (("per_direction", 0), ("joint", np.log(2))):
        loss = kj.losses.InfoNCE(
            false_negative_margin=0.0, directions="within", partition=partition, hardness=1.0
        )
        assert float(loss(np.zeros(3), views)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.backend("tensorflow")
def test_tiles_of_a_batch_whose_size_is_known_in_the_step(monkeypatch):
    import tensorflow as tf

    views = tensor(np.random.default_rng(0).normal(size=(9, 2, 4)).astype("float32"))
    probability = tensor(PROBABILITY.astype("float32"))

    def gradient(views, probability):
        with tf.GradientTape() as tape:
            tape.watch(views)
            values = kj.losses.info_nce(
                views, symmetric=False, sampling_probability=probability, temperature=1.0
            )
            value = ops.sum(values)
        return tape.gradient(value, views)

    expected = gradient(views, probability)
    for limit in ("DENSE_LIMIT", "TILE_SIZE"):
        monkeypatch.setattr(f"keras_jointloss.losses._tiles.{limit}", 4)
    of_any_size = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in (views, probability)]
    actual = tf.function(gradient, input_signature=of_any_size)(views, probability)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tile_size", [None, 2])
def test_loss_stays_finite_with_rare_items_and_a_low_temperature(tile_size):
    views = views_of(Case("info_nce", views=2), 9).astype("float32")
    probability = np.geomspace(1e-30, 1, 9)
    options = {"sampling_probability": probability, "hardness": 50.0, "temperature": 0.01}
    expected = reference.info_nce(views.astype("float64"), **options)
    actual = kj.losses.info_nce(tensor(views), tile_size=tile_size, **tensors(options))
    assert_close(actual, expected, 1e-4)


def test_item_whose_guide_is_not_finite_has_the_loss_nan():
    guide = GUIDE[:5, :2].astype("float32")
    guide[3, 1] = np.nan
    views = tensor(views_of(Case("info_nce")).astype("float32"))
    values = kj.losses.info_nce(views, false_negative_margin=0.1, guide=tensor(guide))
    assert np.isnan(ops.convert_to_numpy(values)).tolist() == [False] * 3 + [True, False]


def test_directions_and_symmetric_agree_or_are_refused():
    views = views_of(Case("info_nce")).astype("float32")

    def value(**arguments):
        return float(kj.losses.InfoNCE(**arguments)(np.zeros(5), views))

    assert value(directions="both") == value()
    assert value(directions="first") == value(symmetric=False)
    assert value(directions="first", symmetric=False) == value(symmetric=False)
    assert value(directions="first", partition="joint") == pytest.approx(value(directions="first"))
    for directions in ("both", "within"):
        with pytest.raises(ValueError, match=r"`directions`.*since symmetric=False.*Received"):
            kj.losses.InfoNCE(symmetric=False, directions=directions)


def test_candidates_within_the_views_are_those_of_nt_xent():
    views = views_of(Case("info_nce"), 9).astype("float32")
    within = kj.losses.InfoNCE(0.1, directions="within", label_smoothing=0.1)
    expected = kj.losses.NTXent(0.1, label_smoothing=0.1)(np.zeros(9), views)
    assert float(within(np.zeros(9), views)) == pytest.approx(float(expected), rel=1e-5)


# In layers and outputs


def model_of(term, dim=4, **others):
    """Returns a model of a term, with the probability and two guides as inputs, if it uses them."""
    inputs = {"views": keras.Input((2, dim), name="views")}
    if "sampling_probability" in others:
        inputs["q"] = others["sampling_probability"] = keras.Input((), name="q")
    if "guide" in others:
        inputs["guide"] = keras.Input((2, 2), name="guide")
        others["guide"] = inputs["guide"][:, 0], inputs["guide"][:, 1]
    same = keras.layers.Dense(dim, kernel_initializer="identity")(inputs["views"])
    model = keras.Model(inputs, term((same[:, 0], same[:, 1]), **others))
    model.compile(keras.optimizers.SGD(0.0))
    return model


def test_term_takes_probability_and_guide_and_remembers_them(tmp_path):
    views = views_of(Case("info_nce"), 9, 4).astype("float32")
    options = {"num_hard_negatives": 3, "false_negative_margin": 0.1}
    term = kj.layers.ContrastiveTerm(kj.losses.InfoNCE(0.5, **options), memory_size=5, name="t")
    model = model_of(term, sampling_probability=True, guide=True)
    data = {"views": views, "q": PROBABILITY.astype("float32"), "guide": GUIDE[:, :2]}
    first, second = ({key: x[part] for key, x in data.items()} for part in (slice(5), slice(5, 9)))
    model.fit(first, batch_size=5, verbose=0)
    order = [*range(5, 9), *range(5)]  # The batch comes first, then the memory.
    expected = reference.info_nce(
        views[order].astype("float64"),
        temperature=0.5,
        sampling_probability=PROBABILITY[order],
        guide=GUIDE[order],
        **options,
    )[:4].mean()
    model.save(tmp_path / "model.keras")
    for other in (model, keras.models.load_model(tmp_path / "model.keras")):
        assert other.evaluate(second, verbose=0)[0] == pytest.approx(expected, rel=1e-4)


def test_probability_as_a_feature_of_an_output_is_the_same():
    # This is the recipe in the docstring.
    views = views_of(Case("info_nce"), 9).astype("float32")
    temperature, q = 0.2, PROBABILITY.astype("float32")
    a, b = (keras.utils.normalize(views[:, i]) for i in (0, 1))
    a = np.concatenate([a, np.ones((9, 1))], axis=1)
    b = np.concatenate([b, -temperature * np.log(q)[:, None]], axis=1)
    stacked = np.stack([a, b], axis=1).astype("float32")
    loss = kj.losses.InfoNCE(temperature, similarity="dot", symmetric=False)
    options = {"symmetric": False, "sampling_probability": PROBABILITY, "temperature": temperature}
    expected = reference.info_nce(views.astype("float64"), **options).mean()
    assert float(loss(np.zeros(9), stacked)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("loss", "arguments", "message"),
    [
        ("SupCon", {"sampling_probability": np.ones(6)}, "`sampling_probability`.*SupCon does not"),
        ("VICReg", {"guide": (np.ones((6, 2)),) * 2}, "`guide`.*None, since VICReg does not"),
        ("mse", {"guide": (np.ones((6, 2)),) * 2}, "`guide`.*None, since MeanSquaredError does"),
        ("InfoNCE", {"sampling_probability": np.ones(5)}, r"sampling probabilities of shape \(6,"),
        ("InfoNCE", {"guide": (np.ones((6, 2)),)}, r"`guide`.*a tuple of 2 .*Received: guide of"),
        ("InfoNCE", {"guide": np.ones((6, 2))}, "`guide`.*a tuple of 2 .*Received: guide of "),
        ("InfoNCE", {"guide": (np.ones((6, 2)), np.ones((6, 3)))}, "`guide`.*Received: guide of"),
        ("InfoNCE", {"guide": (np.ones((5, 2)),) * 2}, "`guide`.*Received: guide of shapes"),
        ("InfoNCE", {"guide": (np.ones((6, 2)),) * 2}, "`guide`.*false_negative_margin=None"),
    ],
)
def test_unexpected_arguments_of_a_call_are_refused(loss, arguments, message):
    layer = kj.layers.ContrastiveTerm(loss)
    x = ops.ones((6, 4))
    labels = (ops.arange(6),) if loss == "SupCon" else ()

    def call():
        layer((x, x, *labels), **arguments)
        return layer.losses  # In a direct call, JAX computes them here.

    with pytest.raises(ValueError, match=message):
        call()


# What the correction is for


def learned_distribution(joint, is_corrected):
    """Returns the distribution of the items for each query that a model of pairs learns.

    The model has a number for each query and item. Batches hold pairs that are drawn from their
    joint distribution, so that an item is a negative as often as it is popular.
    """
    generator = np.random.default_rng(0)
    queries, items = joint.shape
    scores, average = np.zeros((items, queries), "float32"), 0.0
    for step in range(100):
        pairs = generator.choice(joint.size, 192, p=joint.ravel())
        query, item = np.unravel_index(pairs, joint.shape)
        first = tensor(np.eye(queries, dtype="float32")[query])
        options = {"temperature": 1.0, "similarity": "dot", "symmetric": False}
        if is_corrected:
            options["sampling_probability"] = tensor(joint.sum(axis=0)[item].astype("float32"))

        def loss(x, first=first, item=item, options=options):
            second = ops.take(x, tensor(item), axis=0)
            return ops.mean(kj.losses.info_nce(ops.stack([first, second], axis=1), **options))

        _, slope = value_and_gradient(loss, scores)
        scores = scores - 10.0 / (1 + step / 25) * slope
        average = average + scores * (step >= 50) / 50
    return ops.convert_to_numpy(ops.softmax(average.T, axis=1))


@pytest.mark.backend("torch")
def test_sampling_probability_recovers_the_full_softmax():
    generator = np.random.default_rng(1)
    joint = generator.uniform(0.2, 1, (3, 6)) * np.geomspace(1, 20, 6)
    joint /= joint.sum()
    target = joint / joint.sum(axis=1, keepdims=True)  # What a softmax over all items learns.
    errors = {
        is_corrected: np.abs(learned_distribution(joint, is_corrected) - target).sum(axis=1).max()
        for is_corrected in (True, False)
    }
    assert errors[True] < 0.05
    assert errors[False] > 0.5
