"""Several replicas of `tf.distribute`: contrastive losses, memories and metrics of all of them."""

import contextlib
import functools
import math
import re

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests import jacobians, terms
from tests.backends import tf
from tests.comparisons import approx_logs, assert_all_close
from tests.loss_cases import DEFAULTS, TILED, labels_of, tensor, views_of
from tests.small_models import Penalty
from tests.test_training import replicas
from tests.workers.models import with_terms

pytestmark = [pytest.mark.slow, pytest.mark.backend("tensorflow")]

BATCH = 8
X = np.random.default_rng(1).normal(size=(21, 6))
X[[2, 9]] = 0.0  # Masked.
LABEL = np.random.default_rng(2).integers(0, 3, len(X))
LABEL[12:16] = 2  # Unlabelled, for the terms of classes: all items of the second of two replicas.
WEIGHT = np.random.default_rng(3).uniform(0.5, 2, len(X)) * (np.arange(len(X)) % 5 > 0)


def scope_of(count):
    """Returns the scope of this many replicas; of one device for 1."""
    return replicas(count).scope() if count > 1 else contextlib.nullcontext()


def trained(make, parts, count, is_compiled, epochs=1, evaluates=True, has_terms=True):
    """Returns the variables and logs of a model, on some replicas or one device.

    Args:
        make: Returns the model and the arguments of `compile`.
        parts: For each call of `fit`, the inputs and targets, and sample weights if there are any.
        count: The number of replicas; 1 for one device.
        is_compiled: Whether TensorFlow compiles the steps: otherwise it starts faster.
        epochs: The number of epochs of each call.
        evaluates: Whether the model is evaluated, too.
        has_terms: Whether the model has terms, for the callback.
    """
    keras.utils.clear_session()
    keras.utils.set_random_seed(2)
    keras.config.set_floatx("float64")
    with scope_of(count):
        model, arguments = make()
        optimizer = keras.optimizers.SGD(0.1, momentum=0.5)
        model.compile(optimizer, **arguments, run_eagerly=not is_compiled)
    options = {"batch_size": BATCH, "verbose": 0}
    found = {}
    parts = [dict(zip(("x", "y", "sample_weight"), part, strict=False)) for part in parts]
    for i, part in enumerate(parts):
        callbacks = [kj.callbacks.JointLossCallback()] * has_terms
        training = {"epochs": epochs, "shuffle": False, "callbacks": callbacks}
        logs = model.fit(**part, **training, **options).history
        found |= {f"{i} {key}": value for key, value in logs.items()}
    if evaluates:
        evaluated = model.evaluate(**parts[0], return_dict=True, **options)
        found |= {f"evaluated {key}": value for key, value in evaluated.items()}
    values = {v.path: ops.convert_to_numpy(v) for v in model.variables}
    # The sums of a term end with a comparison with the step before, which is that of each replica.
    return found | {path: x[:5] if path.endswith("_sums") else x for path, x in values.items()}


def assert_like_one_device(
    make, parts, unequal="nothing", counts=(2,), is_compiled=True, **options
):
    expected = trained(make, parts, 1, False, **options)
    for count in counts:
        actual = trained(make, parts, count, is_compiled, **options)
        assert actual.keys() == expected.keys()
        equal = {key: value for key, value in expected.items() if not re.search(unequal, key)}
        assert_all_close(actual, equal, 1e-9, 1e-9, f"on {count} replicas:")


def contrastive():
    """Returns a model with terms that use all options, masks in chunks, and no other loss."""
    x, label, weight = keras.Input((6,)), keras.Input((), dtype="int64"), keras.Input(())
    early = kj.layers.ContrastiveTerm("MeanSquaredError", 0.1, name="early")
    x_early, _ = early((keras.layers.Dense(5)(x), keras.layers.Dense(5)(x)))
    # It exchanges statistics, so TensorFlow switches to the other replica after the first term.
    b = keras.layers.Dense(4)(keras.layers.BatchNormalization(synchronized=True)(x_early))
    a = kj.layers.ChunkedTower(keras.layers.Dense(4), 3)(keras.layers.Masking()(x))
    ramp = kj.schedules.Linear(0.1, 1.0, 6)
    return keras.Model([x, label, weight], with_terms(x, (a, b, label), weight, ramp, 64)), {}


def test_terms_see_all_replicas():
    # The last batches have 5 and 1 items: the second replica gets 2 of them, and none.
    parts = [([values[:items] for values in (X, LABEL, WEIGHT)], None) for items in (21, 17)]
    assert_like_one_device(contrastive, parts)


@pytest.mark.parametrize("seed", [3, None])
def test_chunks_of_a_replica_use_the_same_random_numbers_in_both_passes(seed):
    with replicas(2).scope():
        layer = kj.layers.ChunkedTower(keras.layers.Dropout(0.5, seed=seed), 2)

    @tf.function
    def error(views):
        with tf.GradientTape() as tape:
            tape.watch(views)
            z = layer(views, training=True)
        # The gradient of the sum is what the layer has multiplied the views with.
        return ops.max(ops.abs(tape.gradient(z, views) * views - z)), ops.mean(z == 0)

    errors = [run(lambda views, i=i: error(views)[i], 5, 3) for i in range(2)]
    assert max(errors[0]) < 1e-6
    assert all(0 < zeros < 1 for zeros in errors[1])


def combined():
    """Returns a model with all else that adds to the loss, a balancer and a rule."""
    x = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="tanh", activity_regularizer="l2")(x)
    z = kj.layers.GradientBalancer(["pair", "classes", "rating"], "mgda")(hidden)
    a = kj.layers.ChunkedTower(keras.layers.Dense(4), 3)(z["pair"])
    b = keras.layers.Dense(4)(z["pair"])
    a, b = kj.layers.ContrastiveTerm(kj.losses.NTXent(tile_size=64), name="pair")((a, b))
    label = keras.Input((), dtype="int64")
    classes = keras.layers.Dense(4)(Penalty()(z["classes"]))
    classes = kj.layers.ContrastiveTerm("SupCon", name="classes")((classes, label))
    late = keras.layers.Dense(3, activity_regularizer="l2", kernel_regularizer="l2")(classes)
    late = kj.layers.LossTerm(weight=0.1, name="energy")(late, ops.square(late))
    joint = kj.joint_loss({"rating": "mse"}, weighting=kj.weighting.FAMO())
    hidden = ops.concatenate([z["rating"], late, a, b], axis=1)
    rating = keras.layers.Dense(1, name="rating")(hidden)
    return keras.Model([x, label], {"rating": rating}), joint


def test_terms_disturb_no_other_loss():
    assert_like_one_device(combined, [([X[:16], LABEL[:16]], X[:16, :1])])


def means():
    """Returns a model whose terms are means that replicas with unequal shares count differently."""
    x = keras.Input((6,))
    steps = keras.layers.Masking()(keras.layers.Reshape((3, 2))(x))
    names = ("rating", "several", "missing", "total", "missing_total")
    outputs = {name: keras.layers.Dense(1)(x) for name in names}
    outputs["steps"] = keras.layers.Dense(2)(steps)
    weighted = keras.losses.MeanSquaredError(reduction="mean_with_sample_weight")
    losses = {"rating": weighted, "steps": "mse", "several": ["mse", "mae"], "missing": "mse"}
    losses |= dict.fromkeys(("total", "missing_total"), keras.losses.Huber(reduction="sum"))
    code = keras.layers.Dense(3)(x)
    weight = keras.layers.Dense(1, activation="sigmoid")(x)
    code = kj.layers.LossTerm(name="held", floor=1.0, target=2.0)(code, ops.square(code))
    code = kj.layers.LossTerm(name="scalar", weight=0.1)(code, ops.mean(ops.square(code)))
    code = kj.layers.LossTerm("huber", 0.1, name="hint")(code, x[:, :3], sample_weight=weight)
    outputs["rating"] = outputs["rating"] + 0.1 * ops.sum(code, axis=1, keepdims=True)
    missing = dict.fromkeys(("missing", "missing_total"), -1)
    rule = kj.weighting.Uncertainty()
    across = {"both": (product, ["rating", "several"]), "known": (product, ["missing", "several"])}
    joint = kj.joint_loss(losses, weighting=rule, missing=missing, across=across)
    return keras.Model(x, outputs), joint


def product(y, p):
    errors = [ops.abs(y[name] - p[name])[:, 0] for name in y]
    return ops.prod(ops.stack(errors), axis=0)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_means_count_each_replica_by_its_items():
    x = X.copy()
    x[5, 2:4] = 0.0
    y = {"rating": X[:, :1], "steps": X.reshape(-1, 3, 2), "several": X[:, :1]}
    y["missing"] = np.where(np.arange(len(X))[:, None] % 3, -1, X[:, 1:2])
    y |= {"total": X[:, 2:3], "missing_total": y["missing"]}
    # Of the first batch, the second replica has no item of a weight above 0.
    weight = dict.fromkeys(y, WEIGHT * (np.arange(len(X)) // 4 != 1))
    weight["steps"] = np.repeat(weight["steps"][:, None], 3, axis=1)
    # Keras logs the mean of a replica by its items, whatever that divides by. Shares are of that.
    unequal = rf" (({'|'.join([*y, 'both', 'known'])})_)?loss$|_share"
    assert_like_one_device(means, [(x, y), (x, y, weight)], unequal, is_compiled=False)


def numbers():
    """Returns a model with a loss of two outputs that is one number for a batch."""
    x = keras.Input((6,))
    outputs = {name: keras.layers.Dense(1)(x) for name in "ab"}
    across = {"both": (lambda y, p: ops.mean(product(y, p)), ["a", "b"])}
    return keras.Model(x, outputs), kj.joint_loss(
        {"a": "mse"}, weighting="uncertainty", across=across
    )


def test_number_of_several_outputs_counts_each_replica_by_its_items():
    y = {"a": X[:, :1], "b": X[:, 1:2]}
    assert_like_one_device(
        numbers,
        [(X[:13], {name: values[:13] for name, values in y.items()})],
        r" ((a|both)_)?loss$|_share",
        is_compiled=False,
    )


@pytest.mark.parametrize("weight", [None, np.array([1, 2, 0.5, 1] * 2)])
@pytest.mark.parametrize("loss", [keras.losses.Dice(), "mean_squared_error"])
def test_loss_of_one_number_counts_once(loss, weight):
    """Keras itself counts it for each replica."""
    x, y = X[:8].astype("float32"), (X[:8] > 0).astype("float32")
    found = []
    for count in (1, 2):
        keras.utils.set_random_seed(2)
        with scope_of(count):
            a = keras.layers.Dense(6, activation="sigmoid")(inputs := keras.Input((6,)))
            flat = isinstance(loss, str)
            model = keras.Model(inputs, {"a": ops.mean(a, axis=1) if flat else a})
            joint = kj.joint_loss({"a": loss}, weighting=kj.weighting.Uncertainty())
            model.compile(keras.optimizers.SGD(0.1), **joint)
        # The halves are equal, and so are the losses of them and of the whole.
        data = np.concatenate([x[:4]] * 2), {"a": np.concatenate([y[:4, 0] if flat else y[:4]] * 2)}
        options = {"sample_weight": None if weight is None else {"a": weight}, "shuffle": False}
        callbacks = [kj.callbacks.JointLossCallback()]
        logs = model.fit(*data, 8, 2, 0, callbacks, **options).history
        found.append([*logs["a_loss"], *logs["a_weight"], *model.get_weights()[0].ravel()])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def distributed(strategy, x, sizes, dtype=None):
    """Returns an array whose rows are split over the replicas."""
    parts = np.split(x, np.cumsum(sizes)[:-1])
    return strategy.experimental_distribute_values_from_function(
        lambda context: ops.convert_to_tensor(parts[context.replica_id_in_sync_group], dtype=dtype)
    )


def run(compute, *sizes):
    """Returns what a function of embeddings, of the given sizes, returns in each replica."""
    strategy = replicas(2)
    views = distributed(strategy, X[: sum(sizes)].reshape(-1, 2, 3), sizes, "float32")
    return [float(x) for x in strategy.experimental_local_results(strategy.run(compute, (views,)))]


def loss_and_gradient(layer, views, labels):
    """Returns the loss that a layer adds, and the gradient with respect to the views."""
    with tf.GradientTape() as tape:
        tape.watch(views)
        inputs = [views[:, i] for i in range(views.shape[1])]
        layer((*inputs, labels) if layer.loss.has_labels else inputs, training=True)
        loss = sum(layer.losses) / tf.distribute.get_strategy().num_replicas_in_sync  # As Keras.
    return loss, tape.gradient(loss, views)


def test_every_loss_sees_four_replicas():
    keras.config.set_floatx("float64")
    sizes, strategy = (3, 0, 1, 6), replicas(4)
    batches = [(views_of(case, sum(sizes)), labels_of(case, sum(sizes))) for case in DEFAULTS]
    with strategy.scope():
        layers = [kj.layers.ContrastiveTerm(case.make()) for case in DEFAULTS]

    def compute(*batches):
        pairs = zip(layers, batches, strict=True)
        return [loss_and_gradient(layer, *batch) for layer, batch in pairs]

    parts = [tuple(distributed(strategy, x, sizes) for x in batch) for batch in batches]
    results = strategy.run(compute, parts)
    expected = compute(*(tuple(map(tensor, batch)) for batch in batches))
    for case, result, (loss, gradient) in zip(DEFAULTS, results, expected, strict=True):
        losses, gradients = map(strategy.experimental_local_results, result)
        np.testing.assert_allclose(sum(losses), loss, rtol=1e-9, err_msg=case.name)
        gradients = np.concatenate(gradients)
        np.testing.assert_allclose(gradients, gradient, rtol=1e-9, atol=1e-12, err_msg=case.name)


# Of those that share their code, one.
SAME = {"FairGrad", "ConFIG", "DualProj", "DBMTL"}
AGGREGATORS = {
    **{key: {} for key in jacobians.NAMES if key not in SAME},
    "MGDA": {"normalize": "l2"},
    **{key: {"ema": 0.5} for key in ("Mean", "UPGrad")},
}
RULES = {
    # IMTLL has the code of Uncertainty, InverseGradientNorm that of NeuralTangentKernel.
    **{key: {} for key in (*terms.RULES, "GradNorm", "NeuralTangentKernel") if key != "IMTLL"},
    "Constraint": {"bounds": {"b": 0.5}},
    "RandomWeighting": {"seed": 1},
    "Shares": {"shares": {"a": 0.5, "b": 0.3, "c": 0.2}},
    "SoftAdapt": {"interval": "step"},
}


def heads(views):
    """Returns an output of one number for each view; variables would only take time."""
    directions = np.random.default_rng(4).normal(size=(len(views), 5, 1))
    pairs = zip(views.items(), directions, strict=True)
    return {term: ops.matmul(view, direction) for (term, view), direction in pairs}


def every_loss():
    """Returns a model with a term for each loss."""
    x, label, match = keras.Input((6,)), *(keras.Input((), dtype="int64") for _ in range(2))
    embeddings = [keras.layers.Dense(4)(x) for _ in range(4)]
    outputs = []
    for case in DEFAULTS:
        loss = case.make(**({"tile_size": 64} if case.name in TILED else {}))
        if case.name in TILED - {"siglip"}:
            loss.tile_size = math.inf  # One matrix compiles faster than tiles, and than both.
        labels = [match if loss.label_kind == "pair" else label] * loss.has_labels
        views = embeddings[: case.views]
        outputs += kj.layers.ContrastiveTerm(loss, 0.05, name=case.name)((*views, *labels))
    rating = keras.layers.Dense(1)(0.1 * ops.concatenate(outputs, axis=1))
    return keras.Model([x, label, match], {"rating": rating}), kj.joint_loss({"rating": "mse"})


def every_aggregator():
    """Returns a model with a balancer for each aggregator."""
    x, outputs = keras.Input((6,)), {}
    for name, options in AGGREGATORS.items():
        hidden = keras.layers.Dense(5, activation="tanh")(x)
        names = [f"{term}{name}" for term in "abc"]
        if name == "Shares":
            options = {"shares": dict(zip(names, (0.5, 0.3, 0.2), strict=True))}
        elif name == "PCD":
            options = {"main": names[1], "tau": 0.3, "beta": 0.5}
        aggregator = getattr(kj.aggregators, name)(**options)
        outputs |= heads(kj.layers.GradientBalancer(names, aggregator)(hidden))
    return keras.Model(x, outputs), kj.joint_loss(dict.fromkeys(outputs, "mse"))


def with_rule(name):
    """Returns a model with a rule."""
    x = keras.Input((6,))
    hidden = keras.layers.Dense(5, activation="tanh")(x)
    views = dict.fromkeys("abc", hidden)
    if name in terms.GRADIENT_RULES:
        views = kj.layers.GradientBalancer(list("abc"))(hidden)
    rule = getattr(kj.weighting, name)(**RULES[name])
    joint = kj.joint_loss(dict.fromkeys("abc", "mse"), weighting=rule)
    return keras.Model(x, heads(views)), joint


@pytest.mark.parametrize("name", ["losses", "aggregators", *RULES])
def test_ten_steps_on_2_and_4_replicas_equal_one_device(name):
    # The last batch has 3 items: one of four replicas has none. With aggregators it has 7. Losses
    # compile for long and have a test of four replicas: here, the second of two has no item.
    sizes = {"losses": (73, 1), "aggregators": (79, 1), "DynamicWeightAverage": (11, 5)}
    items, epochs = sizes.get(name, (75, 1))
    counts = (2,) if name == "losses" else (2, 4)
    generator = np.random.default_rng(5)
    x = generator.normal(size=(items, 6))
    make, y = functools.partial(with_rule, name), {t: x[:, i : i + 1] for i, t in enumerate("abc")}
    if name == "losses":
        make, y = every_loss, x[:, :1]
        x = [x, *(generator.integers(0, n, items) for n in (3, 2))]
    elif name == "aggregators":
        make, y = every_aggregator, {f"{t}{name}": y[t] for name in AGGREGATORS for t in y}
    # Aggregators compile for long. A rule runs eagerly, as a case of its own without items.
    is_compiled = name not in ("aggregators", "Uncertainty")
    options = {"is_compiled": is_compiled, "epochs": epochs, "evaluates": False}
    # In a compiled step, Keras itself logs the mean of the replicas, whatever their items.
    unequal = r" [abc]_loss$" if is_compiled else "nothing"
    assert_like_one_device(make, [(x, y)], unequal, counts, **options)


def info_nce(start, end):
    return kj.losses.InfoNCE()(np.zeros(end - start), X[start:end].reshape(-1, 2, 3))


def test_output_loss_that_compares_items_warns_once():
    loss = kj.losses.InfoNCE()

    def compute(views):
        return loss(ops.zeros(4), views)

    with pytest.warns(UserWarning, match="InfoNCE compares.*ContrastiveTerm") as found:
        run(compute, 4, 4)
    assert len(found) == 1
    # Keras divides by the number of replicas.
    assert_all_close(run(compute, 4, 4), [info_nce(0, 4) / 2, info_nce(4, 8) / 2], 1e-5)
    pairs = kj.losses.MarginContrastive()  # Does not compare items.
    run(lambda views: pairs(ops.ones(4), views), 4, 4)


@pytest.mark.parametrize("gather", [None, False])
def test_replicas_gather_unless_told_otherwise(gather):
    with replicas(2).scope():
        layer = kj.layers.ContrastiveTerm("InfoNCE", 0.5, gather=gather)
        layer = kj.layers.ContrastiveTerm.from_config(layer.get_config())
        layer.build(((None, 3), (None, 3)))

    def compute(views):
        layer((views[:, 0], views[:, 1]), training=True)
        if gather is None:
            with pytest.raises(TypeError, match=r"Use `sum\(model.losses\)`"):
                ops.sum([*layer.losses, ops.ones(())])
        (loss,) = layer.losses
        return loss * 1.5 + 0.5 * loss

    expected = [info_nce(0, 8)] * 2 if gather is None else [info_nce(0, 5), info_nce(5, 8)]
    np.testing.assert_allclose(run(compute, 5, 3), expected, rtol=1e-5)
    mean = np.average(expected, weights=[5, 3])
    assert layer.weight.read()["loss"] == pytest.approx(mean, 1e-5)


def test_models_load_inside_and_outside_of_the_scope(tmp_path):
    def build():
        x = keras.Input((6,))
        embeddings = [keras.layers.Dense(4)(x) for _ in range(2)]
        term = kj.layers.ContrastiveTerm(
            kj.losses.InfoNCE(tile_size=64), 0.5, learn_temperature=True, memory_size=4, gather=True
        )
        rating = keras.layers.Dense(1)(ops.concatenate(term(embeddings), axis=1))
        model = keras.Model(x, {"rating": rating})
        model.compile("sgd", **kj.joint_loss({"rating": "mse"}, weighting="uncertainty"))
        return model

    data = X[:8].astype("float32"), {"rating": X[:8, :1].astype("float32")}
    options = {"batch_size": 8, "verbose": 0, "return_dict": True}
    for count in (2, 1):
        with scope_of(count):
            model = build()
        expected = model.evaluate(*data, **options)
        model.save(tmp_path / "model.keras")
        with scope_of(3 - count):
            loaded = keras.models.load_model(tmp_path / "model.keras")
        found = loaded.evaluate(*data, **options)
        assert found == approx_logs(expected)
