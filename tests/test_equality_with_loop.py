"""Stock `fit` and a manual loop with the same joint loss produce the same weights."""

import functools
import importlib
import math
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import PolynomialDecay

import keras_jointloss as kj
from tests.backends import BACKEND, jax, once_compiled, tf, torch
from tests.comparisons import assert_all_close

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
BATCH = 8
EPOCHS = 2
STEPS = 20  # In both epochs together.
ITEMS = BATCH * STEPS // EPOCHS
HELD_OUT = 12
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.1),
    "adam": lambda: keras.optimizers.Adam(0.003),
}
# 20 steps change a weight by at least 0.01; near 0, the order of summation matters.
TOLERANCES = {"float64": {"rtol": 1e-6, "atol": 1e-8}, "float32": {"rtol": 1e-4, "atol": 1e-6}}
if BACKEND != "tensorflow":
    # Keras computes some float64 operations in float32: `ops.mean` on JAX, `ops.matmul` on
    # PyTorch. Adam amplifies the error where a gradient is small.
    TOLERANCES["float64"] = TOLERANCES["float32"]

OPTIONS = {"batch_size": BATCH, "epochs": EPOCHS, "shuffle": False, "verbose": 0}
# Weights as schedules, and as formulas for the loop, which uses no schedules.
SCHEDULES = {
    "polynomial": (
        PolynomialDecay(1.0, 15, 0.25, power=2.0),
        lambda step: 0.25 + 0.75 * (1 - min(step, 15) / 15) ** 2,
    ),
    "sigmoid": (
        kj.schedules.Sigmoid(0.1, 0.8, midpoint=9, width=2),
        lambda step: 0.1 + 0.7 / (1 + math.exp((9 - step) / 2)),
    ),
    "cyclical": (
        kj.schedules.Cyclical(0.0, 0.6, cycle_steps=6),
        lambda step: min(0.6, 0.2 * (step % 6)),
    ),
    "sequential": (
        kj.schedules.Sequential([0.5, kj.schedules.Linear(0.5, 1.0, steps=8)], boundaries=[7]),
        lambda step: 0.5 + 0.5 * min(max(step - 7, 0), 8) / 8,
    ),
}
# Pairs of schedules for the two terms of an example; `None` for the example's own weights.
PAIRS = (None, ("polynomial", "sigmoid"), ("cyclical", "sequential"))
# Example, schedules, floatx and optimizer. add_loss has layer terms, the other examples have output
# terms.
CASES = [
    ("weighted_sum", None, "float64", "adam"),
    pytest.param("explicit_weights", PAIRS[0], "float64", "adam", marks=once_compiled),
    ("explicit_weights", PAIRS[2], "float64", "adam"),
    pytest.param("add_loss", PAIRS[0], "float64", "adam", marks=once_compiled),
    ("add_loss", PAIRS[1], "float64", "adam"),
    ("explicit_weights", PAIRS[1], "float32", "sgd"),
    ("add_loss", PAIRS[2], "float32", "sgd"),
]


@pytest.fixture(autouse=True)
def import_examples(monkeypatch):
    """Makes the examples importable."""
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def floatx(request):
    """Sets the default float dtype of Keras during the test."""
    before = keras.config.floatx()
    set_floatx(request.param)
    yield request.param
    set_floatx(before)


def set_floatx(floatx):
    keras.config.set_floatx(floatx)
    if BACKEND == "jax":
        jax.config.update("jax_enable_x64", floatx == "float64")


def data_of(example, floatx):
    """Returns inputs and targets by name: a few real items with small images."""
    emoji, _ = importlib.import_module("explicit_weights").load_emoji_with_targets(dim=6)
    emoji["image"] = emoji["image"][:, ::4, ::4]  # (emoji, 8, 8, 3)
    if example == "weighted_sum":
        x, y = importlib.import_module("weighted_sum").make_pairs(emoji)
    else:
        x = {name: emoji[name] for name in ("image", "words")}
        y = {"image": emoji["target"], "text": emoji["target"]}
    order = np.random.default_rng(1).permutation(len(x["image"]))[: ITEMS + HELD_OUT]

    def select(values):
        return values[order].astype(floatx if values.dtype.kind == "f" else values.dtype)

    return keras.tree.map_structure(select, (x, y))


def model_of(example, x, y, optimizer="sgd", **weights):
    """Returns a small version of the example's compiled model with fixed initial weights."""
    keras.utils.set_random_seed(5)
    arguments = {} if example == "weighted_sum" else {"dim": y["image"].shape[1]}
    return importlib.import_module(example).build_model(
        image_shape=x["image"].shape[1:],
        vocabulary_size=x["words"].shape[1],
        filters=(4,),
        optimizer=optimizer,
        **arguments,
        **weights,
    )


def values_of(model):
    return [ops.convert_to_numpy(variable) for variable in model.trainable_variables]


def fit(example, schedules, floatx, optimizer):
    """Returns the trainable weights before and after `fit`."""
    x, y = data_of(example, floatx)
    weights = {}
    if schedules is not None:
        terms = importlib.import_module(example).WEIGHTS
        pairs = zip(terms, schedules, strict=True)
        weights["weights"] = {term: SCHEDULES[schedule][0] for term, schedule in pairs}
    model = model_of(example, x, y, optimizer, **weights)
    before = values_of(model)
    data = ({**x, "target": y["image"]},) if example == "add_loss" else (x, y)
    model.fit(
        *keras.tree.map_structure(lambda values: values[:ITEMS], data),
        # Validation between the epochs must change nothing.
        validation_data=keras.tree.map_structure(lambda values: values[ITEMS:], data),
        callbacks=[kj.callbacks.JointLossCallback()],
        **OPTIONS,
    )
    return list(zip(before, values_of(model), strict=True))


@functools.cache
def loop(example, schedules, floatx, optimizer_name):
    """Returns the trainable weights before and after a loop over the same batches."""
    x, y = data_of(example, floatx)
    model = model_of(example, x, y)  # Only for the forward pass: the loop computes the loss.
    before = values_of(model)
    terms = importlib.import_module(example).WEIGHTS
    if schedules is None:
        formulas = [lambda step, weight=weight: weight for weight in terms.values()]
    else:
        formulas = [SCHEDULES[schedule][1] for schedule in schedules]
    optimizer = OPTIMIZERS[optimizer_name]()
    for step in range(STEPS):
        start = BATCH * step % ITEMS
        batch = slice(start, start + BATCH)
        x_batch = {name: values[batch] for name, values in x.items()}
        y_batch = {name: ops.convert_to_tensor(values[batch]) for name, values in y.items()}
        loss = functools.partial(total, example, y_batch, [formula(step) for formula in formulas])
        gradient_step(model, optimizer, x_batch, loss)
    return list(zip(before, values_of(model), strict=True))


def total(example, y, weights, outputs):
    """Returns the joint loss from its formula."""
    if example == "weighted_sum":
        a, b = outputs["match"][:, 0], outputs["match"][:, 1]
        similarity = ops.sum(a * b, axis=1)
        pull, push = ops.maximum(1 - similarity, 0), ops.maximum(similarity, 0)
        probabilities = ops.exp(outputs["category"])
        probabilities = probabilities / ops.sum(probabilities, axis=1, keepdims=True)
        probabilities = ops.take_along_axis(probabilities, y["category"][:, None], axis=1)
        terms = [
            ops.mean(y["match"] * pull + (1 - y["match"]) * push),
            -ops.mean(ops.log(probabilities)),
        ]
    else:
        terms = [ops.mean((outputs[name] - y[name]) ** 2) for name in ("image", "text")]
    return weights[0] * terms[0] + weights[1] * terms[1]


def gradient_step(model, optimizer, x, loss):
    """Takes one step down the gradient of `loss(outputs)`, idiomatically for each backend."""
    variables = model.trainable_variables
    if BACKEND == "tensorflow":
        with tf.GradientTape() as tape:
            value = loss(model(x, training=True))
        optimizer.apply(tape.gradient(value, variables), variables)
    elif BACKEND == "jax":
        others = [variable.value for variable in model.non_trainable_variables]

        def loss_of(values):
            return loss(model.stateless_call(values, others, x, training=True)[0])

        optimizer.apply(jax.grad(loss_of)([variable.value for variable in variables]), variables)
    else:
        model.zero_grad()
        loss(model(x, training=True)).backward()
        with torch.no_grad():
            optimizer.apply([variable.value.grad for variable in variables], variables)


@pytest.mark.parametrize(
    ("example", "schedules", "floatx", "optimizer_name"),
    CASES,
    ids=lambda value: value if isinstance(value, str) else "-".join(value or ["constant"]),
    indirect=["floatx"],
)
def test_fit_equals_loop(example, schedules, floatx, optimizer_name):
    fitted = fit(example, schedules, floatx, OPTIMIZERS[optimizer_name]())
    # The loop has no layer terms, but add_loss has the same joint loss as explicit_weights.
    looped_example = "explicit_weights" if example == "add_loss" else example
    looped = loop(looped_example, schedules, floatx, optimizer_name)
    for (start, end), (looped_start, looped_end) in zip(fitted, looped, strict=True):
        np.testing.assert_array_equal(start, looped_start)
        assert end.dtype == floatx
        assert np.abs(end - start).max() > 1e-3
        np.testing.assert_allclose(end, looped_end, **TOLERANCES[floatx])


def targets(floatx, is_complete):
    """Returns items with a target of two numbers, of which some may be missing."""
    generator = np.random.default_rng(2)
    x, y = (generator.normal(size=(ITEMS, size)).astype(floatx) for size in (3, 2))
    return x, y if is_complete else np.where(generator.random(y.shape) < 0.4, np.nan, y)


def model_with_one_output():
    keras.utils.set_random_seed(5)
    inputs = keras.Input((3,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    return keras.Model(inputs, {"mask": keras.layers.Dense(2)(hidden)})


@pytest.mark.parametrize("is_complete", [True, False], ids=["complete", "missing"])
@pytest.mark.parametrize("floatx", ["float64"], indirect=True)
def test_fit_with_several_losses_on_an_output_equals_loop(floatx, is_complete):
    x, y = targets(floatx, is_complete)
    names = ("polynomial", "sigmoid")
    model = model_with_one_output()
    losses = {"mask": {"square": "mse", "absolute": keras.losses.MeanAbsoluteError()}}
    terms = [f"mask_{part}" for part in losses["mask"]]
    weights = {term: SCHEDULES[name][0] for term, name in zip(terms, names, strict=True)}
    missing = None if is_complete else math.nan
    model.compile(OPTIMIZERS["adam"](), **kj.joint_loss(losses, weights, missing=missing))
    model.fit(x, {"mask": y}, callbacks=[kj.callbacks.JointLossCallback()], **OPTIONS)

    looped, optimizer = model_with_one_output(), OPTIMIZERS["adam"]()
    for step in range(STEPS):
        start = BATCH * step % ITEMS
        target = y[start : start + BATCH]
        rows, columns = np.nonzero(~np.isnan(target))
        chosen = ops.convert_to_tensor(target[rows, columns])
        square, absolute = (SCHEDULES[name][1](step) for name in names)

        def loss(outputs, indices=2 * rows + columns, square=square, absolute=absolute, y=chosen):
            error = ops.take(ops.reshape(outputs["mask"], (-1,)), indices) - y
            return square * ops.mean(error**2) + absolute * ops.mean(ops.abs(error))

        gradient_step(looped, optimizer, x[start : start + BATCH], loss)
    assert_all_close(values_of(model), values_of(looped), **TOLERANCES[floatx])


def model_with_loss_terms(polynomial, sigmoid):
    """Returns a model with an output term, a penalty and a loss between two layers."""
    keras.utils.set_random_seed(5)
    inputs, weight = keras.Input((3,), name="x"), keras.Input((), name="weight")
    keep = keras.Input((), dtype="bool", name="keep")
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    label, hint = keras.layers.Dense(2)(hidden), keras.layers.Dense(2)(hidden)
    energy = kj.layers.LossTerm(weight=polynomial, name="energy")
    kept = energy(hidden, ops.square(hidden), sample_weight=weight, values_mask=keep)
    agree = kj.layers.LossTerm("huber", weight=sigmoid, name="agree")
    outputs = {"label": agree(label, hint), "hint": hint, "hidden": kept}
    return keras.Model({"x": inputs, "weight": weight, "keep": keep}, outputs)


@pytest.mark.parametrize("floatx", ["float64"], indirect=True)
def test_fit_with_loss_terms_equals_loop(floatx):
    x, y = targets(floatx, is_complete=True)
    generator = np.random.default_rng(3)
    weight = generator.integers(0, 3, ITEMS).astype(floatx)
    data = {"x": x, "weight": weight, "keep": generator.random(ITEMS) < 0.7}
    names = ("polynomial", "sigmoid")
    model = model_with_loss_terms(*(SCHEDULES[name][0] for name in names))
    model.compile(OPTIMIZERS["adam"](), **kj.joint_loss({"label": "mse"}))
    y_fit = dict.fromkeys(("label", "hint"), y) | {"hidden": np.zeros((ITEMS, 4), floatx)}
    model.fit(data, y_fit, callbacks=[kj.callbacks.JointLossCallback()], **OPTIONS)

    looped, optimizer = model_with_loss_terms(1.0, 1.0), OPTIMIZERS["adam"]()
    for step in range(STEPS):
        start = BATCH * step % ITEMS
        batch = {name: values[start : start + BATCH] for name, values in data.items()}
        target = ops.convert_to_tensor(y[start : start + BATCH])
        factor = ops.convert_to_tensor(batch["weight"] * batch["keep"] / batch["keep"].sum())
        energy, agree = (SCHEDULES[name][1](step) for name in names)

        def loss(outputs, factor=factor, energy=energy, agree=agree, y=target):
            squares = ops.mean(outputs["hidden"] ** 2, axis=-1)
            error = ops.abs(outputs["label"] - outputs["hint"])
            huber = ops.where(error < 1, error**2 / 2, error - 0.5)
            fit = ops.mean((outputs["label"] - y) ** 2)
            return fit + energy * ops.sum(factor * squares) + agree * ops.mean(huber)

        gradient_step(looped, optimizer, batch, loss)
    assert_all_close(values_of(model), values_of(looped), **TOLERANCES[floatx])
