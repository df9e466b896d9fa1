"""Two tasks on one trunk under constant weights, a grid of them, and every rule that adapts them.

From the drawing of an emoji a network tells its category (cross-entropy, about 2 at the start) and
the principal components of the words that name its group (mean squared error, about 0.03): two
losses of very different size. Every way to weigh them trains the same network; then a table and a
picture tell what became of the weights and of each task on held-out emoji. The grid is written for
the HParams dashboard of TensorBoard, and its Pareto front is drawn.

Run: python examples/weighting.py    (the extra `examples` of README draws the picture)
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from explicit_weights import load_emoji_with_targets

import keras_jointloss as kj

TASKS = ("category", "meaning")
# Weights of the meaning; that of the category is 1.
GRID = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
RULES = {
    "Uncertainty": kj.weighting.Uncertainty,
    "DynamicWeightAverage": kj.weighting.DynamicWeightAverage,
    "GeometricMean": kj.weighting.GeometricMean,
    "SmoothTchebycheff": kj.weighting.SmoothTchebycheff,
    "FAMO": kj.weighting.FAMO,
    "GradNorm": kj.weighting.GradNorm,
    "Uncertainty, softmax": lambda: kj.weighting.Uncertainty(softmax=True),
    "IMTLL": kj.weighting.IMTLL,
    "ReLoBRaLo": kj.weighting.ReLoBRaLo,
    "SoftAdapt": kj.weighting.SoftAdapt,
    "InverseGradientNorm": kj.weighting.InverseGradientNorm,
    "NeuralTangentKernel": kj.weighting.NeuralTangentKernel,
    "RandomWeighting": kj.weighting.RandomWeighting,
}


def build(image_shape, categories, dim, aggregator=None):
    """Returns a network with a trunk that both tasks share."""
    image = keras.Input(image_shape, name="image")
    x = image
    for filters in (16, 32, 64):
        x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.Dense(64, activation="relu")(keras.layers.Flatten()(x))
    # Changes nothing without an aggregator: some rules learn of the gradients from it.
    z = kj.layers.GradientBalancer(TASKS, aggregator)(x)
    outputs = {
        "category": keras.layers.Dense(categories, name="category")(z["category"]),
        "meaning": keras.layers.Dense(dim, name="meaning")(z["meaning"]),
    }
    return keras.Model(image, outputs)


class Trajectory(keras.callbacks.Callback):
    """Keeps the share of the meaning in the sum of the weights at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.shares = []

    def on_epoch_end(self, epoch, logs=None):
        category, meaning = (logs[f"{task}_weight"] for task in TASKS)
        self.shares.append(meaning / (category + meaning))


def scores(model, held_out):
    """Returns the accuracy of the category and the explained variance of the meaning."""
    predicted = model.predict(held_out["image"], verbose=0)
    error = np.mean(np.square(predicted["meaning"] - held_out["target"]))
    variance = np.mean(np.square(held_out["target"] - held_out["target"].mean(axis=0)))
    accuracy = np.mean(predicted["category"].argmax(axis=1) == held_out["category"])
    return float(accuracy), float(1 - error / variance)


def train(data, epochs, seed, weights=None, weighting=None):
    """Trains a network; returns its results on held-out emoji and the trajectory of the weights."""
    keras.utils.set_random_seed(seed)
    training, held_out = data
    categories = 1 + int(max(training["category"]))
    model = build(training["image"].shape[1:], categories, training["target"].shape[1])
    losses = {
        "category": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        "meaning": "mean_squared_error",
    }
    model.compile("adam", **kj.joint_loss(losses, weights=weights, weighting=weighting))
    trajectory = Trajectory()
    model.fit(
        training["image"],
        {"category": training["category"], "meaning": training["target"]},
        batch_size=64,
        epochs=epochs,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback(), trajectory],
    )
    return scores(model, held_out), trajectory.shares


def grid_name(weight):
    return f"meaning x {weight:g}"


def compare(data, epochs, seeds, grid, rules):
    """Returns for each way to weigh the terms the results, `(seeds, 2)`, and the trajectories."""
    ways = {grid_name(weight): {"weights": {"meaning": weight}} for weight in grid}
    ways.update({name: {"weighting": RULES[name]} for name in rules})
    runs = {}
    for name, way in ways.items():
        rule = way.get("weighting")
        pairs = [
            # A rule has a state: a new one for each training.
            train(data, epochs, seed, **({"weighting": rule()} if rule else way))
            for seed in range(seeds)
        ]
        results, trajectories = zip(*pairs, strict=True)
        runs[name] = np.array(results), np.array(trajectories)
        report(name, *runs[name])
    return runs


def report(name, results, trajectories):
    """Prints a row of the table."""
    mean, deviation = results.mean(axis=0), results.std(axis=0)
    print(
        f"{name:<24}{trajectories[:, -1].mean():>12.1%}"
        f"{mean[0]:>12.1%} +- {deviation[0]:.1%}{mean[1]:>12.1%} +- {deviation[1]:.1%}",
        flush=True,
    )


def pareto_front(points):
    """Returns the indices of the points that no other one beats in one task without losing in the
    other, by the first task.
    """
    indices = [
        index
        for index, point in enumerate(points)
        if not any(np.all(other >= point) and np.any(other > point) for other in points)
    ]
    return sorted(indices, key=lambda index: points[index][0])


def write_hparams(runs, grid, folder):
    """Writes the grid for the HParams dashboard of TensorBoard, a run for each weight."""
    for weight in grid:
        accuracy, explained = runs[grid_name(weight)][0].mean(axis=0)
        kj.tensorboard.write_hparams(
            Path(folder) / f"weight_{weight:g}",
            {"meaning_weight": weight},
            {"held_out/category_accuracy": accuracy, "held_out/meaning_explained": explained},
        )


def draw(runs, grid, path):
    """Draws the trajectories of the weights, and the results with the grid's Pareto front."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    grid = [grid_name(weight) for weight in grid]
    points = np.array([100 * runs[name][0].mean(axis=0) for name in grid])
    front = pareto_front(points)
    right.plot(*points[front].T, color="0.6", label="Pareto front of the grid")
    for name, (results, trajectories) in runs.items():
        shares, result = 100 * trajectories.mean(axis=0), 100 * results.mean(axis=0)
        epochs = np.arange(1, len(shares) + 1)
        if name in grid:
            left.plot(epochs, shares, color="0.8", linewidth=1)
            right.plot(*result, "o", color="0.6")
            right.annotate(name.rpartition(" ")[2], result, color="0.4", fontsize=8)
        else:
            (line,) = left.plot(epochs, shares, label=name)
            right.plot(*result, "s", color=line.get_color(), label=name)
    left.set(xlabel="epoch", ylabel="weight of the meaning, % of the sum", title="Weights")
    right.set(xlabel="accuracy of the category, %", ylabel="explained variance of the meaning, %")
    right.set_title("Held-out emoji (grey: constant weights of the meaning)")
    right.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=1, help="how many trainings of each kind")
    parser.add_argument("--weights", type=float, nargs="+", default=GRID, help="of the meaning")
    parser.add_argument("--rules", nargs="*", choices=RULES, default=list(RULES))
    parser.add_argument("--log-dir", default="logs/weighting", help="folder for TensorBoard")
    parser.add_argument("--picture", help="file for the picture, in LOG_DIR by default")
    arguments = parser.parse_args(argv)
    data = load_emoji_with_targets()
    print(f"{'':<24}{'share of':>12}{'accuracy of':>20}{'explained variance':>20}")
    print(f"{'weights':<24}{'meaning':>12}{'category':>20}{'of meaning':>20}")
    grid = arguments.weights
    runs = compare(data, arguments.epochs, arguments.seeds, grid, arguments.rules)

    write_hparams(runs, grid, arguments.log_dir)
    picture = arguments.picture or str(Path(arguments.log_dir) / "weighting.png")
    draw(runs, grid, picture)
    print(f"\nPicture: {picture}\nThe grid: tensorboard --logdir {arguments.log_dir}")
    return runs


if __name__ == "__main__":
    main()
