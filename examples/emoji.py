"""Teaches one model to match emoji images with words, by four loss terms in plain `fit`.

Each of 1,906 emoji comes as a drawing by Google, a drawing by Twitter and some ten words. An image
tower and a text tower learn embeddings of them from four terms at once:

    image_text      the images of an emoji find its words, and the words their images (InfoNCE, or
                    another loss of the package: --loss)
    design          Google's and Twitter's drawing of an emoji find each other (InfoNCE)
    image_category  the images tell the category, one of nine (cross-entropy)
    text_category   the words tell the category (cross-entropy)

The first is added by a layer inside the model, the others are losses of its outputs. The two
categories help at the start; then their weights fade.

    python examples/emoji.py

Data: images of Noto Emoji (Google), Apache License 2.0; images of Twemoji, copyright Twitter, Inc
and other contributors, CC BY 4.0; names and keywords from emoji-datasource 16.0.0 and
emojilib 4.0.3, MIT License. See data/README.md.
"""

import argparse
import time
from pathlib import Path

import keras
import numpy as np
from keras import layers

import keras_jointloss as kj

DATA = Path(__file__).parent / "data" / "emoji_pairs.npz"
BATCH_SIZE = 128
LOSSES = (
    "BarlowTwins",
    "Circle",
    "Contrastive",
    "CosineEmbedding",
    "DecoupledContrastive",
    "InfoNCE",
    "MarginContrastive",
    "MultiSimilarity",
    "NPairs",
    "NTXent",
    "SigLIP",
    "SupCon",
    "Triplet",
    "TripletMargin",
    "VICReg",
)


def load():
    """Returns the arrays of the data by name."""
    with np.load(DATA) as file:
        return dict(file)


def split(data, seed):
    """Returns the indices of the emoji to train on and of the 20 % held out.

    Some emoji look exactly like another one. They all train, so that no held-out image has been
    seen before.
    """
    has_twin = np.zeros(len(data["text"]), dtype=bool)
    for design in ("google", "twitter"):
        _, group, size = np.unique(data[design], axis=0, return_inverse=True, return_counts=True)
        has_twin |= size[group.ravel()] > 1
    shuffled = np.random.default_rng(seed).permutation(len(has_twin))
    held_out = shuffled[~has_twin[shuffled]][: len(has_twin) // 5]
    return np.setdiff1d(shuffled, held_out), held_out


def bag_of_words(texts, vocabulary):
    """Returns `(texts, vocabulary)`: 1 where a text has a word of the vocabulary, else 0."""
    column = {word: i for i, word in enumerate(vocabulary)}
    bags = np.zeros((len(texts), len(vocabulary)), dtype="float32")
    for bag, text in zip(bags, texts, strict=True):
        bag[[column[word] for word in text.split() if word in column]] = 1
    return bags


def select(data, indices, vocabulary):
    """Returns the inputs and the targets of some of the emoji, as `fit` takes them."""
    x = {
        "google": data["google"][indices],
        "twitter": data["twitter"][indices],
        "text": bag_of_words(data["text"][indices], vocabulary),
        "emoji": indices.astype(
            "int32"
        ),  # For losses that want to know which views are of the same emoji.
    }
    y = {
        "design": np.zeros(len(indices)),  # Not used: the pair is its own target.
        "image_category": data["category"][indices],
        "text_category": data["category"][indices],
    }
    return x, y


def build_image_tower(dim=128):
    """Returns a model from images, `(batch, 32, 32, 3)`, to embeddings, `(batch, dim)`."""
    tower = keras.Sequential(name="image_tower")
    tower.add(keras.Input((32, 32, 3), dtype="uint8"))
    tower.add(layers.Rescaling(1 / 127.5, offset=-1))
    for filters in (32, 64, 128):  # 32 -> 16 -> 8 -> 4 pixels
        tower.add(layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False))
        tower.add(layers.BatchNormalization(momentum=0.9))
        tower.add(layers.ReLU())
    tower.add(layers.Flatten())
    tower.add(layers.Dropout(0.3))
    tower.add(layers.Dense(dim))
    return tower


def build_text_tower(words, dim=128):
    """Returns a model from bags of words, `(batch, words)`, to embeddings, `(batch, dim)`."""
    tower = keras.Sequential(name="text_tower")
    tower.add(keras.Input((words,)))
    tower.add(layers.Dropout(0.3))  # A text is still the same without a word or two.
    tower.add(layers.Dense(256, activation="relu"))
    tower.add(layers.Dropout(0.3))
    tower.add(layers.Dense(dim))
    return tower


def make_loss(name):
    """Returns the loss of images and texts with its default settings."""
    return kj.losses.InfoNCE(temperature=0.1) if name == "InfoNCE" else kj.losses.get(name)


def contrast(loss, image, text, emoji):
    """Adds the loss of images and texts to the model and returns their embeddings, as they are."""
    term = kj.layers.ContrastiveTerm(
        loss, learn_temperature=bool(loss.learned_parameters()), name="image_text"
    )
    if loss.label_kind == "class":  # Each emoji is a class of its own.
        return term((image, text, emoji))
    if loss.label_kind == "pair":  # What does not belong together: the text of the emoji before.
        apart = kj.layers.ContrastiveTerm(type(loss)(), name="image_other_text")
        image, text = term((image, text, keras.ops.ones_like(emoji)))
        image, _ = apart((image, keras.ops.roll(text, 1, axis=0), keras.ops.zeros_like(emoji)))
        return image, text
    if loss.min_views == 3:  # Image, text, and the text of the emoji before.
        return term((image, text, keras.ops.roll(text, 1, axis=0)))[:2]
    # A layer term hands the embeddings on as they are; its loss joins the loss of the model.
    return term((image, text))


def build(words, categories, steps, loss="InfoNCE"):
    """Returns the compiled model. `steps` is how many training steps there will be."""
    google = keras.Input((32, 32, 3), dtype="uint8", name="google")
    twitter = keras.Input((32, 32, 3), dtype="uint8", name="twitter")
    text = keras.Input((words,), name="text")
    emoji = keras.Input((), dtype="int32", name="emoji")

    image_tower = build_image_tower()  # One tower for both designs.
    designs = [image_tower(google), image_tower(twitter)]
    image_embedding = layers.Average()(designs)
    text_embedding = build_text_tower(words)(text)

    image_embedding, text_embedding = contrast(
        make_loss(loss), image_embedding, text_embedding, emoji
    )

    model = keras.Model(
        {"google": google, "twitter": twitter, "text": text, "emoji": emoji},
        {
            "design": keras.ops.stack(designs, axis=1),  # (batch, 2, dim)
            "image_category": layers.Dense(categories)(image_embedding),
            "text_category": layers.Dense(categories)(text_embedding),
        },
    )
    fade = kj.schedules.Linear(1.0, 0.2, steps=max(1, steps // 2))
    model.compile(
        "adam",
        **kj.joint_loss(
            {
                "design": kj.losses.InfoNCE(temperature=0.1),
                "image_category": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
                "text_category": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            },
            weights={"design": 0.3, "image_category": fade, "text_category": fade},
            metrics={"image_category": "accuracy", "text_category": "accuracy"},
        ),
    )
    return model


def train(model, training, validation, epochs, log_dir):
    """Trains as any Keras model, and returns the history.

    The callback moves the weights and logs the terms.
    """
    return model.fit(
        *training,
        batch_size=BATCH_SIZE,
        epochs=epochs,
        validation_data=validation,
        callbacks=[kj.callbacks.JointLossCallback(log_dir=log_dir)],
    )


def recall(queries, candidates):
    """Returns how often the right candidate is among the best 1, 5 and 10, by the cosine."""
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    candidates = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    similarity = queries @ candidates.T  # (queries, candidates), the right ones on the diagonal
    rank = np.sum(similarity >= np.diag(similarity)[:, None], axis=1)
    return [float(np.mean(rank <= k)) for k in (1, 5, 10)]


def retrieve(model, x):
    """Returns R@1, R@5 and R@10 by what is searched with and what is found."""
    towers = {name: model.get_layer(f"{name}_tower") for name in ("image", "text")}
    google, twitter = (
        towers["image"].predict(x[design], verbose=0) for design in ("google", "twitter")
    )
    text = towers["text"].predict(x["text"], verbose=0)
    images = {"google": google, "twitter": twitter, "both": (google + twitter) / 2}
    return {
        **{f"{name} -> text": recall(image, text) for name, image in images.items()},
        **{f"text -> {name}": recall(text, image) for name, image in images.items()},
        "google -> twitter": recall(google, twitter),
    }


def report_retrieval(recalls, count):
    """Prints the recalls beside those of guessing among `count` emoji."""
    print(f"\n{f'{count} held-out emoji':<24}{'R@1':>8}{'R@5':>8}{'R@10':>8}")
    for name, values in {**recalls, "chance": [k / count for k in (1, 5, 10)]}.items():
        print(f"{name:<24}" + "".join(f"{value:8.1%}" for value in values))


def report_loaded(model, validation, recalls, path):
    """Saves the model, loads it and prints its numbers beside those from before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save(path)
    loaded = keras.saving.load_model(path)

    options = {"batch_size": BATCH_SIZE, "verbose": 0, "return_dict": True}
    trained_scores = model.evaluate(*validation, **options)
    loaded_scores = loaded.evaluate(*validation, **options)
    loaded_recalls = retrieve(loaded, validation[0])

    print(f"\n{f'Saved to {path}':<40}{'trained':>10}{'loaded':>10}")
    for name, value in trained_scores.items():
        print(f"{name:<40}{value:10.4f}{loaded_scores[name]:10.4f}")
    for name, values in recalls.items():
        print(f"{f'{name}, R@10':<40}{values[-1]:10.1%}{loaded_recalls[name][-1]:10.1%}")


def main(arguments=None):
    now = time.strftime("%Y%m%d-%H%M%S")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--loss", choices=LOSSES, default="InfoNCE", help="of images and texts")
    parser.add_argument("--log-dir", default=f"logs/emoji/{now}", help="folder for TensorBoard")
    parser.add_argument("--save", default="logs/emoji/model.keras", help="file for the model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(arguments)
    keras.utils.set_random_seed(arguments.seed)

    data = load()
    train_indices, held_out_indices = split(data, arguments.seed)
    vocabulary = sorted({word for text in data["text"][train_indices] for word in text.split()})
    training = select(data, train_indices, vocabulary)
    validation = select(data, held_out_indices, vocabulary)

    steps = arguments.epochs * -(-len(train_indices) // BATCH_SIZE)
    model = build(len(vocabulary), len(data["categories"]), steps, arguments.loss)
    history = train(model, training, validation, arguments.epochs, arguments.log_dir)

    print(f"\n{kj.report(history)}")
    recalls = retrieve(model, validation[0])
    report_retrieval(recalls, len(held_out_indices))
    report_loaded(model, validation, recalls, arguments.save)
    print(f"\nTo see the curves: tensorboard --logdir {arguments.log_dir}")


if __name__ == "__main__":
    main()
