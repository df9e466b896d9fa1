"""A partial differential equation in plain `fit`: residual and boundary are terms of the loss.

A network u(x, y) solves a Poisson equation on the unit square,

    u_xx + u_yy = f  inside,  u = 0  on the edge,

whose solution is known: u = sin(pi x) sin(pi y). The loss has two terms of very different size,
and how they are weighed decides the error of the solution. A table shows it under equal weights,
under constant weights of the edge, the best of which only the known solution tells, and under every
rule with its default settings. A loss that can reach 0, as that of the edge with u = 0, takes all
the weight of FAMO, GeometricMean and Shares; with a smallest weight the first two are in the table
again.

Keras has no operation for derivatives, so the layers of this network carry them along: each maps
the value, the gradient and the Laplacian of its inputs to those of its outputs (forward Laplacian;
Li et al., 2023, A Computational Framework for Neural Network-based Variational Monte Carlo with
Forward Laplacian). It is exact, and the same on every backend.

Run: python examples/physics.py
"""

import argparse

import keras
import numpy as np
from keras import ops

import keras_jointloss as kj

TERMS = ("edge", "equation")
# The squared error on the edge that is good enough.
SOLVED = 1e-4
BATCH_SIZE = 128
WAVES = (1, 1)
# Constant weights of the edge to choose from; that of the equation is 1.
GRID = (10.0, 100.0, 1000.0, 10000.0)
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
    "Shares": lambda: kj.weighting.Shares(dict.fromkeys(TERMS, 0.5)),
    "Constraint": lambda: kj.weighting.Constraint({"edge": SOLVED}),
    "GeometricMean, min_weight 0.1": lambda: kj.weighting.GeometricMean(min_weight=0.1),
    "FAMO, min_weight 0.1": lambda: kj.weighting.FAMO(min_weight=0.1),
}


@keras.saving.register_keras_serializable(package="physics")
class Jet(keras.layers.Layer):
    """Gives points the derivatives that the layers carry along: `(..., 2)` to `(..., 4, 2)`.

    The rows are the value, the derivatives in x and in y, and the Laplacian.
    """

    def call(self, points):
        zeros = ops.zeros_like(points)
        along_x, along_y = (zeros + ops.eye(2)[axis] for axis in range(2))
        return ops.stack([points, along_x, along_y, zeros], axis=-2)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 4, input_shape[-1])


@keras.saving.register_keras_serializable(package="physics")
class JetDense(keras.layers.Layer):
    """A dense layer with tanh, or without activation, of values and their derivatives."""

    def __init__(self, units, has_tanh=True, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.has_tanh = has_tanh

    def build(self, input_shape):
        self.kernel = self.add_weight((input_shape[-1], self.units), name="kernel")
        self.bias = self.add_weight((self.units,), "zeros", name="bias")

    def call(self, jet):
        jet = ops.matmul(jet, self.kernel)  # (..., 4, units)
        value, slopes, laplacian = ops.split(jet, [1, 3], axis=-2)
        value = value + self.bias
        if self.has_tanh:
            # With t = tanh(v): grad t = t' grad v, and lap t = t' lap v + t'' |grad v|^2.
            value = ops.tanh(value)
            first = 1 - ops.square(value)
            second = -2 * value * first
            steepness = ops.sum(ops.square(slopes), axis=-2, keepdims=True)
            laplacian = first * laplacian + second * steepness
            slopes = first * slopes
        return ops.concatenate([value, slopes, laplacian], axis=-2)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {**super().get_config(), "units": self.units, "has_tanh": self.has_tanh}


def solution(points):
    """Returns u(x, y), which is 0 on the edge of the unit square."""
    return np.prod([np.sin(n * np.pi * points[..., i]) for i, n in enumerate(WAVES)], axis=0)


def source(points):
    """Returns f(x, y), the Laplacian of the solution."""
    return -np.square(np.pi) * np.sum(np.square(WAVES)) * solution(points)


def load(count, seed):
    """Returns points inside, points on the edge, and the source inside."""
    generator = np.random.default_rng(seed)
    inside, edge = generator.uniform(size=(2, count, 2))
    axis = generator.integers(2, size=count)
    edge[np.arange(count), axis] = generator.integers(2, size=count)
    return *(x.astype("float32") for x in (inside, edge)), source(inside).astype("float32")[:, None]


def build_model(units=32, depth=2, weight=1.0, aggregator=None):
    """Returns the model, whose terms are the equation and the edge, and the solution itself.

    `weight` is that of the equation.
    """
    inside, edge = keras.Input((2,), name="inside"), keras.Input((2,), name="edge")
    f = keras.Input((1,), name="source")
    layers = [Jet(), *(JetDense(units) for _ in range(depth))]
    trunk = keras.Sequential([keras.Input((2,)), *layers], name="trunk")
    # Changes nothing without an aggregator: some rules learn the gradients of both calls from it.
    shared = kj.layers.SharedTrunk(trunk, TERMS, aggregator)
    head = JetDense(1, has_tanh=False, name="head")
    # Of a jet, the first row is the value and the last the Laplacian.
    laplacian = head(shared(inside)["equation"])[:, 3]
    u_edge = head(shared(edge)["edge"])[:, 0]
    u_edge = kj.layers.LossTerm(weight=weight, name="equation")(u_edge, ops.square(laplacian - f))
    model = keras.Model({"inside": inside, "edge": edge, "source": f}, {"edge": u_edge})

    point = keras.Input((2,))
    return model, keras.Model(point, head(trunk(point))[:, 0])


def train(data, epochs, seed, weight=1.0, rule=None):
    """Returns the relative error of the solution, and the logs."""
    keras.utils.set_random_seed(seed)
    model, u = build_model()
    inside, edge, f = data
    steps = epochs * len(f) // BATCH_SIZE
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.01, steps)),
        **kj.joint_loss({"edge": "mean_squared_error"}, {"edge": weight}, weighting=rule),
    )
    history = model.fit(
        {"inside": inside, "edge": edge, "source": f},
        {"edge": np.zeros_like(f)},
        batch_size=BATCH_SIZE,
        epochs=epochs,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback()],
    )
    grid = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, 41)], indexing="ij"), axis=-1)
    grid = grid.reshape(-1, 2).astype("float32")
    exact = solution(grid)
    error = u.predict(grid, batch_size=len(grid), verbose=0)[:, 0] - exact
    return float(np.linalg.norm(error) / np.linalg.norm(exact)), history.history


def report(name, error, logs):
    """Prints a row of the table: the error, and losses and weights of the last epoch."""
    cells = [logs[f"{term}_{value}"][-1] for value in ("loss", "weight") for term in TERMS]
    print(f"{name:<30}{error:>10.4f}" + "".join(f"{cell:>12.2g}" for cell in cells), flush=True)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--weights", type=float, nargs="+", default=GRID, help="of the edge")
    parser.add_argument("--rules", nargs="*", choices=RULES, default=list(RULES))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    data = load(8 * BATCH_SIZE, arguments.seed)
    ways = {"equal weights": {}}
    ways.update({f"edge x {weight:g}": {"weight": weight} for weight in arguments.weights})
    ways.update({name: {"rule": RULES[name]} for name in arguments.rules})
    head = ("edge, loss", "equation", "edge, weight", "equation")
    print(f"{'':<30}{'error':>10}" + "".join(f"{cell:>12}" for cell in head))
    errors = {}
    for name, way in ways.items():
        if "rule" in way:
            way = {"rule": way["rule"]()}
        errors[name], logs = train(data, arguments.epochs, arguments.seed, **way)
        report(name, errors[name], logs)
    return errors


if __name__ == "__main__":
    main()
