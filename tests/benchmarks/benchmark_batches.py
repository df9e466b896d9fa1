"""Compares random batches with those of `ClassBatches` for losses of classes.

The words of 1,500 emoji learn their subcategory, one of 98, in batches of 32. The table shows how
many of the other 406 emoji have the subcategory of their nearest neighbour among the 1,500.

Run: python -m tests.benchmarks.benchmark_batches SupCon Triplet Circle ArcFace
"""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np

import keras_jointloss as kj

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from emoji import bag_of_words, build_text_tower, load

KINDS = ("untrained", "random", "classes")


def build(loss, words, classes):
    """Returns a compiled model with the inputs `text` and `kind`, and its tower."""
    text, kind = keras.Input((words,), name="text"), keras.Input((), dtype="int32", name="kind")
    tower = build_text_tower(words, dim=64)
    if loss == "ArcFace":
        term = kj.layers.ProxyTerm(loss, classes=classes)
    else:
        options = {"temperature": 0.1} if loss == "SupCon" else {}
        term = kj.layers.ContrastiveTerm(getattr(kj.losses, loss)(**options))
    model = keras.Model({"text": text, "kind": kind}, term((tower(text), kind)))
    model.compile(keras.optimizers.Adam(1e-3))
    return model, tower


def accuracy(loss, kind, seed, data, epochs):
    """Returns the accuracy of the nearest neighbour, trained on batches of this kind."""
    bank, rest = (
        {key: x[part] for key, x in data.items()} for part in (slice(1500), slice(1500, None))
    )
    keras.utils.set_random_seed(seed)
    model, tower = build(loss, bank["text"].shape[1], 1 + int(data["kind"].max()))
    steps = epochs * (1500 // 32)
    if kind == "classes":
        batches = kj.data.ClassBatches(bank, None, 8, per_class=4, labels="kind", seed=seed)
        model.fit(batches, epochs=round(steps / len(batches)), shuffle=False, verbose=0)
    elif kind == "random":
        model.fit(bank, batch_size=32, epochs=epochs, verbose=0)
    neighbours = kj.callbacks.KNNEvaluation(
        bank["text"], bank["kind"], rest["text"], rest["kind"], k=1
    )
    return neighbours.evaluate(tower)["val_knn_accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("losses", nargs="*", default=["SupCon", "Triplet", "Circle", "ArcFace"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    emoji = load()
    order = np.random.default_rng(0).permutation(len(emoji["text"]))
    text = emoji["text"][order]
    vocabulary = sorted({word for x in text[:1500] for word in x.split()})
    data = {"text": bag_of_words(text, vocabulary), "kind": emoji["subcategory"][order]}
    for loss in arguments.losses:
        found = [
            [accuracy(loss, kind, seed, data, arguments.epochs) for kind in KINDS]
            for seed in range(arguments.seeds)
        ]
        pairs = zip(KINDS, np.mean(found, axis=0), np.std(found, axis=0), strict=True)
        print(
            f"{loss:<8}",
            *(f"{kind} {mean:.3f} ± {std:.3f}" for kind, mean, std in pairs),
            flush=True,
        )


if __name__ == "__main__":
    main()
