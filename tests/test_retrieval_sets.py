"""Retrieval evaluation with queries and candidates of unequal numbers and several right ones."""

import keras
import numpy as np
import pytest
from keras import ops
from sklearn.metrics import average_precision_score, ndcg_score

import keras_jointloss as kj
from keras_jointloss.callbacks import RetrievalEvaluation
from keras_jointloss.callbacks.retrieval import _figures
from tests import reference_metrics as reference
from tests.backends import once_compiled
from tests.refusals import refuses
from tests.summaries import read_scalars

QUERIES, CANDIDATES = 13, 31
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.normal(size=(QUERIES, 5)).astype("float32")
CAPTIONS = RANDOM.normal(size=(CANDIDATES, 3)).astype("float32")
# From 0 to more right candidates than there are comparisons, and candidates without a query.
RIGHT = RANDOM.random((QUERIES, CANDIDATES)) < np.linspace(0, 0.9, QUERIES)[:, None]
RIGHT[:, [4, 9]] = False


def make_model(kind="stacked"):
    """Returns a model of two towers."""
    keras.utils.set_random_seed(1)
    image, text = keras.Input((5,), name="image"), keras.Input((3,), name="text")
    names = ("image_tower", "text_tower")
    towers = [keras.Sequential([keras.layers.Dense(4)], name=name) for name in names]
    a, b = towers[0](image), towers[1](text)
    inputs = {"image": image, "text": text} if kind == "dict" else [image, text]
    term = kj.layers.ContrastiveTerm("InfoNCE", name="term")
    if kind == "term":
        outputs = ops.add(*term((a, b)))
    elif kind == "weighted term":
        inputs.append(keras.Input((), name="weight"))
        outputs = ops.add(*term((a, b), sample_weight=inputs[-1]))
    elif kind.startswith("term as outputs"):
        # The second one has another output first, the third other names.
        a, b = pair = term((a, b))
        label = keras.layers.Dense(4, name="label")(a)
        outputs = {"": pair, ", label": (label, *pair), ", named": {"a": a, "b": b}}
        outputs = outputs[kind.removeprefix("term as outputs")]
    elif kind == "two":
        outputs = {"a": a, "b": b, "c": keras.layers.Dense(2)(a + b)}
    else:
        outputs = {"pair": ops.stack([a, b], axis=1), "label": keras.layers.Dense(2)(a)}
    return keras.Model(inputs, outputs)


def embedded(layers, data=(IMAGES, CAPTIONS)):
    """Returns what layers make of the queries and the candidates."""
    pairs = zip(layers, data, strict=True)
    return [ops.convert_to_numpy(layer(x)).astype("float64") for layer, x in pairs]


def embeddings(model, names=("image_tower", "text_tower")):
    return embedded(map(model.get_layer, names))


def expected_figures(a, b, k=(3,), name="pair"):
    """Returns what `pytest.approx` compares the figures with."""
    return pytest.approx(reference.retrieval_figures(a, b, RIGHT, k, name), rel=1e-6)


def evaluation(relevant=RIGHT, queries=IMAGES, candidates=CAPTIONS, **arguments):
    arguments |= {"queries": queries, "candidates": candidates, "relevant": relevant}
    return RetrievalEvaluation(**arguments)


AS_LISTS = [np.flatnonzero(row).tolist() for row in RIGHT]


@pytest.fixture(scope="module")
def untrained():
    return make_model()


@pytest.fixture(scope="module")
def identity():
    """A model that returns its input, so that a test gives the embeddings themselves."""
    x = keras.Input((4,))
    return keras.Model(x, keras.layers.Identity()(x))


@once_compiled
@pytest.mark.parametrize("tile_size", [1, 5, 100])
@pytest.mark.parametrize("relevant", [RIGHT, RIGHT.tolist(), AS_LISTS])
def test_equals_the_reference(tile_size, relevant, untrained):
    figures = evaluation(relevant, k=(1, 4, 40), tile_size=tile_size).evaluate(untrained)
    assert figures == expected_figures(*embeddings(untrained), (1, 4, 40))
    assert all(type(value) is float for value in figures.values())


def test_halves_of_an_output_that_nothing_stacks():
    x = keras.Input((5,))
    dense = keras.layers.Dense(8)
    model = keras.Model(x, {"pair": keras.layers.Reshape((2, 4))(dense(x))})
    candidates = RANDOM.normal(size=(CANDIDATES, 5)).astype("float32")
    figures = evaluation(candidates=candidates, k=4).evaluate(model)
    a, b = embedded([dense, dense], (IMAGES, candidates))
    assert figures == expected_figures(a[:, :4], b[:, 4:], (4,))


@once_compiled
@pytest.mark.parametrize("most", [0, 10**9])
def test_ties_count_against_the_model_however_they_are_ordered(identity, monkeypatch, most):
    monkeypatch.setattr(_figures, "MAX_COMPARISONS", most)
    monkeypatch.setattr(_figures, "SIMILARITIES_AT_ONCE", 5 * CANDIDATES)
    a, b = RANDOM.integers(-1, 2, (QUERIES, 4)), RANDOM.integers(-1, 2, (CANDIDATES, 4))
    a[3] = b[5] = 0  # no direction
    figures = evaluation(RIGHT, a, b, k=(1, 7), name="x").evaluate(identity)
    assert figures == expected_figures(a, b, (1, 7), "x")


def _at(degrees):
    """Returns vectors at these angles, in two of four dimensions."""
    x = np.radians(np.asarray(degrees, "float64"))
    return np.stack([np.cos(x), np.sin(x), 0 * x, 0 * x], axis=1)


@once_compiled
def test_five_captions_an_image_count_as_in_the_benchmarks_of_clip(identity):
    images, captions = _at([0, 90]), _at([10, 20, 60, 70, 80, 30, 40, 50, 105, 175])
    relevant = np.arange(10).reshape(2, 5)
    figures = evaluation(relevant, images, captions, k=(1, 5), name="x").evaluate(identity)
    # The first image finds its captions at 1, 2, 6, 7, 8, the second at 2, 5, 6, 7, 10.
    precision = [1 / 1 + 2 / 2 + 3 / 6 + 4 / 7 + 5 / 8, 1 / 2 + 2 / 5 + 3 / 6 + 4 / 7 + 5 / 10]
    gain = 1 / np.log2(np.arange(2, 7))  # at 1 to 5
    ndcg = [(gain[0] + gain[1]) / gain.sum(), (gain[1] + gain[4]) / gain.sum()]
    hand = {
        "a_to_b_recall_at_1": 1 / 2,
        "a_to_b_recall_at_5": 1.0,
        "a_to_b_mean_reciprocal_rank": (1 + 1 / 2) / 2,
        "a_to_b_median_rank": 1.5,
        "a_to_b_mean_average_precision": sum(precision) / 10,
        "a_to_b_ndcg_at_1": 1 / 2,
        "a_to_b_ndcg_at_5": sum(ndcg) / 2,
        # Captions below 45 degrees find the first image, of which two are its own.
        "b_to_a_recall_at_1": 1 / 2,
        "b_to_a_recall_at_5": 1.0,
        "b_to_a_mean_reciprocal_rank": 3 / 4,
        "b_to_a_mean_average_precision": 3 / 4,
        "recall_at_1": 1 / 2,
    }
    assert {key: figures[f"x_{key}"] for key in hand} == pytest.approx(hand)


@once_compiled
def test_equals_scikit_learn(identity):
    a, b = RANDOM.normal(size=(QUERIES, 4)), RANDOM.normal(size=(CANDIDATES, 4))
    figures = evaluation(RIGHT, a, b, k=(3, 10), name="x").evaluate(identity)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    for way, similarity, right in (
        ("a_to_b", unit[0] @ unit[1].T, RIGHT),
        ("b_to_a", unit[1] @ unit[0].T, RIGHT.T),
    ):
        found = right.any(axis=1)
        pairs = list(zip(right[found], similarity[found], strict=True))
        precision = np.mean([average_precision_score(*pair) for pair in pairs])
        assert figures[f"x_{way}_mean_average_precision"] == pytest.approx(precision)
        for k in (3, 10):
            ndcg = ndcg_score(right[found], similarity[found], k=k)
            assert figures[f"x_{way}_ndcg_at_{k}"] == pytest.approx(ndcg)


@once_compiled
def test_one_right_candidate_by_index_or_list_or_row_is_the_same(identity):
    index = RANDOM.integers(0, QUERIES, CANDIDATES)
    a, b = RANDOM.normal(size=(CANDIDATES, 4)), RANDOM.normal(size=(QUERIES, 4))
    forms = [index, index.tolist(), index[:, None], index.astype("uint8")]
    forms.append(np.eye(QUERIES)[index] > 0)
    results = [evaluation(form, a, b, name="x").evaluate(identity) for form in forms]
    assert all(result == results[0] for result in results)


@once_compiled
def test_pairs_of_items_give_the_same_as_data(untrained):
    captions = CAPTIONS[:QUERIES]
    pairs = RetrievalEvaluation([IMAGES, captions]).evaluate(untrained)
    sets = evaluation(np.arange(QUERIES), candidates=captions).evaluate(untrained)
    assert {key: sets[key] for key in pairs} == pytest.approx(pairs)


@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        ("stacked", {"embeddings": "pair"}, "pair"),
        ("stacked", {"embeddings": ("image_tower", "text_tower")}, "image_tower_text_tower"),
        ("two", {"embeddings": ["a", "b"]}, "a_b"),
        ("two", {"embeddings": ["a", "b"], "name": "test_set"}, "test_set"),
        ("term", {}, "term"),
        ("term", {"embeddings": "term"}, "term"),
        ("weighted term", {}, "term"),
        ("term as outputs", {}, "term"),
        ("term as outputs", {"embeddings": "term"}, "term"),
        ("term as outputs", {"embeddings": ["term[0]", "term[1]"]}, "term[0]_term[1]"),
        ("term as outputs, label", {}, "term"),
        ("term as outputs, label", {"embeddings": "term"}, "term"),
        ("term as outputs, named", {}, "term"),
        ("term as outputs, named", {"embeddings": ["a", "b"]}, "a_b"),
        ("dict", {"queries": {"image": IMAGES}, "candidates": {"text": CAPTIONS}}, "pair"),
    ],
)
def test_finds_the_embeddings(kind, arguments, name):
    model = make_model(kind)
    figures = evaluation(k=3, **arguments).evaluate(model)
    assert figures == expected_figures(*embeddings(model), name=name)


def test_the_name_decides_between_two_terms_that_are_the_outputs():
    keras.utils.set_random_seed(1)
    image, text = keras.Input((5,)), keras.Input((3,))
    outputs = []
    for name in ("first", "second"):
        pair = [keras.layers.Dense(4, name=f"{name}_{i}")(x) for i, x in enumerate((image, text))]
        outputs += kj.layers.ContrastiveTerm("InfoNCE", name=name)(pair)
    model = keras.Model([image, text], outputs)
    with pytest.raises(ValueError, match=r"ContrastiveTerm, which are \['first', 'second'\]"):
        evaluation().evaluate(model)
    for name in ("first", "second"):
        figures = evaluation(k=3, embeddings=name).evaluate(model)
        pair = embeddings(model, (f"{name}_0", f"{name}_1"))
        assert figures == expected_figures(*pair, name=name)


def test_a_term_of_one_view_and_labels_is_no_pair():
    x, labels = keras.Input((5,), name="x"), keras.Input((), dtype="int32", name="labels")
    a = kj.layers.ContrastiveTerm("SupCon", name="term")((keras.layers.Dense(4)(x), labels))
    model = keras.Model([x, labels], a)
    figures = evaluation(np.arange(QUERIES), candidates=IMAGES, k=1).evaluate(model)
    assert figures["term_recall_at_1"] == 1.0
    with pytest.raises(ValueError, match=r"which are \[\]. Received: embeddings=None"):
        RetrievalEvaluation([IMAGES, np.zeros(QUERIES)]).set_model(model)


class Subclassed(keras.Model):
    """A model of one input whose outputs are known only after a call."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.tower = kind, keras.Sequential([keras.layers.Dense(3)], name="tower")

    def call(self, x):
        a = self.tower(x)
        return {"one": a, "two": {"a": a, "b": -a}, "stacked": ops.stack([a, -a], 1)}[self.kind]


@pytest.mark.parametrize(
    ("kind", "embeddings", "sign", "name"),
    [
        ("one", None, 1, "output_0"),
        ("two", "a", 1, "a"),
        ("two", ("a", "b"), -1, "a_b"),
        ("two", "tower", 1, "tower"),
        ("stacked", None, -1, "output_0"),
    ],
)
def test_finds_the_embeddings_of_a_subclassed_model(kind, embeddings, sign, name):
    model, gallery = Subclassed(kind), RANDOM.normal(size=(CANDIDATES, 5)).astype("float32")
    figures = evaluation(candidates=gallery, k=3, embeddings=embeddings).evaluate(model)
    a, b = embedded([model.tower] * 2, (IMAGES, gallery))
    assert figures == expected_figures(a, sign * b, name=name)


@once_compiled
def test_accepts_the_same_data_as_predict(untrained):
    tf = pytest.importorskip("tensorflow")
    data = [tf.data.Dataset.from_tensor_slices(x).batch(4) for x in (IMAGES, CAPTIONS)]
    figures = evaluation(RIGHT, *data).evaluate(untrained)
    assert figures == pytest.approx(evaluation(batch_size=3).evaluate(untrained))
    with pytest.raises(ValueError, match=r"`relevant`.*each of the 13 queries.*Received: 12"):
        evaluation(RIGHT[1:], *data).evaluate(untrained)
    with pytest.raises(ValueError, match=r"`relevant`.*below 31.*Received: 31"):
        evaluation([[31]] * QUERIES, *data).evaluate(untrained)


@pytest.mark.parametrize("names", ["pair", ("image_tower", "text_tower")])
def test_training_logs_and_writes_current_figures(tmp_path, names):
    model = make_model()
    losses = {"label": "mse", "pair": kj.losses.InfoNCE()}
    model.compile("adam", **kj.joint_loss(losses))
    callback = evaluation(k=3, embeddings=names, log_dir=tmp_path, projector=True, name="x")
    x = [IMAGES, CAPTIONS[:QUERIES]]
    y = {"label": np.ones((QUERIES, 2)), "pair": np.ones(QUERIES)}
    history = model.fit(x, y, epochs=2, verbose=0, callbacks=[callback]).history
    expected = reference.retrieval_figures(*embeddings(model), RIGHT, (3,), "x")
    found = {key: values[-1] for key, values in history.items() if key in expected}
    assert found == pytest.approx(expected, rel=1e-6)
    scalars = read_scalars(tmp_path / "validation")
    assert set(scalars) == {f"retrieval/x/{key.removeprefix('x_')}" for key in expected}
    (metadata,) = (tmp_path / "validation").rglob("*_metadata.tsv")
    points = [("a", i) for i in range(QUERIES)] + [("b", i) for i in range(CANDIDATES)]
    lines = metadata.read_text(encoding="utf-8").splitlines()
    assert lines[1:] == [f"{side}\t{i}" for side, i in points]


test_invalid_sets_are_refused = refuses(
    evaluation,
    (
        dict.fromkeys(("relevant", "queries", "candidates")),
        "`data`.*in its place `queries`.*data=None",
    ),
    ({"relevant": None}, "`relevant`.*since `data` is not given.*relevant=None"),
    ({"queries": None}, "`queries`.*since `data` is not given.*queries=None"),
    ({"data": IMAGES}, "`queries`.*None, since `data` is given.*type ndarray"),
    ({"labels": np.arange(QUERIES)}, "`labels`.*None, since `queries` is given"),
    ({"thumbnails": np.zeros((13, 4, 4, 3), "uint8"), "log_dir": "x"}, "`thumbnails`.*None"),
    ({"relevant": RIGHT[1:]}, "`relevant`.*each of the 13 queries.*Received: 12"),
    ({"relevant": RIGHT[:, 1:]}, "`relevant`.*each of the 31 candidates.*Received: 30"),
    ({"relevant": [31] * QUERIES}, "`relevant`.*below 31.*Received: 31"),
    ({"relevant": [-1] * QUERIES}, "`relevant`.*indices >= 0.*Received: -1"),
    ({"relevant": [[0], [3, 1, 3]]}, "each right candidate once.*candidate 3 twice.*query 1"),
    ({"relevant": [[]] * QUERIES}, "at least one right candidate.*Received: none"),
    ({"relevant": RIGHT & False}, "at least one right candidate.*Received: none"),
    ({"relevant": RIGHT.astype("float32")}, r"list of such indices.*\(13, 31\).*float32"),
    ({"relevant": "abc"}, r"list of such indices.*shape \(\)"),
    ({"relevant": [[0], [1.5, 2]]}, r"list of such indices.*\[1.5, 2\] for one"),
    ({"relevant": [[0], [[1], [2, 3]]]}, r"list of such indices.*\[\[1\], \[2, 3\]\] for one"),
    ({"relevant": [0, [1, 2]]}, "list of such indices.*0 for one of the queries"),
)


@pytest.mark.parametrize(
    ("kind", "embeddings", "message"),
    [
        ("two", None, r"which are \[\], or one.*\['a', 'b', 'c', 'image_.*embeddings=None"),
        ("stacked", "other", r"which are \['pair'\].*Received: embeddings='other'"),
        ("two", ("a", "d"), r"Received: embeddings=\['a', 'd'\]"),
    ],
)
def test_unknown_embeddings_are_refused(kind, embeddings, message):
    with pytest.raises(ValueError, match=message):
        evaluation(embeddings=embeddings).set_model(make_model(kind))


def test_embeddings_of_different_dim_are_refused():
    inner = make_model("two")
    outputs = {"a": inner.output["a"], "b": keras.layers.Dense(2)(inner.output["b"])}
    model = keras.Model(inner.inputs, outputs)
    with pytest.raises(ValueError, match=r"of the same dim.*\(13, 4\), \(31, 2\)"):
        evaluation(embeddings=("a", "b")).evaluate(model)
