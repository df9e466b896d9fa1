"""Trains on several processes, and compares the losses with those of one process.

Each process has its share of every batch: it encodes these emoji, and contrasts them with the emoji
of all processes. So the losses and weights of each epoch are those of one process that has whole
batches. The processes of this example run on one computer and talk through its loopback device; on
several computers each gets the address of the first (JAX) or of all (TensorFlow) instead.

    python examples/distributed.py

It runs on TensorFlow and JAX. On PyTorch Keras trains with several processes in a custom loop only.
TensorFlow may round convolutions of half a batch differently: on one processor the losses differ by
4e-4, and by 1e-6 with the environment variable TF_ENABLE_ONEDNN_OPTS=0.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
from emoji import bag_of_words, load
from keras import layers
from large_batch import build_image_tower

import keras_jointloss as kj

BATCH_SIZE = 128
LOGGED = ("loss", "pair_loss", "category_loss", "category_weight")


def examples(count):
    """Returns inputs and targets of the first emoji, a whole number of batches, in random order."""
    data = load()
    found = np.random.default_rng(0).permutation(len(data["text"]))
    found = found[: min(count, len(found)) // BATCH_SIZE * BATCH_SIZE]
    texts = data["text"][found]
    vocabulary = sorted({word for text in texts for word in text.split()})
    x = {"image": data["google"][found], "text": bag_of_words(texts, vocabulary)}
    return x, {"category": data["category"][found]}


def build(words, steps):
    """Returns the compiled model: a term that compares all items, and one whose weight fades."""
    keras.utils.set_random_seed(0)
    image = keras.Input((32, 32, 3), dtype="uint8", name="image")
    text = keras.Input((words,), name="text")
    text_tower = keras.Sequential([layers.Dense(256, activation="relu"), layers.Dense(64)])
    pair = kj.layers.ContrastiveTerm(kj.losses.InfoNCE(temperature=0.1), name="pair")
    embedding, _ = pair((build_image_tower()(image), text_tower(text)))
    category = layers.Dense(9, activation="softmax")(embedding)
    model = keras.Model({"image": image, "text": text}, {"category": category})
    fading = kj.schedules.Linear(0.5, 0.1, steps)
    losses = {"category": "sparse_categorical_crossentropy"}
    model.compile(keras.optimizers.SGD(0.1), **kj.joint_loss(losses, {"category": fading}))
    return model


def connect_jax(rank, ports):
    """Returns a function that builds the model in this process, and the rows to feed it with."""
    keras.distribution.initialize(f"localhost:{ports[0]}", len(ports), rank)
    # Each process hands in its own rows.
    distribution = keras.distribution.DataParallel(auto_shard_dataset=False)
    keras.distribution.set_distribution(distribution)
    share = BATCH_SIZE // len(ports)

    def own_rows(values):
        batches = values.reshape(-1, len(ports), share, *values.shape[1:])
        return batches[:, rank].reshape(-1, *values.shape[1:])

    return build, own_rows, share


def connect_tensorflow(rank, ports):
    """Returns a function that builds the model in this process, and the rows to feed it with."""
    import tensorflow as tf

    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    task = {"type": "worker", "index": rank}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
    options = tf.distribute.experimental.CommunicationOptions(timeout_seconds=120)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    kj.distribution.enable_multi_worker_fit()

    def build_in_scope(words, steps):
        with strategy.scope():
            return build(words, steps)

    return build_in_scope, lambda values: values, BATCH_SIZE  # TensorFlow divides the batches.


def train(rank, ports, count, epochs, file):
    """Trains as one of several processes, or alone, and writes the losses to a file."""
    make, own_rows, batch_size = build, lambda values: values, BATCH_SIZE
    if len(ports) > 1:
        connect = {"jax": connect_jax, "tensorflow": connect_tensorflow}[keras.backend.backend()]
        make, own_rows, batch_size = connect(rank, ports)
    x, y = examples(count)
    steps = epochs * len(y["category"]) // BATCH_SIZE
    model = make(x["text"].shape[1], steps)
    history = model.fit(
        {name: own_rows(values) for name, values in x.items()},
        {name: own_rows(values) for name, values in y.items()},
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback()],
    ).history
    file.write_text(json.dumps({name: history[name] for name in LOGGED}))


def free_ports(count):
    """Returns ports that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for found in sockets:
        found.bind(("localhost", 0))
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def launch(processes, count, epochs):
    """Trains in so many processes and returns what each logged, by the name of the value."""
    ports = json.dumps(free_ports(processes))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{rank}.json" for rank in range(processes)]
        options = ["--ports", ports, "--items", str(count), "--epochs", str(epochs)]
        commands = [
            [sys.executable, __file__, "--rank", str(rank), "--file", str(file), *options]
            for rank, file in enumerate(files)
        ]
        running = [subprocess.Popen(command) for command in commands]
        if any([process.wait() for process in running]):
            raise SystemExit("A process failed.")
        return [json.loads(file.read_text()) for file in files]


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--items", type=int, default=1906, help="how many emoji to train on")
    parser.add_argument("--epochs", type=int, default=5)
    for name in ("--rank", "--ports", "--file"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if keras.backend.backend() == "torch":
        raise SystemExit("Set KERAS_BACKEND to tensorflow or jax.")
    if BATCH_SIZE % arguments.processes:
        raise SystemExit(f"Choose a number of processes that divides {BATCH_SIZE}.")
    sizes = arguments.items, arguments.epochs
    if arguments.rank is not None:
        ports = json.loads(arguments.ports)
        train(int(arguments.rank), ports, *sizes, Path(arguments.file))
        return
    (alone,) = launch(1, *sizes)
    several = launch(arguments.processes, *sizes)
    columns = ["epoch", "one process", f"{arguments.processes} processes"]
    print("".join(f"{column:>15}" for column in columns))
    for epoch, values in enumerate(zip(alone["loss"], several[0]["loss"], strict=True), 1):
        print(f"{epoch:>15}" + "".join(f"{value:>15.5f}" for value in values))
    difference = max(
        abs(a - b)
        for found in several
        for x in LOGGED
        for a, b in zip(alone[x], found[x], strict=True)
    )
    print(f"Largest difference in {', '.join(LOGGED)}: {difference:.1e}")


if __name__ == "__main__":
    main()
