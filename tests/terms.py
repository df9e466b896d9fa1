"""Terms without a model, losses to record in them, and the trajectory of weights in training."""

import keras
import numpy as np
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint.find_terms import find_terms

RULES = (
    *("Constraint", "DynamicWeightAverage", "FAMO", "GeometricMean", "IMTLL", "RandomWeighting"),
    *("ReLoBRaLo", "Shares", "SmoothTchebycheff", "SoftAdapt", "Uncertainty"),
)
#: The rules that follow gradients, which a layer reports.
GRADIENT_RULES = ("GradNorm", "InverseGradientNorm", "NeuralTangentKernel")
#: The argument without default of a rule, which holds a number for each term.
REQUIRED = {"Constraint": "bounds", "Shares": "shares"}


def make(name, terms=2, **arguments) -> kj.weighting.Weighting:
    """Returns a rule for `Terms`; one that needs numbers by the name of the term gets ones."""
    if name in REQUIRED:
        ones = {f"term{i}": 1.0 for i in range(terms)}
        arguments = {REQUIRED[name]: ones, **arguments}
    return getattr(kj.weighting, name)(**arguments)


class Terms:
    """Terms without a model; tests pass the losses to the rule directly.

    Args:
        rule: The rule.
        count: The number of terms.
        given: The user's weight of each term, 1 by default.
    """

    def __init__(self, rule, count, given=None):
        self.rule = rule
        given = [1.0] * count if given is None else given
        self.weights = {f"term{i}": kj.LossWeight(weight) for i, weight in enumerate(given)}
        for weight in self.weights.values():
            weight.start_annealing(0)
        next(iter(self.weights.values())).weighting = rule
        rule.bind(self.weights)

    def now(self):
        return [float(weight) for weight in self.weights.values()]

    def step(self, losses, counts=None):
        """Records the losses of a step; `counts` marks the terms without items."""
        counts = [None] * len(losses) if counts is None else counts
        for weight, loss, count in zip(self.weights.values(), losses, counts, strict=True):
            weight.record(ops.convert_to_tensor(loss, dtype="float32"), 4, count)
            weight.applied()
        for weight in self.weights.values():
            weight.update_state()

    def run(self, losses, epochs=None):
        """Returns the weights at the start of each step and after the last step."""
        epochs = np.zeros(len(losses), int) if epochs is None else epochs
        trajectory = [self.now()]
        for step, row in enumerate(losses):
            if not step or epochs[step] != epochs[step - 1]:
                self.rule.start(is_new_epoch=True)
            self.step(row)
            trajectory.append(self.now())
        return np.array(trajectory)


def recorded_losses(steps=40, count=3, seed=0):
    """Returns realistic training losses: decreasing, noisy and of different scales."""
    generator = np.random.default_rng(seed)
    time = np.arange(steps)[:, None]
    scale, rate = np.array([1.0, 20.0, 0.05])[:count], np.array([0.02, 0.005, 0.01])[:count]
    noise = np.exp(0.2 * generator.normal(size=(steps, count)))
    return ((0.3 + np.exp(-rate * time)) * scale * noise).astype("float32").astype("float64")


class Trajectory(keras.callbacks.Callback):
    """Records the weights and raw losses of each step."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        _ = self.model  # On JAX this copies the state of the step to the variables.
        self.weights.append([float(weight) for weight in find_terms(self.model).values()])
