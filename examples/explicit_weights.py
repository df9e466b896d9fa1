"""Two mean squared errors with explicit weights, in plain `fit`.

The drawing of an emoji and the words about it are each embedded, and both embeddings learn to meet
the same fixed target: the principal components of the words that name the emoji's category and
subcategory. It replaces a loop of this kind:

    for (image, words), target in dataset:
        with tf.GradientTape() as tape:
            a, b = model([image, words], training=True)
            image_loss = tf.reduce_mean(tf.square(a - target))
            text_loss = tf.reduce_mean(tf.square(b - target))
            loss = 0.7 * image_loss + 0.3 * text_loss
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))

Run: python examples/explicit_weights.py
"""

import argparse

import keras
import numpy as np
from emoji import bag_of_words
from weighted_sum import build_towers, load_emoji

import keras_jointloss as kj

WEIGHTS = {"image": 0.7, "text": 0.3}


def load_emoji_with_targets(dim=16):
    """Returns the emoji to train on, and those held out, each with the embedding of its group."""
    train, test = load_emoji()
    vocabulary = sorted({word for group in train["group"] for word in group.split()})
    bags = bag_of_words(train["group"], vocabulary)
    center = bags.mean(axis=0)
    _, _, directions = np.linalg.svd(bags - center, full_matrices=False)
    for emoji in (train, test):
        bags = bag_of_words(emoji["group"], vocabulary)
        emoji["target"] = (bags - center) @ directions[:dim].T  # (emoji, dim)
    return train, test


def build_model(image_shape, vocabulary_size, dim, weights=WEIGHTS, optimizer="adam", **towers):
    """Returns the compiled model."""
    inputs, a, b = build_towers(image_shape, vocabulary_size, dim, **towers)
    model = keras.Model(inputs, {"image": a, "text": b})
    model.compile(
        optimizer,
        **kj.joint_loss(
            {"image": "mean_squared_error", "text": "mean_squared_error"}, weights=weights
        ),
    )
    return model


def report(embeddings, target):
    """Prints and returns the share of the target's variance that each embedding explains."""
    variance = np.mean(np.square(target - target.mean(axis=0)))
    shares = {
        name: 1 - float(np.mean(np.square(embedding - target)) / variance)
        for name, embedding in embeddings.items()
    }
    print(
        f"Held-out emoji: the drawing explains {shares['image']:.1%} of the target's variance, "
        f"the words {shares['text']:.1%}."
    )
    return shares


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args(argv)
    keras.utils.set_random_seed(0)
    train, test = load_emoji_with_targets()
    model = build_model(train["image"].shape[1:], train["words"].shape[1], train["target"].shape[1])
    x = {name: train[name] for name in ("image", "words")}
    y = {name: train["target"] for name in WEIGHTS}
    model.fit(x, y, batch_size=32, epochs=arguments.epochs, verbose=2)

    embeddings = model.predict({name: test[name] for name in x}, verbose=0)
    return report(embeddings, test["target"])


if __name__ == "__main__":
    main()
