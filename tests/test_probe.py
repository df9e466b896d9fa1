"""`kj.probe`: equal to a loop by hand, on data of every kind, and nothing changes."""

import random
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.probing import measurement
from tests.backends import BACKEND, jax, tf, torch, values_only
from tests.summaries import read_scalars

GENERATOR = np.random.default_rng(3)
X = GENERATOR.normal(size=(48, 5))
Y = {"a": GENERATOR.normal(size=(48, 2)), "b": GENERATOR.normal(size=(48, 1))}
WEIGHTS = {"a": GENERATOR.uniform(size=48), "b": GENERATOR.uniform(size=48)}
LOSSES = dict.fromkeys("ab", "mean_squared_error")
SIZE = 8


@pytest.fixture
def float64():
    """Computes in float64 during the test."""
    keras.config.set_floatx("float64")
    if BACKEND == "jax":
        jax.config.update("jax_enable_x64", True)
    yield
    keras.config.set_floatx("float32")
    if BACKEND == "jax":
        jax.config.update("jax_enable_x64", False)


def build(combine=None, weights=None, weighting=None, optimizer=None, **options):
    """Returns a compiled model with the outputs `a` and `b`, and a layer term `size`."""
    keras.utils.set_random_seed(4)
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(4, activation="tanh", name="trunk")(inputs)
    hidden = kj.layers.LossTerm(name="size", weight=0.5)(hidden, ops.square(hidden))
    z = dict.fromkeys("ab", hidden) if combine is None else combine(hidden)
    dtype = keras.config.floatx()
    outputs = {
        "a": keras.layers.Dense(2, name="a", dtype=dtype)(z["a"]),
        "b": keras.layers.Dense(1, name="b", dtype=dtype)(z["b"]),
    }
    model = keras.Model(inputs, outputs)
    joint = kj.joint_loss(LOSSES, weights, weighting)
    model.compile(optimizer or keras.optimizers.Adam(0.01), **joint, **options)
    return model


def values_of(model):
    """Returns the values of the parameters in float64 by name."""
    return {
        f"{layer.name}_{i}": ops.convert_to_numpy(ops.cast(x, "float32")).astype("float64")
        if x.dtype != "float64"
        else ops.convert_to_numpy(x)
        for layer in model.layers
        for i, x in enumerate(layer.trainable_variables)
    }


def by_hand(values, x, y, sample_weight=None):
    """Returns the losses of a batch, and the gradients of each term by parameter."""
    h = np.tanh(x @ values["trunk_0"] + values["trunk_1"])
    losses, gradients = {}, {}

    def of_trunk(at_h):
        at_input = at_h * (1 - h**2)
        return {"trunk_0": x.T @ at_input, "trunk_1": at_input.sum(axis=0)}

    for term in "ab":
        kernel, bias = values[f"{term}_0"], values[f"{term}_1"]
        error = h @ kernel + bias - y[term]
        weight = np.ones(len(x)) if sample_weight is None else sample_weight[term]
        losses[term] = np.mean(weight[:, None] * error**2)
        slope = 2 * weight[:, None] * error / error.size
        own = {f"{term}_0": h.T @ slope, f"{term}_1": slope.sum(axis=0)}
        gradients[term] = {**own, **of_trunk(slope @ kernel.T)}
    losses["size"] = np.mean(h**2)
    gradients["size"] = of_trunk(2 * h / h.size)
    return losses, gradients


def statistics(batches):
    """Returns what a probe measures, by name, from the losses and gradients of batches."""
    terms = list(batches[0][0])
    names = sorted({name for _, found in batches for own in found.values() for name in own})

    def vector(gradient, keys=names):
        zeros = {name: np.zeros(1) for name in keys}
        return np.concatenate([np.ravel({**zeros, **gradient}[name]) for name in keys])

    found = {key: {} for key in ("loss", "norm", "shared_norm", "noise", "signal")}
    shared = ["trunk_0", "trunk_1"]
    for term in terms:
        own = sorted(batches[0][1][term])
        g = np.stack([vector(gradients[term], own) for _, gradients in batches])
        at_trunk = np.stack([vector(gradients[term], shared) for _, gradients in batches])
        found["loss"][term] = np.mean([losses[term] for losses, _ in batches])
        found["norm"][term] = np.linalg.norm(g, axis=1).mean()
        found["shared_norm"][term] = np.linalg.norm(at_trunk, axis=1).mean()
        mean = g.mean(axis=0)
        variance = np.sum((g - mean) ** 2) / (len(g) - 1)
        found["noise"][term] = np.sqrt(variance) / np.linalg.norm(mean)
        sums = [g[i] @ g[:i].sum(axis=0) for i in range(1, len(g))]
        found["signal"][term] = np.sum(sums) / np.linalg.norm(sums)
    found["cosine"], found["cosine_error"], found["conflict"] = {}, {}, {}
    for i, a in enumerate(terms):
        for b in terms[i + 1 :]:
            of_both = [[vector(gradients[x], shared) for x in (a, b)] for _, gradients in batches]
            cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in of_both]
            found["cosine"][a, b] = np.mean(cosines)
            found["cosine_error"][a, b] = np.std(cosines, ddof=1) / np.sqrt(len(cosines))
            found["conflict"][a, b] = np.mean(np.array(cosines) < 0)
    return found


def assert_state(state, expected, rel):
    for name, values in expected.items():
        assert dict(getattr(state, name)) == pytest.approx(values, rel=rel, abs=rel), name


def batches_by_hand(model, sample_weight=None):
    """Returns what `by_hand` does for the batches that a probe takes from the whole data."""
    order = np.random.default_rng((0, 0)).permutation(len(X))
    rows = [order[i : i + SIZE] for i in range(0, len(X), SIZE)]
    values, weight = values_of(model), sample_weight or {}
    return [
        by_hand(
            values,
            X[r],
            {k: y[r] for k, y in Y.items()},
            {k: w[r] for k, w in weight.items()} or None,
        )
        for r in rows
    ]


COMBINE = {
    "plain": None,
    "balancer": lambda z: kj.layers.GradientBalancer(["a", "b"], "mgda", name="balancer")(z),
}


@pytest.mark.parametrize("on_accelerator", [False, True])
@pytest.mark.parametrize("combine", COMBINE)
def test_statistics_equal_a_loop_in_float64(float64, combine, on_accelerator, monkeypatch):
    # Where the step itself computes the sums.
    monkeypatch.setattr(measurement, "is_on_accelerator", lambda x: on_accelerator)
    model = build(COMBINE[combine], weights={"a": 0.0, "b": 3.0})
    found = kj.probe(model, X, Y, WEIGHTS, SIZE, warmup_epochs=0, verbose=0)
    assert found.terms == ["a", "b", "size"]
    assert found.batches == 6
    expected = statistics(batches_by_hand(model, WEIGHTS))
    assert_state(found, expected, 1e-6)
    norms = expected["shared_norm"]
    total = 3 * norms["b"] + 0.5 * norms["size"]
    assert found.share == pytest.approx(
        {"a": 0, "b": 3 * norms["b"] / total, "size": 1 - 3 * norms["b"] / total}
    )
    assert found.layers == {"a": ["trunk", "a"], "b": ["trunk", "b"], "size": ["trunk"]}
    assert found.shared_layers["a"] == {"b": ["trunk"], "size": ["trunk"]}
    assert found.cosine["b", "a"] == found.cosine["a", "b"]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_gradients_of_mixed_precision_are_unscaled(policy):
    keras.config.set_dtype_policy(policy)
    model = build()
    found = kj.probe(model, X, Y, batch_size=SIZE, warmup_epochs=0, verbose=0)
    expected = statistics(batches_by_hand(model))
    for name in ("loss", "norm", "shared_norm"):
        assert getattr(found, name) == pytest.approx(expected[name], rel=0.03), name


# What changes in training: dropout, statistics, a memory, a rule, a schedule, a metric.


def build_with_state():
    keras.utils.set_random_seed(7)
    inputs = keras.Input((5,))
    hidden = keras.layers.Dense(6, activation="relu")(inputs)
    hidden = keras.layers.BatchNormalization()(keras.layers.Dropout(0.3)(hidden))
    pair = keras.layers.Dense(3)(hidden)
    term = kj.layers.ContrastiveTerm(kj.losses.InfoNCE(), memory_size=32, name="pair")
    pair, _ = term((pair, keras.layers.Dense(3)(hidden)))
    outputs = {
        "a": keras.layers.Dense(2, name="a")(keras.layers.Concatenate()([hidden, pair])),
        "b": keras.layers.Dense(1, name="b")(hidden),
    }
    model = keras.Model(inputs, outputs)
    weights = {"a": kj.schedules.Linear(0.2, 1.0, 10), "b": 1.0}
    joint = kj.joint_loss(LOSSES, weights, kj.weighting.Uncertainty(), metrics={"b": "mae"})
    model.compile(keras.optimizers.Adam(0.01), **joint)
    return model


def train(model, epochs=1):
    callbacks = [kj.callbacks.JointLossCallback()]
    fitted = model.fit(X, Y, batch_size=16, epochs=epochs, verbose=0, callbacks=callbacks)
    return fitted.history


def everything(model):
    """Returns all variables, and their values."""
    variables = {id(x): x for x in [*model.variables, *model.metrics_variables]}
    variables |= {id(x): x for x in model.optimizer.variables}
    found = list(variables.values())
    return found, [np.array(ops.convert_to_numpy(x)) for x in found]


def assert_unchanged(before):
    for variable, value in zip(*before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(variable), value)


def random_numbers():
    found = [random.random(), np.random.random(), float(keras.random.uniform(()))]
    if BACKEND == "tensorflow":
        found.append(float(tf.random.uniform(())))
    if BACKEND == "torch":
        found.append(float(torch.rand(())))
    return found


def test_training_after_a_probe_equals_one_without():
    results = []
    for is_probed in (False, True):
        model, histories = build_with_state(), []
        for _ in range(2):  # Before the first training, and between two.
            before, function, metrics = everything(model), model.train_function, model.metrics
            if is_probed:
                found = kj.probe(model, X, Y, batch_size=16, verbose=0)
                assert found.terms == ["a", "b", "pair"]
                assert model.train_function is function
                assert len(model.metrics) == len(metrics)
                assert_unchanged(before)
            histories.append(train(model))
        results.append([histories, everything(model)[1], random_numbers()])
    (plain, weights, numbers), (probed, same_weights, same_numbers) = results
    assert probed == plain
    assert same_numbers == numbers
    for x, y in zip(weights, same_weights, strict=True):
        np.testing.assert_array_equal(x, y)


def test_error_in_the_warm_up_puts_everything_back(monkeypatch):
    model = build_with_state()
    train(model)
    before, function = everything(model), model.train_function

    def fit(*args, **kwargs):
        model.train_on_batch(X[:16], {k: y[:16] for k, y in Y.items()})
        raise RuntimeError("interrupted")

    monkeypatch.setattr(model, "fit", fit)
    with pytest.raises(RuntimeError, match="interrupted"):
        kj.probe(model, X, Y, verbose=0)
    assert model.train_function is function
    assert_unchanged(before)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        rows = slice(8 * index, 8 * index + 8)
        return X[rows].astype("float32"), {k: y[rows].astype("float32") for k, y in Y.items()}


def loader():
    """Returns the batches of `Batches` as a loader of PyTorch."""
    columns = [x.astype("float32") for x in (X, Y["a"], Y["b"])]

    def batch(rows):
        x, a, b = (torch.tensor(np.stack(column)) for column in zip(*rows, strict=True))
        return x, {"a": a, "b": b}

    rows = list(zip(*columns, strict=True))
    return torch.utils.data.DataLoader(rows, batch_size=8, collate_fn=batch)


def test_data_sets_of_batches_are_measured():
    import tensorflow

    model = build()
    options = {"batches": 6, "warmup_epochs": 1, "verbose": 0}
    expected = kj.probe(model, Batches(), **options)
    assert expected.batches == 6
    arrays = X.astype("float32"), {k: y.astype("float32") for k, y in Y.items()}
    data = [tensorflow.data.Dataset.from_tensor_slices(arrays).batch(8)]
    if BACKEND == "torch":
        data.append(loader())
    for batches in data:
        found = kj.probe(model, batches, **options)
        assert found.untrained.loss == pytest.approx(expected.untrained.loss, rel=1e-5)
        assert found.loss == pytest.approx(expected.loss, rel=1e-5)


@values_only
def test_seed_determines_the_batches():
    model = build()
    options = {"batch_size": SIZE, "batches": 2, "verbose": 0}
    first, same, other = (kj.probe(model, X, Y, **options, seed=x) for x in (0, 0, 1))
    assert same.loss == first.loss
    assert other.loss != first.loss


@values_only
def test_weights_make_shares_as_asked():
    model = build(weights={"a": 2.0, "b": 4.0})
    found = kj.probe(model, X, Y, batch_size=SIZE, verbose=0)
    weights = found.weights()
    assert sum(weights.values()) == pytest.approx(6.5)
    assert np.ptp([weights[x] * found.shared_norm[x] for x in weights]) < 1e-6
    asked = found.weights("loss", shares={"a": 4, "b": 1})
    assert asked["a"] * found.loss["a"] == pytest.approx(4 * asked["b"] * found.loss["b"])
    assert sum(asked.values()) == pytest.approx(6)
    for arguments, message in (
        (("size",), "argument `by`"),
        (("loss", {"c": 1.0}), "argument `shares`"),
        (("loss", {"a": 0.0}), r"`shares\['a'\]`"),
    ):
        with pytest.raises(ValueError, match=message):
            found.weights(*arguments)


@values_only
def test_lengths_are_equal_after_the_warm_up_and_losses_fall():
    found = kj.probe(build(), X, Y, batch_size=SIZE, warmup_epochs=20, verbose=0)
    assert all(found.loss[x] < found.untrained.loss[x] for x in "ab")
    assert found.warmup_epochs == 20


@values_only
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batches": 0}, "argument `batches`"),
        ({"warmup_epochs": -1}, "argument `warmup_epochs`"),
        ({"x": iter([])}, "argument `x`.*read once"),
        ({"x": Batches()}, "argument `y`"),
        ({"y": {"a": Y["a"][:3], "b": Y["b"]}}, "same number of rows"),
        ({"model": keras.Sequential()}, "argument `model`"),
        ({"log_dir": 3}, "argument `log_dir`"),
    ],
    ids=lambda x: x if isinstance(x, str) else next(iter(x)),
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        kj.probe(**{"model": build(), "x": X, "y": Y, "verbose": 0, **arguments})


@values_only
def test_model_without_terms_or_parameters_raises():
    model = build()
    model.compile("adam", loss=LOSSES)
    with pytest.raises(ValueError, match=r"argument `model`.*with a term"):
        kj.probe(keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)]), X, Y)
    model = build()
    model.trainable = False
    with pytest.raises(ValueError, match="parameters to train"):
        kj.probe(model, X, Y)


@values_only
def test_result_is_shown_as_text_html_and_figure(tmp_path, capsys):
    model = build()
    found = kj.probe(model, X, Y, batch_size=SIZE, log_dir=tmp_path)
    assert "Measuring the terms: after 1 epoch" in capsys.readouterr().out
    text = str(found)
    assert {"untrained", "after 1 epoch", "pairs", "layers"} <= {*text.splitlines()}
    assert "a ~ b" in text
    assert found.advice[-1].text in text
    assert found.to_html().count("<table>") == 4
    figure = kj.plot(found)
    assert [x.name for x in figure.data] == ["untrained"] * 2 + ["after 1 epoch"] * 2
    assert list(figure.data[0].y) == pytest.approx(
        [w * found.untrained.shared_norm[x] for x, w in (("a", 1), ("b", 1), ("size", 0.5))]
    )
    scalars = read_scalars(tmp_path / "train")
    assert scalars["joint_loss/a/raw"] == {0: pytest.approx(found.untrained.loss["a"], rel=1e-6)}
    assert scalars["gradients/a~b/cosine"][0] == pytest.approx(
        found.untrained.cosine["a", "b"], rel=1e-6
    )


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_memory_sees_each_batch_once(policy):
    # To find what a term reaches, or a loss scale that fits, a batch runs more than once.
    keras.config.set_dtype_policy(policy)

    def built():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((5,))
        pair = [keras.layers.Dense(3)(inputs) for _ in range(2)]
        term = kj.layers.ContrastiveTerm(kj.losses.InfoNCE(), memory_size=64, name="pair")
        outputs = keras.layers.Dense(1, name="b", dtype="float32")(term(pair)[0])
        model = keras.Model(inputs, {"b": outputs})
        model.compile(keras.optimizers.SGD(0.0), **kj.joint_loss({"b": "mse"}))
        return model

    found = kj.probe(built(), X, {"b": Y["b"]}, batch_size=SIZE, warmup_epochs=0, verbose=0)
    model, losses = built(), []
    order = np.random.default_rng((0, 0)).permutation(len(X))
    for rows in order.reshape(-1, SIZE):
        options = {"verbose": 0, "callbacks": [kj.callbacks.JointLossCallback()]}
        losses.append(model.fit(X[rows], {"b": Y["b"][rows]}, **options).history["pair_loss"][0])
    assert found.loss["pair"] == pytest.approx(np.mean(losses), rel=1e-3)
    assert found.loss_deviation["pair"] == pytest.approx(np.std(losses, ddof=1), rel=1e-2)


class Sometimes(keras.Model):
    """A model whose layer term is left out for batches of one size."""

    def __init__(self):
        super().__init__()
        self.hidden = keras.layers.Dense(4, activation="tanh", name="trunk")
        self.head = keras.layers.Dense(1, name="b")
        self.term = kj.layers.LossTerm(name="size", weight=0.5)

    def call(self, x):
        hidden = self.hidden(x)
        if x.shape[0] == SIZE:
            hidden = self.term(hidden, ops.square(hidden))
        return self.head(hidden)


class OfTwoSizes(keras.utils.PyDataset):
    rows: ClassVar = []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return X[self.rows[index]].astype("float32"), Y["b"][self.rows[index]].astype("float32")


@pytest.mark.backend("jax", "torch")  # A graph of TensorFlow may not know the size of a batch.
@pytest.mark.parametrize("on_accelerator", [False, True])
@pytest.mark.parametrize("left_out", range(5))
def test_term_that_some_batches_leave_out_is_measured_over_the_others(
    left_out, on_accelerator, monkeypatch
):
    monkeypatch.setattr(measurement, "is_on_accelerator", lambda x: on_accelerator)
    monkeypatch.setattr(OfTwoSizes, "rows", [np.arange(8 * i, 8 * i + 8) for i in range(5)])
    OfTwoSizes.rows[left_out] = OfTwoSizes.rows[left_out][:6]
    keras.utils.set_random_seed(2)
    model = Sometimes()
    model(X[:SIZE].astype("float32"))
    model.compile("adam", **kj.joint_loss("mse"))
    found = kj.probe(model, OfTwoSizes(), warmup_epochs=0, verbose=0)
    trunk, bias, head, head_bias = (
        ops.convert_to_numpy(x).astype("float64")
        for x in [*model.hidden.weights, *model.head.weights]
    )
    vectors, cosines, losses = [], [], []
    for index, rows in enumerate(OfTwoSizes.rows):
        x, y = X[rows], Y["b"][rows]
        h = np.tanh(x @ trunk + bias)
        if index == left_out:
            continue
        at = [
            2 * h / h.size * (1 - h**2),
            2 * (h @ head + head_bias - y) @ head.T / y.size * (1 - h**2),
        ]
        size, output = (np.concatenate([(x.T @ z).ravel(), z.sum(axis=0)]) for z in at)
        vectors.append(size)
        cosines.append(size @ output / np.linalg.norm(size) / np.linalg.norm(output))
        losses.append(np.mean(h**2))
    mean = np.mean(vectors, axis=0)
    noise = np.sqrt(np.sum((vectors - mean) ** 2) / 3) / np.linalg.norm(mean)
    assert found.loss["size"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.norm["size"] == pytest.approx(np.linalg.norm(vectors, axis=1).mean(), rel=1e-4)
    assert found.noise["size"] == pytest.approx(noise, rel=1e-4)
    assert found.cosine["output", "size"] == pytest.approx(np.mean(cosines), rel=1e-4)
    assert found.layers["size"] == ["trunk"]
    assert found.nonfinite == {"output": 0, "size": 0}
    assert "not_finite" not in [x.kind for x in found.faults]
