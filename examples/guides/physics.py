# %% [markdown]
r"""
# A differential equation

A network $u(x, y)$ shall solve the Poisson equation on the unit square,

$$u_{xx} + u_{yy} = f \text{ inside}, \qquad u = 0 \text{ on the edge},$$

from points alone (a physics-informed network). The loss has two terms, the squared residual of the
equation inside and the squared value on the edge. The mean of $f^2$ is 97, so that is about where the
residual of a new network starts, far above the values on the edge. How the terms are weighed decides
the error. Here the solution is known, $\sin(\pi x) \sin(\pi y)$, so that the guide can print the
error of each weighting. A second problem needs a [weight for each point](#a-weight-for-each-point).
"""

# %%
import keras
import numpy as np
from keras import ops

import keras_jointloss as kj

TERMS = ("edge", "equation")

# %% [markdown]
r"""
## Derivatives in the forward pass

Keras has no operation for derivatives with respect to inputs that runs on every backend. The layers
below carry them along: each maps value, gradient and Laplacian of its inputs to those of its outputs
(forward Laplacian; Li et al., 2023). This is exact. With $t = \tanh(v)$:

$$\nabla t = t' \nabla v, \qquad \Delta t = t' \Delta v + t'' |\nabla v|^2$$
"""


# %%
class Jet(keras.layers.Layer):
    """Maps points `(..., 2)` to `(..., 4, 2)`: value, derivatives in x and y, Laplacian."""

    def call(self, points):
        zeros = ops.zeros_like(points)
        slopes = [zeros + ops.eye(2)[axis] for axis in range(2)]
        return ops.stack([points, *slopes, zeros], axis=-2)


class JetDense(keras.layers.Layer):
    """A dense layer with tanh, or without activation, of values and their derivatives.

    The Laplacian is that of the axes from `first` on.
    """

    def __init__(self, units, has_tanh=True, first=0, **kwargs):
        super().__init__(**kwargs)
        self.units, self.has_tanh, self.first = units, has_tanh, first

    def build(self, input_shape):
        self.kernel = self.add_weight((input_shape[-1], self.units), name="kernel")
        self.bias = self.add_weight((self.units,), "zeros", name="bias")

    def call(self, jet):
        value, slopes, laplacian = ops.split(ops.matmul(jet, self.kernel), [1, 3], axis=-2)
        value = value + self.bias
        if self.has_tanh:
            value = ops.tanh(value)
            first = 1 - ops.square(value)
            steepness = ops.sum(ops.square(slopes[..., self.first :, :]), axis=-2, keepdims=True)
            laplacian = first * laplacian - 2 * value * first * steepness
            slopes = first * slopes
        return ops.concatenate([value, slopes, laplacian], axis=-2)


# %% [markdown]
"""
## Two terms, one trunk

The inputs are points inside with the source $f$, and points on the edge. The edge is the loss of an
output, whose target is 0. The residual needs no target: `LossTerm` adds its square and returns its
first argument unchanged, so that the model contains the layer.

Both kinds of points go through one trunk, each in a call of its own. `SharedTrunk` lets rules compare
what the terms do to its parameters. It combines the gradients of both calls, once in a step:
"""


# %%
def build(aggregator=None):
    """Returns the model for training, and the solution as a model of its own."""
    inside, edge, f = keras.Input((2,)), keras.Input((2,)), keras.Input((1,))
    trunk = keras.Sequential([keras.Input((2,)), Jet(), JetDense(32), JetDense(32)])
    head = JetDense(1, has_tanh=False)
    if aggregator is None:
        jets = {"equation": trunk(inside), "edge": trunk(edge)}
    else:
        shared = kj.layers.SharedTrunk(trunk, TERMS, aggregator)
        jets = {"equation": shared(inside)["equation"], "edge": shared(edge)["edge"]}
    laplacian = head(jets["equation"])[:, 3]  # (batch, 1), the last row of a jet
    value = head(jets["edge"])[:, 0]  # (batch, 1), the first row
    value = kj.layers.LossTerm(name="equation")(value, ops.square(laplacian - f))
    point = keras.Input((2,))
    return (
        keras.Model([inside, edge, f], {"edge": value}),
        keras.Model(point, head(trunk(point))[:, 0]),
    )


def solution(points):
    """Returns u(x, y)."""
    return np.prod(np.sin(np.pi * points), axis=-1)


generator = np.random.default_rng(0)
inside, edge = generator.uniform(size=(2, 1024, 2))
edge[np.arange(1024), generator.integers(2, size=1024)] = generator.integers(2, size=1024)
inside, edge = inside.astype("float32"), edge.astype("float32")
source = (-2 * np.pi**2 * solution(inside))[:, None].astype("float32")
grid = np.stack(np.meshgrid(*2 * [np.linspace(0, 1, 41)]), axis=-1).reshape(-1, 2)

# %% [markdown]
"""
## Which weighting?

- *Equal weights* are the place to start, and what the others have to beat.
- *Constant weights* need a search, and here the known solution, to choose the best.
- `Uncertainty` learns the size of each term along with the model.
- `Constraint({"edge": 1e-4})` says what is wanted: the squared error on the edge shall be at most
  1e-4, while the equation keeps weight 1. It needs a number with a meaning, and no search.
- `mgda` combines the gradients in the trunk to the shortest one possible, in which that of the
  equation, the longest by far, drowns nothing. It needs no number, and two backward passes.
- `FAMO` and `GeometricMean` give a loss that can reach 0, as on an edge with $u = 0$, all the
  weight. `min_weight=0.1` prevents that.
"""

# %%
ways = {
    "equal weights": (1.0, None, None),
    "edge x 100": (100.0, None, None),
    "Uncertainty": (1.0, kj.weighting.Uncertainty(), None),
    "Constraint": (1.0, kj.weighting.Constraint({"edge": 1e-4}), None),
    "mgda": (1.0, None, "mgda"),
}
EPOCHS = 80
print(f"{'':<22}{'error':>8}{'edge, loss':>12}{'equation':>10}{'edge, weight':>14}{'equation':>10}")
for name, (weight, rule, aggregator) in ways.items():
    keras.utils.set_random_seed(0)
    model, u = build(aggregator)
    learning_rate = keras.optimizers.schedules.CosineDecay(0.01, EPOCHS * 1024 // 128)
    joint = kj.joint_loss({"edge": "mean_squared_error"}, {"edge": weight}, weighting=rule)
    model.compile(keras.optimizers.Adam(learning_rate), **joint)
    options = {"batch_size": 128, "epochs": EPOCHS, "verbose": 0}
    callback = kj.callbacks.JointLossCallback()
    target = {"edge": np.zeros((1024, 1))}
    logs = model.fit([inside, edge, source], target, callbacks=[callback], **options).history
    predicted = u.predict(grid.astype("float32"), batch_size=len(grid), verbose=0)[:, 0]
    error = np.linalg.norm(predicted - solution(grid)) / np.linalg.norm(solution(grid))
    losses, weights = ([logs[f"{term}_{x}"][-1] for term in TERMS] for x in ("loss", "weight"))
    cells = f"{losses[0]:>12.1e}{losses[1]:>10.1e}{weights[0]:>14.2f}{weights[1]:>10.2f}"
    print(f"{name:<22}{error:>8.4f}{cells}")

# %% [markdown]
r"""
The error is relative: the length of the error on a grid of 41 x 41 points over that of the solution.
The total loss cannot tell which row is best: each row minimizes another sum. Compare by what the
terms are for, such as the error on points with known values.

[physics.py](../physics.py) has every rule, a grid of constant weights, and options for seeds.
[Which weighting](weighting.py) compares rules on other data.

## A weight for each point

A term can be small because the equation holds almost everywhere, and the solution still be wrong:
where it does not hold decides. The Allen-Cahn equation is the usual example,

$$u_t = 10^{-4} u_{xx} + 5 (u - u^3), \qquad u(0, x) = x^2 \cos(\pi x),$$

periodic in $x$ from -1 to 1, for $t$ from 0 to 1. A network that errs early in time solves the
equation from its wrong state on: only a few points have a residual at all.
`PointWeights(points, rule)` adds the squared residuals as a term, each with a weight of its point,
which it keeps by the index of the point in the data:

- `"residual"`: points whose residual stays large weigh more (residual-based attention).
- `"causal"`: a time counts once the equation holds at earlier times. The points are sorted in time.
- `"self_adaptive"`: multipliers that are trained against the network.

The network sees $x$ as waves, so that it is periodic, and is multiplied by $t$, so that the start is
exact. Of the jets, this time only $u_{xx}$ is the second derivative.
"""

# %%
POINTS, WAVES = 2048, 4


class WaveJet(keras.layers.Layer):
    """Maps points `(..., 2)`, t and x, to waves: value, derivatives in t and x, the second in x."""

    def call(self, points):
        t, x = points[..., :1], points[..., 1:]
        k = np.pi * ops.arange(1, WAVES + 1, dtype="float32")
        cosine, sine, one = ops.cos(k * x), ops.sin(k * x), ops.ones_like(t)
        zero, zeros = ops.zeros_like(t), ops.zeros_like(cosine)
        rows = [[t, cosine, sine], [one, zeros, zeros]]
        rows += [[zero, -k * sine, k * cosine], [zero, -k * k * cosine, -k * k * sine]]
        return ops.stack([ops.concatenate(row, axis=-1) for row in rows], axis=-2)


def build_allen_cahn(rule):
    """Returns the model for training, and the solution as a model of its own."""
    points, index = keras.Input((2,)), keras.Input((), dtype="int32")
    network = keras.Sequential([keras.Input((2,)), WaveJet()])
    for _ in range(3):
        network.add(JetDense(32, first=1))
    network.add(JetDense(1, has_tanh=False, first=1))
    jet, t, x = network(points), points[:, :1], points[:, 1:]
    n, n_t, n_xx = jet[:, 0], jet[:, 1], jet[:, 3]
    cosine, sine = ops.cos(np.pi * x), ops.sin(np.pi * x)
    u, u_t = x**2 * cosine + t * n, n + t * n_t
    u_xx = (2 - np.pi**2 * x**2) * cosine - 4 * np.pi * x * sine + t * n_xx
    residual = u_t - 1e-4 * u_xx - 5 * (u - u**3)
    if rule is None:
        output = kj.layers.LossTerm(name="equation")(u, ops.square(residual))
    else:
        output = kj.layers.PointWeights(POINTS, rule, name="equation")(u, residual, index)
    return keras.Model([points, index], output), keras.Model(points, u)


# %% [markdown]
"""
The error is relative to a solution by Strang's splitting: in each of 2,000 short steps the waves decay
for half the step, the values react for the step, and the waves decay again, all of it exactly.
"""


# %%
def split_steps(times, places=512, steps=2000):
    """Returns places, and the solution at them at equally distant times from 0 to 1."""
    x = np.linspace(-1, 1, places, endpoint=False)
    wave, growth = np.pi * np.fft.rfftfreq(places, 1 / places), np.exp(5 / steps)
    decay = np.exp(-1e-4 * wave**2 / (2 * steps))
    found = [x**2 * np.cos(np.pi * x)]
    for _ in range(steps):
        u = np.fft.irfft(decay * np.fft.rfft(found[-1]), places)
        u = u * growth / np.sqrt(1 + u**2 * (growth**2 - 1))
        found.append(np.fft.irfft(decay * np.fft.rfft(u), places))
    return x, np.array(found[:: steps // (times - 1)])


generator = np.random.default_rng(0)
t, x = generator.uniform(0, 1, POINTS), generator.uniform(-1, 1, POINTS)
points, index = np.stack([np.sort(t), x], axis=1).astype("float32"), np.arange(POINTS)
places, exact = split_steps(21)
grid = np.stack(np.meshgrid(np.linspace(0, 1, 21), places, indexing="ij"), axis=-1)
grid = grid.reshape(-1, 2).astype("float32")

ways = {"equal weights": None, "causal": kj.points.Causal(epsilon=10.0)}
EPOCHS = 128
print(f"\n{'':<22}{'error':>8}{'mean squared residual':>24}")
for name, rule in ways.items():
    keras.utils.set_random_seed(0)
    model, u = build_allen_cahn(rule)
    learning_rate = keras.optimizers.schedules.CosineDecay(0.01, EPOCHS * 8, alpha=0.02)
    model.compile(keras.optimizers.Adam(learning_rate))
    callback = kj.callbacks.JointLossCallback()
    options = {"batch_size": 256, "epochs": EPOCHS, "verbose": 0}
    logs = model.fit([points, index], callbacks=[callback], **options).history
    predicted = u.predict(grid, batch_size=len(grid), verbose=0).reshape(exact.shape)
    error = np.linalg.norm(predicted - exact) / np.linalg.norm(exact)
    residual = logs["equation_loss" if rule is None else "equation_value"][-1]
    print(f"{name:<22}{error:>8.4f}{residual:>24.1e}")
    if name == "causal":
        smallest = logs["equation_min_weight"]
        print("smallest weight:", *np.round(smallest[:: EPOCHS // 8], 3))

# %% [markdown]
"""
With equal weights the mean squared residual is small, and the solution wrong. With causal weights the
error is a fraction of that after the same 1,024 steps: the smallest weight shows how the equation comes
to hold at the last times, too. [allen_cahn.py](../allen_cahn.py) trains on 4,096 points for 10,000
steps, where `"residual"` is best:

| weights of the points | error after 1,000 steps | 5,000 | 10,000 |
|---|---|---|---|
| equal | 0.538 | 0.524 | 0.522 |
| `Residual(gamma=0.99, eta=0.1)` | 0.526 | 0.063 | 0.030 |
| `Causal(epsilon=10)` | 0.100 | 0.060 | 0.043 |
| `SelfAdaptive()` | 0.544 | 0.511 | 0.494 |

Published errors of this equation are 0.52 for a plain network, 0.0016 with Fourier features and
several other means, and 0.00058 with causal weights beside them, each after a quarter of an hour on a
GPU (jaxpi; Wang et al., 2023); with residual-based attention they are of the order of 0.00001
(Anagnostopoulos et al., 2023). Here a network of 2,500 parameters trains for seconds.

- The points stay the same, with an index each as a further input of the model. For points that are
  drawn anew for each batch, give `Causal` chunks of time: `PointWeights(32, kj.points.Causal())`,
  with the index of the chunk as that of the point.
- Points for validation have no weight: give them the index -1. `<name>_value` in the logs is the mean
  squared residual without weights.
- With the start as a term of its own, of weight 100, the error stayed above 0.4 in a trial of 10,000
  steps with each of these weights of points: build into the network what you know exactly.
"""
