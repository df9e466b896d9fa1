"""Retrieval evaluation on a whole data set: metrics, embeddings and output files."""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.callbacks import JointLossCallback, RetrievalEvaluation
from tests import reference_metrics as reference
from tests import small_models
from tests.backends import once_compiled
from tests.callbacks import Records
from tests.comparisons import approx_logs
from tests.refusals import refuses, refuses_calls
from tests.summaries import read_scalars

ITEMS = 22
X = np.random.default_rng(0).normal(size=(ITEMS, 5)).astype("float32")
LABELS = np.arange(ITEMS) % 7
Y = {"pair": np.zeros(ITEMS), "label": LABELS % 2}


def make_model(term=False):
    """Returns a model with a stacked output (or a term instead) and another output."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    a, b = keras.layers.Dense(3, name="a")(inputs), keras.layers.Dense(3, name="b")(inputs)
    losses = {"label": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
    outputs = {}
    if term:
        a, b = kj.layers.ContrastiveTerm("BarlowTwins", name="term")((a, b))
    else:
        outputs["pair"] = ops.stack([a, b], axis=1)
        losses["pair"] = kj.losses.BarlowTwins()
    outputs["label"] = keras.layers.Dense(2)(a + b)
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.02), **kj.joint_loss(losses))
    return model


@pytest.fixture(scope="module")
def untrained():
    return make_model()


def fit(model, *callbacks, epochs=2, **arguments):
    y = {name: Y[name] for name in model.output}
    options = {"batch_size": 8, "epochs": epochs, **arguments}
    return small_models.fit(model, list(callbacks), y, X, **options)


def embeddings(model, x=X):
    return [ops.convert_to_numpy(model.get_layer(name)(x)).astype("float64") for name in "ab"]


def expected(a, b, k, labels=None, name="pair"):
    has_labels = labels is not None
    labels = np.arange(len(a)) if labels is None else labels
    right = labels[:, None] == labels[None, :]
    return reference.retrieval_figures(a, b, right, k, name, has_labels)


@once_compiled
@pytest.mark.parametrize("tile_size", [1, 5, 22, 100])
@pytest.mark.parametrize("labels", [None, LABELS, LABELS[:, None], LABELS.astype(str)])
def test_equals_the_reference(tile_size, labels, untrained):
    callback = RetrievalEvaluation(X, k=(1, 4), labels=labels, tile_size=tile_size)
    flat = None if labels is None else labels.reshape(-1)
    figures = callback.evaluate(untrained)
    assert figures == pytest.approx(expected(*embeddings(untrained), (1, 4), flat), rel=1e-6)
    assert all(type(value) is float for value in figures.values())


@once_compiled
def test_item_whose_label_is_nan_is_right_for_its_pair_alone(untrained):
    unknown = np.where(LABELS == 0, np.nan, LABELS)
    figures = RetrievalEvaluation(X, labels=unknown).evaluate(untrained)
    labels = np.where(LABELS == 0, -1 - np.arange(len(X)), LABELS)
    assert figures == RetrievalEvaluation(X, labels=labels).evaluate(untrained)


@once_compiled
@pytest.mark.parametrize("tile_size", [7, 1000])
def test_ties_count_against_the_model(tile_size):
    model = make_model()
    model.get_layer("b").set_weights([np.zeros((5, 3)), np.array([0.3, -0.7, 0.2])])
    figures = RetrievalEvaluation(X, k=21, tile_size=tile_size).evaluate(model)
    assert figures["pair_a_to_b_recall_at_21"] == 0.0
    assert figures["pair_a_to_b_median_rank"] == ITEMS


@once_compiled
@pytest.mark.parametrize("labels", [None, LABELS])
def test_every_figure_of_embeddings_that_are_not_finite_is_nan(labels):
    model = make_model()
    expected = RetrievalEvaluation(X, labels=labels).evaluate(model)
    kernel = np.zeros((5, 3))
    kernel[2, 1] = np.inf
    model.get_layer("b").set_weights([kernel, np.zeros(3)])
    figures = RetrievalEvaluation(X, labels=labels).evaluate(model)
    assert figures.keys() == expected.keys()
    assert all(np.isnan(value) for value in figures.values())


def _dataset(batch_size=5):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(X).batch(batch_size)


@once_compiled
def test_accepts_the_same_data_as_predict(untrained):
    figures = RetrievalEvaluation(X).evaluate(untrained)
    assert RetrievalEvaluation(_dataset()).evaluate(untrained) == pytest.approx(figures)
    assert RetrievalEvaluation(X, batch_size=3).evaluate(untrained) == pytest.approx(figures)


class Subclassed(keras.Model):
    """A model whose outputs are known only after a call."""

    def __init__(self, functional, stacked):
        super().__init__()
        self.functional, self.stacked = functional, stacked

    def call(self, x):
        a, b = (self.functional.get_layer(name)(x) for name in "ab")
        pair = {"pair": ops.stack([a, b], axis=1)} if self.stacked else {"a": a, "b": b}
        return {**pair, "label": a[:, :2]}


def of_two_outputs():
    inner = make_model()
    return keras.Model(inner.input, {name: inner.get_layer(name).output for name in "ab"})


@pytest.mark.parametrize(
    ("make", "arguments", "name"),
    [
        (of_two_outputs, {"embeddings": ("a", "b")}, "a_b"),
        (make_model, {}, "pair"),
        (make_model, {"embeddings": "pair"}, "pair"),
        (make_model, {"embeddings": "pair", "name": "test_set"}, "test_set"),
        (lambda: make_model(term=True), {}, "term"),
        (lambda: make_model(term=True), {"embeddings": "term"}, "term"),
        (lambda: Subclassed(make_model(), True), {}, "pair"),
        (lambda: Subclassed(make_model(), False), {"embeddings": ("a", "b")}, "a_b"),
    ],
)
def test_finds_the_embeddings(make, arguments, name):
    model = make()
    figures = RetrievalEvaluation(X, k=3, **arguments).evaluate(model)
    a, b = embeddings(getattr(model, "functional", model))
    assert figures == pytest.approx(expected(a, b, (3,), name=name), rel=1e-6)


def _two_terms():
    inputs = keras.Input((5,))
    a = b = inputs
    for name in ("first", "second"):
        a, b = kj.layers.ContrastiveTerm("BarlowTwins", name=name)((a, b))
    return keras.Model(inputs, {"x": a + b, "y": keras.layers.Dense(2)(a)})


@pytest.mark.parametrize(
    ("make", "embeddings", "message"),
    [
        (_two_terms, None, r"name of one.*\['first', 'second'\].*Received: embeddings=None"),
        (_two_terms, "x", r"\['first', 'second'\].*Received: embeddings='x'"),
        (_two_terms, ["x", "third"], r"\['x', 'y'\].*Received: embeddings=\['x', 'third'\]"),
        (_two_terms, ["x", "y"], r"two outputs of the same dim.*\(None, 5\), \(None, 2\)"),
        (make_model, "label", r"\['pair'\].*Received: embeddings='label'"),
    ],
)
def test_unknown_embeddings_are_refused(make, embeddings, message):
    callback = RetrievalEvaluation(X, embeddings=embeddings)
    with pytest.raises(ValueError, match=message):
        callback.set_model(make())


test_what_does_not_fit_the_prediction_is_refused = refuses_calls(
    (
        lambda: RetrievalEvaluation(X).evaluate(Subclassed(make_model(), False)),
        r"are \[\]. Received: embeddings=None",
    ),
    (
        lambda: RetrievalEvaluation(X, labels=LABELS[:-1]).evaluate(make_model()),
        "`labels`.*each of the 22 items.*Received: 21 labels",
    ),
)


test_invalid_arguments_are_refused = refuses(
    functools.partial(RetrievalEvaluation, X),
    ({"k": 0}, "`k`.*Received: k=0"),
    ({"k": (1, 2.5)}, "`k`.*Received: k=2.5"),
    ({"every": 0}, "`every`.*Received: every=0"),
    ({"tile_size": True}, "`tile_size`.*Received: tile_size=True"),
    ({"embeddings": ("a",)}, "`embeddings`.*a name or two names"),
    ({"embeddings": 3}, "`embeddings`.*Received: embeddings=3"),
    ({"on_log": "wandb"}, "`on_log`.*a function"),
    ({"projector": True}, "`log_dir`.*`projector` is given.*log_dir=None"),
    ({"thumbnails": np.zeros((ITEMS, 4, 4, 3), "uint8")}, "`log_dir`.*`thumbnails` is given"),
    ({"log_dir": "x", "thumbnails": np.zeros((2, 4, 4, 3))}, "dtype uint8.*float64"),
    ({"log_dir": "x", "thumbnails": np.zeros((2, 4, 4), "uint8")}, r"shape=\(2, 4, 4\)"),
    ({"log_dir": "x", "thumbnails": np.zeros((2, 1, 5000, 3), "uint8")}, "8192 x 8192"),
)


def test_measures_current_weights_without_affecting_training():
    class Expects(keras.callbacks.Callback):
        seen = 0

        def on_epoch_end(self, epoch, logs=None):
            self.seen += 1
            figures = expected(*embeddings(self.model), (1, 5, 10), name="term")
            assert {key: logs[key] for key in figures} == pytest.approx(figures, rel=1e-6)

    expects = Expects()
    plain = fit(make_model(term=True), JointLossCallback())
    history = fit(make_model(term=True), RetrievalEvaluation(X), expects, JointLossCallback())
    assert expects.seen == len(history["term_recall_at_1"]) == 2
    assert {key: history[key] for key in plain} == plain


def test_prediction_through_a_term_keeps_its_readings():
    inputs = keras.Input((5,))
    a, b = keras.layers.Dense(3)(inputs), keras.layers.Dense(3)(inputs)
    a, b = kj.layers.ContrastiveTerm("BarlowTwins", name="term")((a, b))
    model = keras.Model(inputs, {"pair": ops.stack([a, b], axis=1)})
    model.compile("sgd", **kj.joint_loss({"pair": kj.losses.BarlowTwins()}))
    model.evaluate(X, {"pair": np.zeros(ITEMS)}, verbose=0)
    before = model.get_layer("term").weight.read()
    RetrievalEvaluation(X, embeddings="pair").evaluate(model)
    assert model.get_layer("term").weight.read() == before


def test_measures_the_model_of_fit_again_on_request():
    model, callback = make_model(), RetrievalEvaluation(X)
    history = fit(model, callback, epochs=1)
    figures = callback.evaluate()
    assert figures == {name: pytest.approx(history[name][-1]) for name in figures}
    assert figures == callback.evaluate(model)


@once_compiled
def test_evaluates_every_second_epoch():
    history = fit(make_model(), RetrievalEvaluation(X, every=2), epochs=5)
    assert len(history["pair_recall_at_5"]) == 2


@once_compiled
def test_early_stopping_and_checkpoints_can_monitor_recall(tmp_path):
    key = "pair_recall_at_1"
    stops = keras.callbacks.EarlyStopping(key, mode="max", patience=0, min_delta=2.0)
    path = tmp_path / "best.keras"
    saves = keras.callbacks.ModelCheckpoint(path, key, mode="max", save_best_only=True)
    history = fit(make_model(), RetrievalEvaluation(X), stops, saves, epochs=5)
    assert len(history["loss"]) == 2  # Keras does not stop earlier.
    loaded = keras.saving.load_model(path)
    assert RetrievalEvaluation(X).evaluate(loaded)[key] == max(history[key])


def test_writes_scalars_and_passes_them_on(tmp_path):
    records = Records()
    history = fit(make_model(), RetrievalEvaluation(X, k=2, log_dir=tmp_path, on_log=records))
    scalars = read_scalars(tmp_path / "validation")
    assert len(scalars) == 9
    for tag, values in scalars.items():
        key = tag.removeprefix("retrieval/").replace("/", "_")
        assert values == pytest.approx(dict(zip((3, 6), history[key], strict=True)))
    assert records.tags.keys() == {"validation"}
    assert records.tags["validation"] == approx_logs(scalars, 1e-6)


def _plugin(log_dir):
    """Returns the configuration of the only run in TensorBoard's projector, and the plugin."""
    from tensorboard.plugins import base_plugin
    from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin

    plugin = ProjectorPlugin(base_plugin.TBContext(logdir=str(log_dir)))
    plugin._update_configs()
    (config,) = plugin._configs.values()
    return config, plugin


def _png(path):
    return pytest.importorskip("tensorflow").io.decode_png(path.read_bytes()).numpy()


@once_compiled
def test_writes_projector_files(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (ITEMS, 4, 6, 3)).astype("uint8")
    labels = np.array([f"item\t{i} ü" for i in LABELS])
    model = make_model()
    options = {"log_dir": tmp_path, "projector": True, "thumbnails": pictures}
    for name in ("first", "second"):
        callback = RetrievalEvaluation(X, name=name, labels=labels, **options)
        callback.set_model(model)
        callback.on_train_begin()
        callback.on_epoch_end(0, {})
        callback.on_train_end()
    config, plugin = _plugin(tmp_path / "validation")
    assert [embedding.tensor_name for embedding in config.embeddings] == ["first", "second"]
    second = config.embeddings[1]
    points = plugin.tensor_cache.get((".", "second"))
    np.testing.assert_allclose(points, np.concatenate(embeddings(model)), rtol=1e-5)
    assert list(second.tensor_shape) == [2 * ITEMS, 3]

    folder = tmp_path / "validation"
    lines = (folder / second.metadata_path).read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["view\titem\tlabel", "a\t0\titem 0 ü"]
    assert lines[2 * ITEMS] == f"b\t{ITEMS - 1}\titem {LABELS[-1]} ü"
    assert list(second.sprite.single_image_dim) == [6, 4]
    sprite = _png(folder / second.sprite.image_path)
    assert sprite.shape == (7 * 4, 7 * 6, 3)  # 44 points in a square of 49
    for point in range(2 * ITEMS):
        row, column = 4 * (point // 7), 6 * (point % 7)
        tile = sprite[row : row + 4, column : column + 6]
        np.testing.assert_array_equal(tile, pictures[point % ITEMS])


@once_compiled
def test_projector_needs_neither_labels_nor_thumbnails(tmp_path):
    fit(make_model(), RetrievalEvaluation(X, log_dir=tmp_path, projector=True), epochs=1)
    config, _ = _plugin(tmp_path / "validation")
    assert not config.embeddings[0].HasField("sprite")
    metadata = tmp_path / "validation" / config.embeddings[0].metadata_path
    assert metadata.read_text(encoding="utf-8").splitlines()[:2] == ["view\titem", "a\t0"]


def test_metadata_of_wrong_length_is_refused(tmp_path):
    write, tmp_path = kj.tensorboard.write_projector, tmp_path / "new"
    with pytest.raises(ValueError, match=r"metadata 'label' of each of the 3 points.*Received: 2"):
        write(tmp_path, "x", np.eye(3), {"label": [1, 2]})
    with pytest.raises(ValueError, match=r"thumbnails of each of the 3 points.*Received: 2"):
        write(tmp_path, "x", np.eye(3), {}, np.zeros((2, 4, 4, 3), "uint8"))
    assert not tmp_path.exists()
    write(tmp_path, "x", np.eye(3), {"label": [1, 2, 3]})
    path = tmp_path / _plugin(tmp_path)[0].embeddings[0].metadata_path
    assert path.read_text().splitlines() == ["1", "2", "3"]
