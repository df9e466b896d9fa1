"""Three tasks on one trunk whose gradients conflict: plain sum, tuned weights, eight aggregators.

Two handwritten digits lie over each other in one image. One network tells the left one, the right
one (cross-entropy, about 2.3 at the start) and draws the image itself again (mean squared error in
grey levels, some thousands at the start): a sum that the third term rules. Every way to combine the
three trains the same network on the same images; then a table and a picture tell how well each task
is done on images of digits that were never seen, and how the gradients stood to each other.

Run: python examples/multi_digit.py    (with the extra `examples` of README)

Data: the 1,797 digits of 8 x 8 pixels that come with scikit-learn, from the Optical Recognition of
Handwritten Digits data set (Alpaydin and Kaynak, 1998, UCI Machine Learning Repository, CC BY 4.0).
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
from sklearn.datasets import load_digits

import keras_jointloss as kj

TASKS = ("left", "right", "drawing")
# Constant weights of the drawing to choose from; those of the digits are 1.
GRID = (0.1, 0.01, 0.001, 0.0001, 0.00001)
LEVELS = ("representation", "parameters")
RULES = ("mean", "pcgrad", "mgda", "cagrad", "nash_mtl", "aligned_mtl", "imtl_g", "upgrad")

HEAD = (
    ("", "accuracy", "accuracy", "variance", "length", "cosine", "cosine", "steps"),
    ("", "left", "right", "explained", "drawing:", "left~", "left~", "in"),
    ("", "", "", "", "left", "right", "drawing", "conflict"),
)
WIDTHS = (18, 18, 18, 18, 10, 10, 10, 10)


class Result(NamedTuple):
    """What became of one training.

    Attributes:
        scores: Accuracy of the left and of the right digit, and the explained variance of the
            drawing, on test images.
        validation: The same on validation images.
        history: What `fit` logged.
    """

    scores: np.ndarray
    validation: np.ndarray
    history: dict[str, list[float]]


def overlay(images, labels, count, generator):
    """Returns images of two digits each, `(count, 12, 12, 1)`, and the targets of the tasks."""
    left, right = generator.integers(len(images), size=(2, count))
    canvas = np.zeros((count, 12, 12, 1), "float32")
    canvas[:, :8, :8, 0] = images[left]
    canvas[:, 4:, 4:, 0] = np.maximum(canvas[:, 4:, 4:, 0], images[right])
    return canvas, {"left": labels[left], "right": labels[right], "drawing": canvas}


def load(seed):
    """Returns images and targets for training, validation and test, which share no digit."""
    digits = load_digits()
    generator = np.random.default_rng(seed)
    parts = np.split(generator.permutation(len(digits.target)), [1197, 1497])
    grey_levels = digits.images * (255 / 16)
    return [
        overlay(grey_levels[part], digits.target[part], count, generator)
        for part, count in zip(parts, (8000, 2000, 2000), strict=True)
    ]


def build(aggregator, level):
    """Returns a network with a trunk that the three tasks share."""
    image = keras.Input((12, 12, 1), name="image")
    trunk = keras.Sequential([keras.layers.Rescaling(1 / 255)], name="trunk")
    for filters in (16, 32):
        trunk.add(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
        trunk.add(keras.layers.MaxPooling2D())
    trunk.add(keras.layers.Flatten())
    trunk.add(keras.layers.Dense(48, activation="relu"))
    if level == "parameters":
        z = kj.layers.SharedTrunk(trunk, TASKS, aggregator)(image)
    else:
        z = kj.layers.GradientBalancer(TASKS, aggregator)(trunk(image))
    drawing = keras.layers.Dense(128, activation="relu")(z["drawing"])
    drawing = keras.layers.Reshape((12, 12, 1))(keras.layers.Dense(144)(drawing))
    outputs = {
        "left": keras.layers.Dense(10, name="left")(z["left"]),
        "right": keras.layers.Dense(10, name="right")(z["right"]),
        "drawing": keras.layers.Rescaling(255, name="drawing")(drawing),
    }
    return keras.Model(image, outputs)


def scores(model, images, targets):
    """Returns how well each task is done, at best 1."""
    predicted = model.predict(images, batch_size=500, verbose=0)
    error = np.mean(np.square(predicted["drawing"] - images))
    variance = np.mean(np.square(images - images.mean(axis=0)))
    accuracies = [np.mean(predicted[task].argmax(axis=1) == targets[task]) for task in TASKS[:2]]
    return np.array([*accuracies, 1 - error / variance])


def train(data, epochs, seed, weight=1.0, aggregator=None, level=LEVELS[0], log_dir=None):
    """Trains a network, with a weight of the drawing and with an aggregator, or the plain sum."""
    training, validation, test = data
    keras.utils.set_random_seed(seed)
    model = build(aggregator, level)
    losses = {
        "left": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "right": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "drawing": "mean_squared_error",
    }
    model.compile(
        keras.optimizers.Adam(0.002), **kj.joint_loss(losses, weights={"drawing": weight})
    )
    callback = kj.callbacks.JointLossCallback(log_dir)
    x, y = training
    history = model.fit(x, y, batch_size=128, epochs=epochs, verbose=0, callbacks=[callback])
    return Result(scores(model, *test), scores(model, *validation), history.history)


def tuned(runs):
    """Returns which of the grid's weights did best on the validation images, over all tasks."""
    return max(runs, key=lambda weight: np.mean([run.validation for run in runs[weight]]))


def compare(epochs, seeds, grid, rules, level, log_dir):
    """Returns the results for each way to combine the terms, one for each seed."""
    data = [load(seed) for seed in range(seeds)]

    def run(name, **way):
        logs = str(Path(log_dir) / name)  # Of the first seed.
        return [
            train(data[seed], epochs, seed, level=level, log_dir=None if seed else logs, **way)
            for seed in range(seeds)
        ]

    runs = {"sum": run("sum")}
    report("plain sum", runs["sum"])
    constant = {weight: run(f"weight_{weight:g}", weight=weight) for weight in grid}
    for weight, results in constant.items():
        report(f"drawing x {weight:g}", results)
    runs["tuned weights"] = constant[tuned(constant)]
    for rule in rules:
        runs[rule] = run(rule, aggregator=rule)
        report(rule, runs[rule])
    print(f"\nOf the constant weights, {tuned(constant):g} did best on the validation images.")
    return runs


def telemetry(results, name):
    """Returns what the logs tell of gradients, a mean over seeds, for each epoch."""
    return np.mean([result.history[f"gradients_{name}"] for result in results], axis=0)


def report(name, results):
    """Prints a row of the table."""
    values = np.array([result.scores for result in results])
    cells = "".join(
        f"{mean:>10.1%} +- {deviation:>4.1%}"
        for mean, deviation in zip(values.mean(axis=0), values.std(axis=0), strict=True)
    )
    left, _, drawing = (telemetry(results, f"{task}_norm").mean() for task in TASKS)
    cosines = "".join(
        f"{telemetry(results, f'{pair}_cosine').mean():>10.2f}"
        for pair in ("left~right", "left~drawing")
    )
    conflict = telemetry(results, "conflict").mean()
    print(f"{name:<18}{cells}{drawing / left:>10.2g}{cosines}{conflict:>10.0%}", flush=True)


def drawing_share(results):
    """Returns the drawing's share in the lengths of what the trunk gets, for each epoch."""
    parts = [
        telemetry(results, f"{task}_norm") * telemetry(results, f"{task}_coefficient")
        for task in TASKS
    ]
    return parts[-1] / np.sum(parts, axis=0)


def draw(runs, path):
    """Draws how well the tasks are done, what the trunk gets, and how often gradients conflict."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(
        1, 3, figsize=(15, 4.5), layout="constrained", width_ratios=(3, 2, 2)
    )
    for index, (name, results) in enumerate(runs.items()):
        values = 100 * np.array([result.scores for result in results])
        digits, drawing = values[:, :2].mean(axis=1), values[:, 2]
        color = f"C{index}"
        left.errorbar(
            *(digits.mean(), drawing.mean(), drawing.std(), digits.std()),
            marker="s" if index < 2 else "o",
            color=color,
            label=name,
        )
        epochs = np.arange(1, len(results[0].history["loss"]) + 1)
        middle.plot(epochs, 100 * drawing_share(results), color=color)
        right.plot(epochs, 100 * telemetry(results, "conflict"), color=color)
    left.set(xlabel="accuracy of the digits, %", ylabel="explained variance of the drawing, %")
    left.set_title("Images of unseen digits")
    left.legend(fontsize=8)
    middle.set(xlabel="epoch", ylim=(0, 103))
    middle.set_title("The drawing's share in what the trunk gets, %")
    right.set(xlabel="epoch", ylim=(0, 103))
    right.set_title("Steps in which gradients conflict, %")
    figure.savefig(path, dpi=90)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1, help="how many trainings of each kind")
    parser.add_argument("--weights", type=float, nargs="+", default=GRID, help="of the drawing")
    parser.add_argument("--rules", nargs="*", choices=RULES, default=RULES)
    parser.add_argument(
        "--level", choices=LEVELS, default=LEVELS[0], help="where gradients are combined"
    )
    parser.add_argument("--log-dir", default="logs/multi_digit", help="folder for TensorBoard")
    parser.add_argument("--picture", help="file for the picture, in LOG_DIR by default")
    arguments = parser.parse_args(argv)
    for line in HEAD:
        print("".join(f"{cell:>{width}}" for cell, width in zip(line, WIDTHS, strict=True)))
    runs = compare(
        arguments.epochs,
        arguments.seeds,
        arguments.weights,
        arguments.rules,
        arguments.level,
        arguments.log_dir,
    )
    picture = arguments.picture or str(Path(arguments.log_dir) / "multi_digit.png")
    draw(runs, picture)
    print(f"Picture: {picture}\nCurves and heat maps: tensorboard --logdir {arguments.log_dir}")
    return runs


if __name__ == "__main__":
    main()
