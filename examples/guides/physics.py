# %% [markdown]
"""
# A differential equation

A network $u(x, y)$ shall solve the Poisson equation on the unit square,

$$u_{xx} + u_{yy} = f \\text{ inside}, \\qquad u = 0 \\text{ on the edge},$$

from points alone (a physics-informed network). The loss has two terms, the squared residual of the
equation inside and the squared value on the edge. The mean of $f^2$ is 97, so that is about where the
residual of a new network starts, far above the values on the edge. How the terms are weighed decides
the error. Here the solution is known, $\\sin(\\pi x) \\sin(\\pi y)$, so that the guide can print the
error of each weighting.
"""

# %%
import keras
import numpy as np
from keras import ops

import keras_jointloss as kj

TERMS = ("edge", "equation")

# %% [markdown]
"""
## Derivatives in the forward pass

Keras has no operation for derivatives with respect to inputs that runs on every backend. The layers
below carry them along: each maps value, gradient and Laplacian of its inputs to those of its outputs
(forward Laplacian; Li et al., 2023). This is exact. With $t = \\tanh(v)$:

$$\\nabla t = t' \\nabla v, \\qquad \\Delta t = t' \\Delta v + t'' |\\nabla v|^2$$
"""


# %%
class Jet(keras.layers.Layer):
    """Maps points `(..., 2)` to `(..., 4, 2)`: value, derivatives in x and y, Laplacian."""

    def call(self, points):
        zeros = ops.zeros_like(points)
        slopes = [zeros + ops.eye(2)[axis] for axis in range(2)]
        return ops.stack([points, *slopes, zeros], axis=-2)


class JetDense(keras.layers.Layer):
    """A dense layer with tanh, or without activation, of values and their derivatives."""

    def __init__(self, units, has_tanh=True, **kwargs):
        super().__init__(**kwargs)
        self.units, self.has_tanh = units, has_tanh

    def build(self, input_shape):
        self.kernel = self.add_weight((input_shape[-1], self.units), name="kernel")
        self.bias = self.add_weight((self.units,), "zeros", name="bias")

    def call(self, jet):
        value, slopes, laplacian = ops.split(ops.matmul(jet, self.kernel), [1, 3], axis=-2)
        value = value + self.bias
        if self.has_tanh:
            value = ops.tanh(value)
            first = 1 - ops.square(value)
            steepness = ops.sum(ops.square(slopes), axis=-2, keepdims=True)
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
- *`Uncertainty`* learns the size of each term along with the model.
- *`Constraint({"edge": 1e-4})`* says what is wanted: the squared error on the edge shall be at most
  1e-4, while the equation keeps weight 1. It needs a number with a meaning, and no search.
- *`mgda`* combines the gradients in the trunk to the shortest one possible, in which that of the
  equation, the longest by far, drowns nothing. It needs no number, and two backward passes.
- *`FAMO`* and *`GeometricMean`* give a loss that can reach 0, as on an edge with $u = 0$, all the
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
EPOCHS = 100
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
"""
The error is relative: the length of the error on a grid of 41 x 41 points over that of the solution.
The total loss cannot tell which row is best: each row minimizes another sum. Compare by what the
terms are for, such as the error on points with known values.

[physics.py](../physics.py) has every rule, a grid of constant weights, and options for seeds.
[Which weighting](weighting.py) compares rules on other data.
"""
