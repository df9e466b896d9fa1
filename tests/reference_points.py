"""The rules that weigh points, step by step, as naive loops in float64.

Each is called with the residuals of a batch, `(batch,)` or `(batch, several)`, the indices of their
points and the further weights, and returns the loss. The weights are in `weights`, one a point.
"""

import math


class Points:
    """Base of the rules: which points a batch has, and the weighted mean."""

    def __init__(self, points):
        self.points = points
        self.weights = [1.0] * points

    def __call__(self, residuals, indices, sample_weights, is_training=True):
        """Returns the loss, and the factor of each squared residual in it."""
        items = []
        for residual, index, weight in zip(residuals, indices, sample_weights, strict=True):
            several = residual if hasattr(residual, "__len__") else [residual]
            items.append((sum(float(r) ** 2 for r in several) / len(several), index, weight))
        if is_training:
            squares = {}
            for square, index, weight in items:
                if weight != 0 and index >= 0 and math.isfinite(square):
                    squares.setdefault(int(index), []).append(square)
            self.update({j: math.sqrt(sum(x) / len(x)) for j, x in squares.items()})
        factors = [w * (self.weights[i] if i >= 0 else 1.0) for _, i, w in items]
        terms = [f * s for f, (s, _, w) in zip(factors, items, strict=True) if w != 0]
        return sum(terms) / len(items), [f / len(items) for f in factors]


class Residual(Points):
    def __init__(self, points, gamma=0.999, eta=0.01, initial=0.0):
        super().__init__(points)
        self.gamma, self.eta = gamma, eta
        self.multipliers = [initial] * points

    def update(self, residuals):
        largest = max(residuals.values(), default=0.0)
        for j, residual in residuals.items():
            share = residual / largest if largest else 0.0
            self.multipliers[j] = self.gamma * self.multipliers[j] + self.eta * share
        self.weights = [x**2 for x in self.multipliers]


class SelfAdaptive(Points):
    def __init__(self, points, learning_rate=0.005, initial=1.0):
        super().__init__(points)
        self.learning_rate = learning_rate
        self.multipliers = [initial] * points
        self.adam = [(0.0, 0.0, 0)] * points

    def update(self, residuals):
        for j, residual in residuals.items():
            gradient = 2 * self.multipliers[j] * residual**2
            first, second, count = self.adam[j]
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient**2
            count += 1
            step = first / (1 - 0.9**count)
            step /= math.sqrt(second / (1 - 0.999**count)) + 1e-8
            self.multipliers[j] += self.learning_rate * step
            self.adam[j] = first, second, count
        self.weights = [x**2 for x in self.multipliers]


class Causal(Points):
    def __init__(self, points, epsilon=1.0, chunks=32, delta=0.99):
        super().__init__(points)
        self.epsilons = list(epsilon) if isinstance(epsilon, list) else [epsilon]
        self.chunks, self.delta = chunks, delta
        self.stage = 0
        self.losses = {}

    def chunk_of(self, j):
        return j * self.chunks // self.points

    def exponents(self):
        found, total = [], 0.0
        for chunk in range(self.chunks):
            found.append(total)
            own = [loss for j, loss in self.losses.items() if self.chunk_of(j) == chunk]
            total += sum(own) / len(own) if own else 0.0
        return found

    def update(self, residuals):
        for j, residual in residuals.items():
            self.losses[j] = residual**2
        exponents = self.exponents()
        smallest = math.exp(-self.epsilons[self.stage] * exponents[-1])
        is_last = self.stage == len(self.epsilons) - 1
        if len(self.losses) == self.points and smallest > self.delta and not is_last:
            self.stage += 1
        epsilon = self.epsilons[self.stage]
        self.weights = [
            math.exp(-epsilon * exponents[self.chunk_of(j)]) for j in range(self.points)
        ]
