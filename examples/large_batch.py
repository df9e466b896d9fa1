"""Trains on the whole training set as one batch, in the memory of one small chunk.

Each emoji is contrasted with all 1,524 others in every step. A plain image tower would store its
activations for the whole batch; `ChunkedTower` stores those of one chunk and computes each chunk
once more in the backward pass. Both give the same gradients, so the losses agree. Each way trains
in a process of its own, for which the growth of the largest memory use is printed. On two CPU cores
it is 751 MiB and 157 MiB on PyTorch, 677 MiB and 431 MiB on TensorFlow, which compiles the step.

    python examples/large_batch.py

Method: Gao et al., 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup.
"""

import argparse
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
from emoji import bag_of_words, load, recall, split
from keras import layers

import keras_jointloss as kj

WAYS = ("plain", "in chunks")


def build_image_tower(dim=64):
    """Returns a model that encodes each image independently of the others in the batch."""
    tower = keras.Sequential([keras.Input((32, 32, 3), dtype="uint8")], name="image_tower")
    tower.add(layers.Rescaling(1 / 127.5, offset=-1))
    for filters in (8, 16, 32):  # 32 -> 16 -> 8 -> 4 pixels
        tower.add(layers.Conv2D(filters, 3, padding="same", use_bias=False))
        tower.add(layers.GroupNormalization(4))  # Batch normalization would depend on the chunk.
        tower.add(layers.ReLU())
        tower.add(layers.MaxPooling2D())
    tower.add(layers.Flatten())
    tower.add(layers.Dense(dim))
    return tower


def build(way, words, chunk_size):
    """Returns the compiled model, and the models that embed images and texts."""
    image = keras.Input((32, 32, 3), dtype="uint8", name="google")
    text = keras.Input((words,), name="text")
    image_tower = build_image_tower()
    text_tower = keras.Sequential([layers.Dense(256, activation="relu"), layers.Dense(64)])
    encode = image_tower
    if way == "in chunks":
        encode = kj.layers.ChunkedTower(image_tower, chunk_size)
    term = kj.layers.ContrastiveTerm(kj.losses.InfoNCE(temperature=0.1, tile_size=256), name="pair")
    embeddings = term((encode(image), text_tower(text)))
    model = keras.Model({"google": image, "text": text}, embeddings)
    model.compile(keras.optimizers.Adam(0.002))
    return model, keras.Model([image, text], embeddings)


def peak():
    """Returns the largest memory use of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # On Linux, `getrusage` goes on with that of the process that started it.
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 2**10
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / (2**20 if sys.platform == "darwin" else 2**10)


def train(way, steps, chunk_size):
    """Trains in this process and prints a row of the table."""
    data = load()
    indices, held_out = split(data, seed=0)
    vocabulary = sorted({word for text in data["text"][indices] for word in text.split()})

    def select(indices):
        return {
            "google": data["google"][indices],
            "text": bag_of_words(data["text"][indices], vocabulary),
        }

    keras.utils.set_random_seed(0)
    model, embed = build(way, len(vocabulary), chunk_size)
    x = select(indices)
    # The first, small step loads the libraries.
    model.fit({name: values[:8] for name, values in x.items()}, epochs=1, verbose=0)
    before, start = peak(), time.perf_counter()
    history = model.fit(x, batch_size=len(indices), epochs=steps, verbose=0).history
    seconds = (time.perf_counter() - start) / steps
    growth = peak() - before
    found = select(held_out)
    embeddings = embed.predict([found["google"], found["text"]], verbose=0)
    at_10 = recall(*(np.asarray(x) for x in embeddings))[-1]
    first, last = history["loss"][0], history["loss"][-1]
    print(f"{way:<12}{growth:>12.0f}{seconds:>12.2f}{first:>12.4f}{last:>12.4f}{at_10:>12.1%}")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--chunk-size", type=int, default=64)
    parser.add_argument("--way", choices=WAYS, help="only this one, in this process")
    arguments = parser.parse_args(argv)
    if arguments.way:
        train(arguments.way, arguments.steps, arguments.chunk_size)
        return
    columns = ("growth, MiB", "s / step", "first loss", "last loss", "R@10")
    print(f"{'':<12}" + "".join(f"{column:>12}" for column in columns), flush=True)
    options = ["--steps", str(arguments.steps), "--chunk-size", str(arguments.chunk_size)]
    for way in WAYS:
        subprocess.run([sys.executable, __file__, "--way", way, *options], check=True)


if __name__ == "__main__":
    main()
