"""Five contrastive examples of keras.io in plain `fit`, on digits and emoji.

Each function below "The examples" is such an example without its towers, in at most ten lines. The
tests train it for a few seconds and require far more than chance of items that it has never seen.
"""

import inspect
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops
from sklearn.datasets import load_digits

import keras_jointloss as kj

pytestmark = [pytest.mark.slow, pytest.mark.backend("torch")]

EMOJI = Path(__file__).parents[1] / "examples" / "data" / "emoji_pairs.npz"
TRAIN, TEST = slice(0, 1400), slice(1400, None)

# Data and towers


def digits():
    """Returns shuffled images, `(1797, 8, 8, 1)` from 0 to 1, and their digits."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    return x[order].reshape(-1, 8, 8, 1).astype("float32") / 16, y[order]


def encoder(dim, *first):
    """Returns a small convolutional network from images of any size to embeddings."""
    return keras.Sequential(
        [
            *first,
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(dim),
        ]
    )


class RandomShift(layers.Layer):
    """Shifts each image by up to one pixel and adds noise; both views are then different."""

    def call(self, x):
        shifts = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        shifted = ops.stack([ops.roll(x, shift, axis=(1, 2)) for shift in shifts], axis=1)
        choice = ops.one_hot(keras.random.randint((ops.shape(x)[0],), 0, len(shifts)), len(shifts))
        x = ops.einsum("nkhwc,nk->nhwc", shifted, choice)
        return x + 0.1 * keras.random.normal(ops.shape(x))


def bags_of_words(texts, words):
    """Returns which of the words each text has: `(texts, words)`, 1 or 0."""
    return np.array([np.isin(words, text.split()) for text in texts], "float32")


def partners(labels, same):
    """Returns for each item another one of its class, or one of another class."""
    generator, everyone = np.random.default_rng(int(same)), np.arange(len(labels))
    return np.array(
        [
            generator.choice(everyone[((labels == label) == same) & (everyone != i)])
            for i, label in enumerate(labels)
        ]
    )


def linear_probe(encode, images, labels):
    """Returns a classifier on a frozen encoder."""
    encode.trainable = False
    model = keras.Sequential([encode, layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy")
    model.fit(images, labels, 128, epochs=100 if len(images) < 128 else 5, verbose=0)
    return model


def accuracy(model, images, labels):
    return np.mean(np.argmax(model.predict(images, 128, verbose=0), axis=1) == labels)


# The examples


def simclr(images, encode, augment, project):
    image = keras.Input(images.shape[1:])
    pair = ops.stack([project(encode(augment(image))) for _ in range(2)], axis=1)
    model = keras.Model(image, pair)
    model.compile(keras.optimizers.Adam(0.003), kj.losses.NTXent(temperature=0.1))
    model.fit(images, np.zeros(len(images)), 128, epochs=6, verbose=0)


def supervised_contrastive(images, labels, encode):
    encode.compile("adam", kj.losses.SupCon(temperature=0.1))
    encode.fit(images, labels, 128, epochs=5, verbose=0)


def dual_encoder(images, texts, validation_data, encode_image, encode_text):
    inputs = [keras.Input(x.shape[1:]) for x in (images, texts)]
    term = kj.layers.ContrastiveTerm("InfoNCE", learn_temperature=True, name="image_text")
    image, text = term((encode_image(inputs[0]), encode_text(inputs[1])))
    model = keras.Model(inputs, [image, text])
    model.compile("adam")
    search = kj.callbacks.RetrievalEvaluation(validation_data, k=10)
    return model.fit([images, texts], batch_size=128, epochs=4, verbose=0, callbacks=[search])


def siamese_contrastive(a, b, is_same, encode):
    inputs = [keras.Input(x.shape[1:]) for x in (a, b)]
    model = keras.Model(inputs, ops.stack([encode(x) for x in inputs], axis=1))
    right = kj.metrics.PairAccuracy(-0.5, "euclidean")  # A distance below half the margin.
    model.compile("adam", kj.losses.Contrastive(margin=1.0), metrics=[right])
    model.fit([a, b], is_same, 64, epochs=6, verbose=0)
    return model


def siamese_triplet(anchors, positives, negatives, encode):
    inputs = [keras.Input(anchors.shape[1:]) for _ in range(3)]
    model = keras.Model(inputs, ops.stack([encode(x) for x in inputs], axis=1))
    model.compile("adam", kj.losses.TripletMargin(margin=0.5))
    model.fit([anchors, positives, negatives], np.zeros(len(anchors)), 64, epochs=5, verbose=0)


EXAMPLES = (simclr, supervised_contrastive, dual_encoder, siamese_contrastive, siamese_triplet)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.__name__)
def test_example_has_at_most_ten_lines(example):
    assert len(inspect.getsource(example).splitlines()) <= 1 + 10


# What they learn


def test_simclr_learns_features_without_labels():
    images, labels = digits()
    encode, untrained = encoder(64), encoder(64)
    project = keras.Sequential([layers.Dense(64, activation="relu"), layers.Dense(32)])
    simclr(images[TRAIN], encode, RandomShift(), project)
    found, before = (
        accuracy(linear_probe(x, images[:50], labels[:50]), images[TEST], labels[TEST])
        for x in (encode, untrained)
    )
    assert found > 0.7  # Chance is 0.1.
    assert found > before + 0.05


def test_supervised_contrastive_learns_digits():
    images, labels = digits()
    encode = encoder(64)
    supervised_contrastive(images[TRAIN], labels[TRAIN], encode)
    model = linear_probe(encode, images[TRAIN], labels[TRAIN])
    assert accuracy(model, images[TEST], labels[TEST]) > 0.9  # Chance is 0.1.


def test_dual_encoder_finds_images_by_their_words():
    with np.load(EMOJI) as file:
        order = np.random.default_rng(0).permutation(len(file["text"]))
        images, texts = file["google"][order], file["text"][order]
    train, test = slice(0, 1600), slice(1600, 1800)
    words, count = np.unique(" ".join(texts[train]).split(), return_counts=True)
    bags = bags_of_words(texts, words[count > 2])
    history = dual_encoder(
        images[train],
        bags[train],
        [images[test], bags[test]],
        encoder(64, layers.Rescaling(1 / 255)),
        keras.Sequential([layers.Dense(128, activation="relu"), layers.Dense(64)]),
    ).history
    assert history["image_text_recall_at_10"][-1] > 0.2  # Chance is 10 of 200.


def test_siamese_network_tells_pairs_of_the_same_digit():
    images, labels = digits()
    is_same = np.arange(len(labels)) % 2
    others = np.where(is_same, partners(labels, same=True), partners(labels, same=False))
    a, b, encode = images, images[others], encoder(16)
    model = siamese_contrastive(a[TRAIN], b[TRAIN], is_same[TRAIN], encode)
    found = model.evaluate([a[TEST], b[TEST]], is_same[TEST], 128, verbose=0, return_dict=True)
    assert found["pair_accuracy"] > 0.8  # Chance is 0.5.


def test_siamese_network_puts_the_positive_nearer_than_the_negative():
    images, labels = digits()
    triplets = [images, images[partners(labels, same=True)], images[partners(labels, same=False)]]
    encode, untrained = encoder(16), encoder(16)
    siamese_triplet(*(x[TRAIN] for x in triplets), encode)

    def share_of_right(encode):
        a, p, n = (encode.predict(x[TEST], 128, verbose=0) for x in triplets)
        return np.mean(np.linalg.norm(a - p, axis=1) < np.linalg.norm(a - n, axis=1))

    assert share_of_right(encode) > 0.95  # Chance is 0.5.
    assert share_of_right(encode) > share_of_right(untrained) + 0.03
