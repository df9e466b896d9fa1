"""NumPy references of the weightings that follow the papers, one loss and one step at a time.

Every function takes the losses of all steps, of shape `(steps, terms)`. It returns the weights at
the start of each step and after the last step, of shape `(steps + 1, terms)`.
"""

import itertools
import math

import numpy as np


def softmax(x):
    exponentials = [math.exp(value - max(x)) for value in x]
    return [value / sum(exponentials) for value in exponentials]


def uncertainty(losses, learning_rate=0.025, least=1e-12):
    variances = [0.0] * losses.shape[1]
    weights = [[0.5] * losses.shape[1]]
    for row in losses:
        for i, loss in enumerate(row):
            minimizer = math.log(max(loss, least))
            slope = -0.5 * math.exp(minimizer - variances[i]) + 0.5
            moved = variances[i] - learning_rate * slope
            low, high = sorted((variances[i], minimizer))
            # Where the descent goes past the minimizer, it ends there.
            variances[i] = min(max(moved, low), high)
        weights.append([0.5 * math.exp(-s) for s in variances])
    return np.array(weights)


def uncertainty_analytic(losses, ema=0.9, least=1e-12):
    weights, mean = [[0.5] * losses.shape[1]], None
    for row in losses:
        mean = row if mean is None else ema * mean + (1 - ema) * row
        # The derivative of 1/2 exp(-s) L + 1/2 s is 0 at exp(s) = L.
        weights.append([1 / (2 * max(value, least)) for value in mean])
    return np.array(weights)


def uncertainty_softmax(losses, temperature=1.0, least=1e-12):
    weights = [[1 / losses.shape[1]] * losses.shape[1]]
    for row in losses:
        weights.append(softmax([1 / max(loss, least) / temperature for loss in row]))
    return np.array(weights)


def imtl_l(losses, learning_rate=0.025, least=1e-12):
    scales = [0.0] * losses.shape[1]
    weights = [[1.0] * losses.shape[1]]
    for row in losses:
        for i, loss in enumerate(row):
            minimizer = -math.log(max(loss, least))
            # The derivative of exp(s) L - s by s.
            moved = scales[i] - learning_rate * (math.exp(scales[i] - minimizer) - 1)
            low, high = sorted((scales[i], minimizer))
            scales[i] = min(max(moved, low), high)
        weights.append([math.exp(s) for s in scales])
    return np.array(weights)


def relobralo(losses, keeps, alpha=0.95, temperature=1.0):
    """Returns the weights; `keeps` says for each step whether it does not look back."""
    count = losses.shape[1]

    def balance(row, other):
        return count * np.array(softmax(row / (temperature * other)))

    weights = [np.ones(count)]
    for step, row in enumerate(losses):
        history = weights[-1] if keeps[step] else balance(row, losses[0])
        before = losses[max(step - 1, 0)]
        weights.append(alpha * history + (1 - alpha) * balance(row, before))
    return np.array(weights)


def slope(points):
    """Returns the slope at the first of the points, from all finite differences of them."""
    total, differences = 0.0, list(points)
    for order in range(1, len(points)):
        differences = [b - a for a, b in itertools.pairwise(differences)]
        total -= (-1) ** order * differences[0] / order
    return total


def soft_adapt(losses, epochs=None, variant="original", beta=0.1, points=5, frequency=1):
    """Returns the weights; `epochs` contains the epoch number of each step, or is `None`."""
    count, seen = losses.shape[1], []
    weights = [[1 / count] * count]
    for step, row in enumerate(losses):
        if epochs is None:
            seen.append(row)
        elif step and epochs[step] != epochs[step - 1]:
            seen.append(losses[epochs == epochs[step - 1]].mean(axis=0))
        else:
            weights.append(weights[-1])
            continue
        if len(seen) < 2 or len(seen) % frequency:
            weights.append(weights[-1])
            continue
        latest = np.array(seen[-points:])
        slopes = np.array([slope(column) for column in latest.T])
        if variant == "normalized":
            slopes = slopes / sum(slopes)
        result = np.array(softmax(beta * slopes))
        if variant == "loss_weighted":
            result = result * latest.mean(axis=0)
        weights.append(result / sum(result))
    return np.array(weights)


def dynamic_weight_average(losses, epochs, temperature=2.0):
    """Returns the weights; `epochs` contains the epoch number of each step."""
    count = losses.shape[1]
    weights = [[1.0] * count]
    for step, epoch in enumerate(epochs):
        means = [
            losses[epochs == past].mean(axis=0) for past in (epoch - 1, epoch - 2) if past >= 0
        ]
        ratio = means[0] / means[1] if len(means) == 2 else np.ones(count)
        weights.append([count * share for share in softmax(ratio / temperature)])
        assert step + 2 == len(weights)
    return np.array(weights)


def geometric_mean(losses):
    count = losses.shape[1]
    weights = [[1 / count] * count]
    for row in losses:
        mean = math.prod(row) ** (1 / count)
        weights.append([mean / (count * loss) for loss in row])
    return np.array(weights)


def smooth_tchebycheff(losses, preference, smoothness):
    count = losses.shape[1]
    weights = [[value / count for value in preference]]
    for step in range(len(losses)):
        least = losses[: step + 1].min(axis=0)
        excess = preference * (losses[step] - least) / smoothness
        weights.append(preference * softmax(excess))
    return np.array(weights)


def famo(losses, learning_rate=0.025, decay=1e-3, minimum_loss=0.0):
    count = losses.shape[1]
    logits, first, second = np.zeros(count), np.zeros(count), np.zeros(count)
    weights = [[1 / count] * count]
    for step, row in enumerate(losses):
        if step:
            fall = np.log(losses[step - 1] - minimum_loss) - np.log(row - minimum_loss)
            z = np.array(softmax(logits))
            jacobian = np.diag(z) - np.outer(z, z)  # The Jacobian of the softmax.
            gradient = jacobian.T @ fall + decay * logits
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            hat_first, hat_second = first / (1 - 0.9**step), second / (1 - 0.999**step)
            logits = logits - learning_rate * hat_first / (np.sqrt(hat_second) + 1e-8)
        z = np.array(softmax(logits))
        c = 1 / sum(z / (row - minimum_loss))
        weights.append(c * z / (row - minimum_loss))
    return np.array(weights)


def shares(losses, shares_of, ema, largest=1e6, least=1e-7):
    """Returns the weights; `shares_of` maps the number of a step to the shares in that step."""
    count = losses.shape[1]
    weights = [[1.0] * count]
    for step in range(len(losses)):
        ages = range(step, -1, -1)
        total_age = sum(ema**age for age in ages)
        means = [
            sum(ema**age * loss for age, loss in zip(ages, column, strict=False)) / total_age
            for column in losses.T
        ]
        asked = np.array(shares_of(step + 1)) / sum(shares_of(step + 1))
        parts = [max(mean / sum(means), least) for mean in means]
        weights.append([min(asked[i] / parts[i], largest) for i in range(count)])
    return np.array(weights)


def constraint(losses, bounds, learning_rate=0.1, ema=0.9, smallest=1e-6, largest=1e6):
    """Returns the weights; `bounds` maps the index of a term to its bound by step."""
    multipliers = [1.0] * losses.shape[1]
    weights, mean = [list(multipliers)], None
    for step, row in enumerate(losses):
        mean = row if mean is None else ema * mean + (1 - ema) * row
        for i, bound_of in bounds.items():
            bound = bound_of(step)
            excess = (mean[i] - bound) / (abs(bound) or 1.0)
            multipliers[i] *= math.exp(learning_rate * max(-1.0, min(1.0, excess)))
            multipliers[i] = max(smallest, min(largest, multipliers[i]))
        weights.append(list(multipliers))
    return np.array(weights)


class InverseGradient:
    """Weights inverse to a measure of the gradients, step by step, in a moving mean."""

    def __init__(self, count, alpha=0.9, power=None):
        self.alpha, self.power, self.weights = alpha, power, np.ones(count)

    def move(self, losses, lengths):
        """Updates the weights; `lengths` are the gradient lengths of the unweighted losses.

        Without `power`, the measure is the length. Otherwise it is that power of the trace.
        """
        measure = lengths if self.power is None else (lengths**2 / (4 * losses)) ** self.power
        new = sum(measure) / measure
        self.weights = self.alpha * self.weights + (1 - self.alpha) * new


class GradNorm:
    """GradNorm for one model, step by step, with the chain rule through the softmax."""

    def __init__(self, count, alpha=1.5, learning_rate=0.025):
        self.alpha, self.learning_rate = alpha, learning_rate
        self.logits, self.first, self.second = np.zeros((3, count))
        self.initial, self.step = None, 0

    @property
    def weights(self):
        return len(self.logits) * np.array(softmax(self.logits))

    def move(self, losses, lengths):
        """Updates the weights; `lengths` are the gradient lengths of the unweighted losses."""
        self.step += 1
        self.initial = losses if self.initial is None else self.initial
        rate = losses / self.initial / np.mean(losses / self.initial)
        weights, count = self.weights, len(self.logits)
        weighted = weights * lengths
        target = np.mean(weighted) * rate**self.alpha
        # The derivative of the objective by the weights, then by the logits.
        slope = np.sign(weighted - target) * lengths / np.mean(weighted)
        share = weights / count
        slope = count * (np.diag(share) - np.outer(share, share)) @ slope
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope**2
        hat_first = self.first / (1 - 0.9**self.step)
        hat_second = self.second / (1 - 0.999**self.step)
        self.logits = self.logits - self.learning_rate * hat_first / (np.sqrt(hat_second) + 1e-8)
