"""Classification of embeddings by their nearest neighbours."""

import keras
import numpy as np
import pytest

from keras_jointloss.callbacks import KNNEvaluation
from tests.backends import once_compiled
from tests.callbacks import Records
from tests.comparisons import approx_logs
from tests.summaries import read_scalars

GENERATOR = np.random.default_rng(0)
BANK, DATA = (GENERATOR.normal(size=(n, 5)).astype("float32") for n in (40, 23))
BANK_LABELS, LABELS = GENERATOR.integers(0, 6, 40), GENERATOR.integers(0, 8, 23)


def make_model():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,), name="x")
    tower = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3)], name="tower")
    other = keras.layers.Dense(2, name="label")(tower(inputs))
    model = keras.Model(inputs, {"embedding": tower(inputs), "label": other})
    model.compile(keras.optimizers.SGD(0.1), loss={"embedding": "mse", "label": "mse"})
    return model


@pytest.fixture(scope="module")
def untrained():
    return make_model()


def embed(model, x, name="embedding"):
    return model.predict(x, verbose=0)[name].astype("float64")


def naive(bank, data, k, temperature, top, bank_labels=BANK_LABELS, labels=LABELS):
    """Returns the share of items whose class is among the `top`."""
    bank, data = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (bank, data))
    hits = []
    for query, label in zip(data, labels, strict=True):
        scores = {}
        for i in sorted(range(len(bank)), key=lambda i: -(query @ bank[i]))[:k]:
            vote = np.exp(query @ bank[i] / temperature)
            scores[bank_labels[i]] = scores.get(bank_labels[i], 0) + vote
        hits.append(label in sorted(scores, key=lambda c: -scores[c])[:top])
    return np.mean(hits)


@once_compiled
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (7, 1e6), (200, 0.5)])
@pytest.mark.parametrize("tile_size", [1, 10, 100])
def test_equals_a_naive_loop(k, temperature, tile_size, untrained):
    callback = KNNEvaluation(
        BANK,
        BANK_LABELS.astype(str),
        DATA,
        LABELS[:, None].astype(str),
        k=k,
        temperature=temperature,
        top=(1, 3),
        embeddings="embedding",
        tile_size=tile_size,
        batch_size=7,
    )
    bank, data = embed(untrained, BANK), embed(untrained, DATA)
    assert callback.evaluate(untrained) == {
        "val_knn_accuracy": pytest.approx(naive(bank, data, k, temperature, 1)),
        "val_knn_top_3_accuracy": pytest.approx(naive(bank, data, k, temperature, 3)),
    }


def test_defaults_are_those_of_the_paper(untrained):
    callback = KNNEvaluation(BANK, BANK_LABELS, DATA, LABELS, embeddings="embedding")
    bank, data = embed(untrained, BANK), embed(untrained, DATA)
    expected = naive(bank, data, 200, 0.07, 1)
    assert callback.evaluate(untrained) == {"val_knn_accuracy": pytest.approx(expected)}


class Subclassed(keras.Model):
    """A model whose outputs are known only after a call."""

    def __init__(self, functional):
        super().__init__()
        self.functional = functional

    def call(self, x):
        return self.functional(x)


@once_compiled
@pytest.mark.parametrize(
    ("make", "embeddings"),
    [
        (make_model, "tower"),
        (lambda: Subclassed(make_model()), "embedding"),
        (lambda: make_model().get_layer("tower"), None),
    ],
)
def test_finds_the_embeddings(make, embeddings):
    model = make()
    callback = KNNEvaluation(BANK, BANK_LABELS, DATA, LABELS, k=5, embeddings=embeddings)
    inner = make_model()
    expected = naive(embed(inner, BANK), embed(inner, DATA), 5, 0.07, 1)
    assert callback.evaluate(model) == {"val_knn_accuracy": pytest.approx(expected)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"`embeddings`.*are \['embedding', 'label', 'tower'\]. Received: embeddings=None"),
        ({"embeddings": "x"}, "`embeddings`.*Received: embeddings='x'"),
        ({"embeddings": ["label"]}, "`embeddings`.*None or a name"),
        ({"embeddings": "label", "labels": LABELS[1:]}, "`labels`.*each of the 23.*22 labels"),
        (
            {"embeddings": "label", "bank_labels": BANK_LABELS[1:]},
            "`bank_labels`.*each of the 40.*39 labels",
        ),
        ({"k": 0}, "`k`"),
        ({"temperature": 0}, "`temperature`"),
        ({"top": (1, 0)}, "`top`"),
        ({"every": 0}, "`every`"),
        ({"tile_size": 0}, "`tile_size`"),
        ({"on_log": 1}, "`on_log`"),
    ],
)
@once_compiled
def test_invalid_arguments_are_refused(arguments, message, untrained):
    given = {"bank": BANK, "bank_labels": BANK_LABELS, "data": DATA, "labels": LABELS}
    with pytest.raises(ValueError, match=message):
        KNNEvaluation(**{**given, **arguments}).evaluate(untrained)


@once_compiled
def test_embedding_that_is_not_finite_gives_nan(untrained):
    bank = np.where(np.arange(40)[:, None] == 3, np.inf, BANK)
    callback = KNNEvaluation(bank, BANK_LABELS, DATA, LABELS, embeddings="embedding", k=3)
    assert np.isnan(callback.evaluate(untrained)["val_knn_accuracy"])


@once_compiled
def test_equal_embeddings_of_different_classes_do_not_count(untrained):
    bank, labels = np.concatenate([BANK, BANK]), np.repeat([0, 1], 40)
    options = {"k": 2, "embeddings": "embedding", "top": (1, 2)}
    callback = KNNEvaluation(bank, labels, BANK, np.zeros(40), **options)
    found = callback.evaluate(untrained)
    assert found == {"val_knn_accuracy": 0.0, "val_knn_top_2_accuracy": 1.0}


def test_measures_each_epoch_of_fit_and_logs(tmp_path):
    class Expects(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            bank, data = embed(self.model, BANK), embed(self.model, DATA)
            assert logs["val_knn_accuracy"] == pytest.approx(naive(bank, data, 3, 0.07, 1))

    model, records = make_model(), Records()
    arguments = {"k": 3, "embeddings": "tower", "log_dir": tmp_path, "on_log": records}
    callback = KNNEvaluation(BANK, BANK_LABELS, DATA, LABELS, **arguments)
    y = {"embedding": np.eye(6)[BANK_LABELS][:, :3], "label": np.zeros((40, 2))}
    options = {"epochs": 3, "batch_size": 20, "verbose": 0}
    history = model.fit(BANK, y, callbacks=[callback, Expects()], **options).history
    values = history["val_knn_accuracy"]
    assert len(values) == 3
    scalars = read_scalars(tmp_path / "validation")
    assert scalars == {
        "knn/val_knn/accuracy": pytest.approx(dict(zip((2, 4, 6), values, strict=True)))
    }
    assert records.tags["validation"] == approx_logs(scalars, 1e-6)
    assert callback.evaluate() == {"val_knn_accuracy": pytest.approx(values[-1])}
