"""Contrasts small batches with a memory of earlier ones, beside a momentum tower (as in MoCo).

Google's and Twitter's drawings of an emoji find each other, in batches of 32. The Google drawing
goes through a tower that is trained; the Twitter drawing through a copy whose weights follow those
of the tower slowly, so that embeddings of earlier steps, which `ContrastiveTerm` remembers, are
still good to be told apart from.

    python examples/momentum.py

Method: He et al., 2020, Momentum Contrast for Unsupervised Visual Representation Learning.
"""

import argparse

import keras
import numpy as np
from emoji import build_image_tower, load, recall, split

import keras_jointloss as kj


def build(memory_size, momentum=0.99):
    """Returns the compiled model and its tower."""
    google = keras.Input((32, 32, 3), dtype="uint8", name="google")
    twitter = keras.Input((32, 32, 3), dtype="uint8", name="twitter")
    tower = build_image_tower()
    term = kj.layers.ContrastiveTerm(
        # Only the tower that is trained looks for the other view: the other one gets no gradient.
        kj.losses.InfoNCE(temperature=0.1, symmetric=False),
        memory_size=memory_size,
        name="design",
    )
    embeddings = term((tower(google), kj.layers.MomentumTower(tower, momentum)(twitter)))
    model = keras.Model({"google": google, "twitter": twitter}, embeddings)
    model.compile("adam")
    return model, tower


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--memory-sizes", type=int, nargs="+", default=[0, 512])
    arguments = parser.parse_args(argv)
    data = load()
    train, held_out = split(data, seed=0)
    for memory_size in arguments.memory_sizes:
        keras.utils.set_random_seed(0)
        model, tower = build(memory_size)
        x = {name: data[name][train] for name in ("google", "twitter")}
        model.fit(x, batch_size=arguments.batch_size, epochs=arguments.epochs, verbose=2)
        embeddings = [
            np.asarray(tower.predict(data[name][held_out], verbose=0))
            for name in ("google", "twitter")
        ]
        values = ", ".join(
            f"R@{k} {value:.1%}" for k, value in zip((1, 5, 10), recall(*embeddings), strict=True)
        )
        print(f"memory of {memory_size} emoji: google -> twitter {values}")


if __name__ == "__main__":
    main()
