"""A weighted sum of a contrastive loss and a classification loss, in plain `fit`.

Each example is an emoji's drawing with a text, its own or, in half of the pairs, another emoji's.
The model learns which text fits the drawing and of what category the drawing is. It replaces a
loop of this kind:

    for (image, words), (is_match, category) in dataset:
        with tf.GradientTape() as tape:
            a, b, logits = model([image, words], training=True)
            similarity = tf.reduce_sum(a * b, axis=1)
            match_loss = is_match * relu(1 - similarity) + (1 - is_match) * relu(similarity)
            category_loss = sparse_categorical_crossentropy(category, logits, from_logits=True)
            loss = tf.reduce_mean(match_loss) + 0.5 * tf.reduce_mean(category_loss)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))

Run: python examples/weighted_sum.py
"""

import argparse
import collections

import keras
import numpy as np
from emoji import bag_of_words, load, split

import keras_jointloss as kj

WEIGHTS = {"match": 1.0, "category": 0.5}


def load_emoji():
    """Returns arrays by name for the emoji to train on, and the same for those held out."""
    data = load()
    categories = data["categories"][data["category"]]
    subcategories = data["subcategories"][data["subcategory"]]
    groups = [" ".join(pair) for pair in zip(categories, subcategories, strict=True)]
    groups = np.char.replace(np.char.lower(groups), "-", " ")
    train, held_out = split(data, seed=0)
    counts = collections.Counter(word for text in data["text"][train] for word in text.split())
    vocabulary = [word for word, count in counts.items() if count >= 3]
    generator = np.random.default_rng(0)
    return tuple(
        {
            "image": data["google"][indices].astype("float32") / 255,
            "words": bag_of_words(data["text"][indices], vocabulary),
            "category": data["category"][indices],
            "group": groups[indices],
        }
        for indices in (generator.permutation(train), generator.permutation(held_out))
    )


def build_towers(image_shape, vocabulary_size, dim, filters=(16, 32, 64)):
    """Returns the inputs and the embeddings of an image tower and a text tower."""
    image = keras.Input(image_shape, name="image")
    words = keras.Input((vocabulary_size,), name="words")
    x = image
    for count in filters:
        x = keras.layers.Conv2D(count, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Flatten()(x)
    y = keras.layers.Dense(4 * filters[-1], activation="relu")(words)
    return [image, words], keras.layers.Dense(dim)(x), keras.layers.Dense(dim)(y)


def build_model(image_shape, vocabulary_size, weights=WEIGHTS, optimizer="adam", **towers):
    """Returns the compiled model."""
    inputs, a, b = build_towers(image_shape, vocabulary_size, dim=32, **towers)
    outputs = {
        "match": keras.ops.stack([a, b], axis=1),  # (batch, 2, dim)
        "category": keras.layers.Dense(9)(a),
    }
    model = keras.Model(inputs, outputs)
    model.compile(
        optimizer,
        **kj.joint_loss(
            {
                "match": kj.losses.MarginContrastive(),
                "category": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            },
            weights=weights,
            metrics={"category": "accuracy"},
        ),
    )
    return model


def make_pairs(emoji):
    """Returns each drawing twice, first with its own text, then with the next emoji's."""
    x = {
        "image": np.concatenate([emoji["image"]] * 2),
        "words": np.concatenate([emoji["words"], np.roll(emoji["words"], 1, axis=0)]),
    }
    y = {
        "match": np.repeat([1.0, 0.0], len(emoji["image"])),
        "category": np.concatenate([emoji["category"]] * 2),
    }
    return x, y


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args(argv)
    keras.utils.set_random_seed(0)
    train, test = load_emoji()
    x, y = make_pairs(train)
    model = build_model(x["image"].shape[1:], x["words"].shape[1])
    model.fit(x, y, batch_size=64, epochs=arguments.epochs, verbose=2)

    x, y = make_pairs(test)
    outputs = model.predict(x, verbose=0)
    similarity = np.prod(outputs["match"], axis=1).sum(axis=-1)
    matched, mismatched = np.split(similarity, 2)
    result = {
        "separation": float(np.mean(matched[:, None] > mismatched)),
        "category_accuracy": float(np.mean(outputs["category"].argmax(-1) == y["category"])),
    }
    print(
        f"Held-out emoji: mean dot product {matched.mean():.2f} with the own text, "
        f"{mismatched.mean():.2f} with another.\n"
        f"Matched pairs are above mismatched ones in {result['separation']:.1%} of comparisons.\n"
        f"Category accuracy {result['category_accuracy']:.1%}."
    )
    return result


if __name__ == "__main__":
    main()
