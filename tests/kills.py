"""Kills a training at random points and starts it again, until its end equals that without a kill.

The model has a rule, a schedule, a contrastive term with a memory, a layer that combines gradients
and data of `kj.data`. It is backed up as `docs/limits.md` says. Half of the kills are while it is
backed up. Prints what has happened as JSON.

Run: python -m tests.kills --kills 100
"""

import argparse
import importlib
import itertools
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import time
import types
from pathlib import Path

import h5py
import keras
import numpy as np

import keras_jointloss as kj
from tests.processes import ROOT

ITEMS, EPOCHS = 24, 12
GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(ITEMS, 6)).astype("float32")
Y = {"label": np.arange(ITEMS) % 3, "mood": X[:, 1:2]}


def documented_backup():
    """Returns the class of the backup that `docs/limits.md` shows."""
    text = (ROOT / "docs" / "limits.md").read_text()
    (code,) = re.findall(r"  ```python\n(.*?class WholeBackup.*?)  ```", text, re.DOTALL)
    names = {}
    exec(textwrap.dedent(code), names)
    return names["WholeBackup"]


BACKUPS = {
    "whole": documented_backup(),
    "keras": keras.callbacks.BackupAndRestore,
    "double": lambda folder: keras.callbacks.BackupAndRestore(folder, double_checkpoint=True),
}


def compiled():
    """Returns the model."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="tanh")(inputs)
    a, b = keras.layers.Dense(4)(hidden), keras.layers.Dense(4)(hidden)
    loss = kj.losses.InfoNCE(temperature=0.2)
    weight = kj.schedules.Linear(0.1, 0.5, 20)
    a, b = kj.layers.ContrastiveTerm(
        loss, weight=weight, memory_size=16, learn_temperature=True, name="pair"
    )((a, b))
    hidden = keras.layers.Concatenate()([hidden, a, b])
    z = kj.layers.GradientBalancer(["label", "mood"], "pcgrad")(hidden)
    heads = {
        "label": keras.layers.Dense(3, activation="softmax")(z["label"]),
        "mood": keras.layers.Dense(1)(z["mood"]),
    }
    model = keras.Model(inputs, heads)
    losses = {"label": "sparse_categorical_crossentropy", "mood": "mse"}
    weights = {"mood": kj.schedules.Linear(1.0, 0.5, 30)}
    joint = kj.joint_loss(losses, weights, weighting=kj.weighting.FAMO(), metrics={"label": "acc"})
    model.compile(keras.optimizers.Adam(0.01), **joint)
    return model


class Tells(keras.callbacks.Callback):
    """Writes a letter for each hook into a pipe."""

    def __init__(self, pipe, **letters):
        super().__init__()
        for hook, letter in letters.items():
            setattr(self, hook, lambda *_, letter=letter, **__: os.write(pipe, letter.encode()))


class Keeps(keras.callbacks.Callback):
    """Appends the logs of each epoch to a file."""

    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_epoch_end(self, epoch, logs=None):
        values = {key: float(value) for key, value in logs.items()}
        with self.path.open("a") as file:
            file.write(f"\n{json.dumps([epoch, values])}\n")


def train(folder, backup, epochs, pipe):
    """Trains to the end, from the latest backup."""
    model = compiled()
    data = kj.data.ClassBatches(X, Y, 3, 2, labels="label", seed=1)
    callbacks = [
        kj.callbacks.JointLossCallback(folder / "logs", "batch"),
        Keeps(folder / "history"),  # Before the epoch is in a backup, and thus over.
        Tells(pipe, on_epoch_begin="e", on_train_batch_begin="b", on_epoch_end="s"),
        BACKUPS[backup](str(folder / "backup")),
        Tells(pipe, on_epoch_end="S"),
    ]
    model.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    model.save_weights(folder / "part.weights.h5")
    (folder / "part.weights.h5").rename(folder / "end.weights.h5")


def end_of(folder):
    """Returns all that a training has left: its state, its history and its logs."""
    found = {}
    with h5py.File(folder / "end.weights.h5") as file:
        file.visititems(
            lambda name, x: found.update({name: x[()]}) if isinstance(x, h5py.Dataset) else None
        )
    for line in (folder / "history").read_text().splitlines():
        try:
            epoch, values = json.loads(line)
        except ValueError:  # Nothing, or the line that a kill has cut off.
            continue
        found.update({f"{epoch} {key}": np.array(value) for key, value in values.items()})
    for tag, series in kj.tensorboard.read(folder / "logs")["train"].items():
        for step, value in zip(series.steps, series.values, strict=True):
            found[f"{tag} {step}"] = value
    return found


def differences(found, expected):
    """Returns the names of what is not the same to the last bit."""
    return sorted(
        name
        for name in found.keys() | expected.keys()
        if name not in found
        or name not in expected
        or np.asarray(found[name]).tobytes() != np.asarray(expected[name]).tobytes()
    )


def start(*arguments):
    """Starts a training in a process of its own; returns its id, and the end of its pipe."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    code = 1
    try:
        os.close(read)
        with open(arguments[0] / "errors", "a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        train(*arguments, write)
        code = 0
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    os._exit(code)


def follow(pid, pipe, until=None):
    """Returns the letters that a training writes, with their times, and its exit code.

    It is killed some seconds after a letter has come so many times: `until` is letter, number and
    seconds.
    """
    seen = []
    while letters := os.read(pipe, 4096):
        seen += [(letter, time.perf_counter()) for letter in letters.decode()]
        if until is not None and [x for x, _ in seen].count(until[0]) >= until[1]:
            time.sleep(until[2])
            os.kill(pid, signal.SIGKILL)
            break
    os.close(pipe)
    return seen, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def survive(folder, kills, seed=0, backup="whole", epochs=EPOCHS):
    """Returns how trainings ended that were killed so many times."""
    random = np.random.default_rng(seed)
    whole, warm = folder / "whole", folder / "warm"
    for path in (whole, warm):
        path.mkdir(parents=True)
    if keras.backend.backend() == "torch":  # The others have threads, which no fork survives.
        importlib.import_module("torch").set_num_threads(1)
        train(warm, backup, 1, os.open(os.devnull, os.O_WRONLY))
    seen, code = follow(*start(whole, backup, epochs))
    if code:
        raise RuntimeError((whole / "errors").read_text())
    expected = end_of(whole)
    # How long it takes from a letter to the next one.
    times = {letter: [] for letter in "ebsS"}
    for (letter, begin), (_, end) in itertools.pairwise(seen):
        times[letter].append(end - begin)
    last = {letter: float(np.median(times[letter])) for letter in "ebs"}
    found = {"backend": keras.backend.backend(), "values": len(expected)}
    found |= dict.fromkeys(("kills", "in_backup", "trainings", "equal", "failed"), 0)
    messages = []
    while found["kills"] < kills:
        part = folder / f"killed {found['trainings']}"
        part.mkdir()
        found["trainings"] += 1
        is_over = False
        while not is_over:
            letter = str(random.choice(["e", "b", "s", "s"]))
            number = int(random.integers(1, 4))
            until = letter, number, random.uniform(0, 1.2 * last[letter])
            seen, code = follow(
                *start(part, backup, epochs), until if found["kills"] < kills else None
            )
            if code == -signal.SIGKILL:
                found["kills"] += 1
                found["in_backup"] += letter == "s"
            is_over = code != -signal.SIGKILL
        if code:
            found["failed"] += 1
            messages.append((part / "errors").read_text()[-400:])
            continue
        wrong = differences(end_of(part), expected)
        found["equal"] += not wrong
        messages += wrong[:9]
        shutil.rmtree(part)
    return found, messages


def main():
    """Kills as often as the command line says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backup", choices=BACKUPS, default="whole")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    # To write logs needs no TensorFlow, which takes seconds to import.
    sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        found, messages = survive(
            Path(folder), arguments.kills, arguments.seed, arguments.backup, arguments.epochs
        )
    print(*messages[:20], sep="\n", file=sys.stderr)
    print(json.dumps({**found, "seconds": round(time.perf_counter() - start)}))
    return found["equal"] != found["trainings"]


if __name__ == "__main__":
    sys.exit(main())
