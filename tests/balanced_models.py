"""A small model whose trunk combines the gradients of two terms, and the same network in NumPy."""

import keras
import numpy as np
from keras import ops

import keras_jointloss as kj
from tests.gradients import dtypes
from tests.jacobians import combine, to_float64

GENERATOR = np.random.default_rng(5)
BATCH, DIM, TERMS = 6, 4, ("a", "b", "c")
Z = GENERATOR.normal(size=(BATCH, DIM))
# The losses of the terms are linear in z, with these gradients.
GRADIENTS = GENERATOR.normal(size=(len(TERMS), BATCH, DIM))
X = GENERATOR.normal(size=(40, 5))
Y = {"a": GENERATOR.normal(size=(40, 2)), "b": GENERATOR.normal(size=(40, 1))}
FIRST = X[:8], {term: y[:8] for term, y in Y.items()}
LOSSES = dict.fromkeys("ab", "mean_squared_error")


def build(aggregator, weights=None, floatx="float32", layer="balancer", trunk=None, **options):
    """Returns a compiled model with a layer of this name: `"balancer"` or `"shared"`."""
    keras.config.set_floatx(floatx)
    keras.utils.set_random_seed(2)
    trunk = trunk or keras.layers.Dense(4, name="trunk")
    inputs = keras.Input((5,))
    if layer == "shared":
        z = kj.layers.SharedTrunk(trunk, ["a", "b"], aggregator, name=layer)(inputs)
    else:
        z = kj.layers.GradientBalancer(["a", "b"], aggregator, name=layer)(trunk(inputs))
    return with_heads(inputs, z, weights, **options)


def with_heads(inputs, z, weights=None, weighting=None, **options):
    """Returns a compiled model with heads for the terms `a` and `b`."""
    dtype = keras.config.floatx()  # The dtype of the losses, even in mixed precision.
    outputs = {
        "a": keras.layers.Dense(2, name="head_a", dtype=dtype)(z["a"]),
        "b": keras.layers.Dense(1, name="head_b", dtype=dtype)(z["b"]),
    }
    model = keras.Model(inputs, outputs)
    joint = kj.joint_loss(LOSSES, weights=weights, weighting=weighting)
    model.compile(keras.optimizers.SGD(0.02), **joint, **options)
    return model


def compile_again(model, **options):
    """Compiles a model with other options of the optimizer."""
    options = {"learning_rate": 0.02, **options}
    model.compile(keras.optimizers.SGD(**options), **kj.joint_loss(LOSSES))
    return model


def fit(model, epochs=4, callbacks=(), x=X, y=Y):
    options = {"batch_size": 8, "epochs": epochs, "shuffle": False, "verbose": 0}
    return model.fit(x, y, callbacks=list(callbacks), **options)


def train(model, epochs=1, x=X, y=Y, **arguments):
    """Returns what `fit` returns, with a callback that logs the statistics of the gradients."""
    return fit(model, epochs, [kj.callbacks.JointLossCallback(**arguments)], x, y)


def weights_of(model):
    """Returns the trainable weights by layer name and index."""
    return {
        f"{layer.name}_{index}": ops.convert_to_numpy(value)
        for layer in model.layers
        for index, value in enumerate(
            x for x in layer.trainable_variables if not x.overwrite_with_gradient
        )
    }


def by_hand_step(values, rows, term_weights):
    """Returns each term's gradient at z and the gradients of the heads, in float64 NumPy."""
    trunk = "trunk" if "trunk_0" in values else "shared"
    z = X[rows] @ values[f"{trunk}_0"] + values[f"{trunk}_1"]
    gradients, updates = [], {}
    for term in "ab":
        kernel, bias = values[f"head_{term}_0"], values[f"head_{term}_1"]
        error = z @ kernel + bias - Y[term][rows]
        slope = term_weights[term] * 2 * error / error.size
        gradients.append(slope @ kernel.T)
        updates[f"head_{term}_0"], updates[f"head_{term}_1"] = z.T @ slope, slope.sum(axis=0)
    return gradients, updates


def of_trunk(x, gradient):
    """Returns the gradients of the kernel and the bias of the trunk."""
    return x.T @ gradient, gradient.sum(axis=0)


def of_parameters(x, gradient):
    """Returns the gradient of all parameters of the trunk."""
    return np.concatenate([part.ravel() for part in of_trunk(x, gradient)])


def by_hand(model, aggregator, term_weights, steps=20):
    """Trains the same network in float64 NumPy.

    Returns:
        The weights, and the gradients of the terms in all steps: at z, or for the parameters of a
        `SharedTrunk`.
    """
    values = {name: value.astype("float64") for name, value in weights_of(model).items()}
    is_shared = "shared_0" in values
    found, state = [], None
    for step in range(steps):
        rows = slice(8 * (step % 5), 8 * (step % 5 + 1))
        at_z, updates = by_hand_step(values, rows, term_weights)
        jacobian = [of_parameters(X[rows], g) if is_shared else g.ravel() for g in at_z]
        jacobian = np.stack(jacobian)
        if aggregator.state_rows(2):
            gramian = ops.convert_to_tensor(jacobian @ jacobian.T, dtypes()[-1])
            w, state = aggregator.solve_next(gramian, state, step=step)
            combined = to_float64(w) @ jacobian
        else:
            combined = combine(aggregator, jacobian, dtypes()[-1], step)
        if is_shared:
            updates["shared_0"], updates["shared_1"] = combined[:20].reshape(5, 4), combined[20:]
        else:
            combined = combined.reshape(at_z[0].shape)
            updates["trunk_0"], updates["trunk_1"] = of_trunk(X[rows], combined)
        values = {name: value - 0.02 * updates[name] for name, value in values.items()}
        found.append(jacobian)
    return values, np.array(found)
