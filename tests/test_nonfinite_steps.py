"""What training does about a loss, weight or gradient that is not finite in a step."""

import importlib
import re
import warnings
from functools import partial

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.terms import nonfinite
from tests.backends import BACKEND
from tests.comparisons import assert_all_close
from tests.small_models import BATCHES, LOSSES, X, Y, build, fit
from tests.test_training import replicas

BAD = 2  # The step of an epoch, from 1, in which a term is not finite.
ITEMS = slice(10 * (BAD - 1), 10 * BAD)
KINDS = ("loss", "weight", "gradient")
MARK = 7.0  # A target where the gradient is not finite.
SKIP = "Steps in which it is not finite train without the term"


class BadAt(keras.optimizers.schedules.LearningRateSchedule):
    """A weight of 1 that is not finite in some steps, from 0."""

    def __init__(self, *steps, value=float("nan")):
        self.steps, self.value = steps, value

    def __call__(self, step):
        weight = 1.0
        for bad in self.steps:
            weight = ops.where(ops.equal(step, bad), self.value, weight)
        return weight

    def get_config(self):
        return {"value": self.value}


def error(y_true, y_pred):
    """A mean squared error whose gradient is NaN at some targets."""
    square = ops.square(y_true - y_pred)
    root = ops.sqrt(square * ops.square(y_true - MARK))
    return ops.mean(ops.where(ops.equal(y_true, MARK), root, square), axis=-1)


def case(kind, step=BAD):
    """Returns weights and targets with which the term `"a"` is not finite in a step."""
    targets = {name: y.copy() for name, y in Y.items()}
    if kind != "weight":
        targets["a"][10 * (step - 1)] = np.nan if kind == "loss" else MARK
    return {"a": BadAt(step - 1, step + 3)} if kind == "weight" else None, targets


def without_term(*names, step=BAD):
    """Returns sample weights of 0 for the items of the step."""
    weights = {name: np.ones(len(X), "float32") for name in Y}
    for name in names:
        weights[name][10 * (step - 1) : 10 * step] = 0
    return weights


def weights_of(model):
    return [ops.convert_to_numpy(x) for x in model.trainable_variables]


def skipping(**options):
    return [kj.callbacks.JointLossCallback(on_nonfinite="skip", **options)]


@pytest.mark.parametrize("kind", KINDS)
def test_step_trains_as_without_the_term(kind):
    weights, targets = case(kind)
    model, plain = build(), build()
    model.compile(keras.optimizers.Adam(0.01), **kj.joint_loss({**LOSSES, "a": error}, weights))
    said = rf"The {kind} of the term 'a' is .* in training step {BAD}\. .*{SKIP}"
    with pytest.warns(UserWarning, match=said):
        history = fit(model, skipping(), y=targets, epochs=2)
    plain.compile(keras.optimizers.Adam(0.01), loss={**LOSSES, "a": error})
    # In plain Keras, the same batches with weights of 0.
    expected = fit(plain, [], y=Y, sample_weight=without_term("a"), epochs=2)
    assert_all_close(weights_of(model), weights_of(plain), 1e-6, 1e-6)
    assert history["a_skipped"] == [1, 1]
    assert history["b_skipped"] == [0, 0]
    assert history["b_loss"] == pytest.approx(expected["b_loss"], 1e-5)
    if kind != "gradient":  # Its loss is finite.
        assert history["loss"] == pytest.approx(expected["loss"], 1e-5)
        # The mean over the other steps: Keras divides by all.
        ratio = np.divide(history["a_loss"], expected["a_loss"])
        np.testing.assert_allclose(ratio, 4 / 3, 1e-5)
        total = np.sum([history["a_share"], history["b_share"]], axis=0)
        np.testing.assert_allclose(total, 1, 1e-5)


@pytest.mark.parametrize(("kind", "step"), [("loss", 1), ("weight", 2), ("gradient", 3)])
def test_accumulated_step_trains_as_without_the_term(kind, step):
    weights, targets = case(kind, step)  # In the first or the second batch of an update.

    def trained(arguments, callbacks, **options):
        model = build()
        model.compile(keras.optimizers.Adam(0.01, gradient_accumulation_steps=2), **arguments)
        history = fit(model, callbacks, epochs=2, **options)
        assert int(model.optimizer.iterations) == BATCHES  # Two updates in an epoch.
        return weights_of(model), history

    losses = {**LOSSES, "a": error}
    with pytest.warns(UserWarning, match=rf"in training step {step}\. .*{SKIP}"):
        found, history = trained(kj.joint_loss(losses, weights), skipping(), y=targets)
    given = without_term("a", step=step)
    expected, _ = trained({"loss": losses}, [], y=Y, sample_weight=given)
    assert_all_close(found, expected, 1e-6, 1e-6)
    assert history["a_skipped"] == [1, 1]
    assert history["b_skipped"] == [0, 0]


@pytest.mark.slow
@pytest.mark.backend("tensorflow")
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_all_replicas_train_without_the_term(kind):
    _, targets = case(kind)  # On one of two.
    with replicas(2).scope():
        model = build()
        model.compile(keras.optimizers.Adam(0.01), **kj.joint_loss({**LOSSES, "a": error}))
    with pytest.warns(UserWarning, match=f"in training step {BAD}.*{SKIP}"):
        history = fit(model, skipping(), y=targets)
    plain = build()
    plain.compile(keras.optimizers.Adam(0.01), loss={**LOSSES, "a": error})
    fit(plain, [], y=Y, sample_weight=without_term("a"))
    assert_all_close(weights_of(model), weights_of(plain), 1e-5, 1e-6)
    assert (history["a_skipped"], history["b_skipped"]) == ([1], [0])


class Distance(keras.losses.Loss):
    """The distance of two views, whose gradient is NaN where they are equal."""

    def call(self, y_true, y_pred):
        return ops.sqrt(ops.sum(ops.square(y_true - y_pred), axis=-1))


def test_step_of_a_layer_that_is_called_twice_counts_once():
    shift = np.ones((len(X), 3), "float32")
    shift[ITEMS] = 0
    x, away = keras.Input(X.shape[1:]), keras.Input((3,))
    term = kj.layers.ContrastiveTerm(Distance(), name="term")
    hidden = keras.layers.Dense(3)(x)
    for _ in range(2):
        hidden, _ = term((hidden, hidden * (1 + away)))
    model = keras.Model([x, away], {"a": keras.layers.Dense(Y["a"].shape[1])(hidden)})
    model.compile("sgd", **kj.joint_loss({"a": "mean_squared_error"}))
    with pytest.warns(
        UserWarning, match=f"gradient of the term 'term' .* training step {BAD}.*{SKIP}"
    ):
        history = fit(model, skipping(), x=[X, shift], epochs=2)
    assert history["term_skipped"] == [1, 1]


def layer_model():
    """Returns a model with layer terms of all kinds, one of whose inputs are sample weights."""
    keras.utils.set_random_seed(5)
    x, weights = keras.Input((5,)), keras.Input((4,))
    label, index = keras.Input((), dtype="int32"), keras.Input((), dtype="int32")
    hidden = keras.layers.Dense(4, activation="tanh")(x)
    heads = [keras.layers.Dense(4)(hidden) for _ in range(4)]
    given = [{"sample_weight": weights[:, i]} for i in range(4)]
    term = kj.layers.ContrastiveTerm("InfoNCE", learn_temperature=True, memory_size=12, name="pair")
    hidden = kj.layers.LossTerm(name="values")(hidden, ops.square(heads[0]), **given[0])
    _, other = term((hidden, heads[1]), **given[1])
    term = kj.layers.ProxyTerm(kj.losses.NormSoftmax(), classes=3, name="classes")
    embedding = term((heads[2], label), **given[2])
    hidden = kj.layers.PointWeights(40, name="points")(hidden, heads[3], index, **given[3])
    outputs = {"a": keras.layers.Dense(2)(hidden), "other": other, "embedding": embedding}
    model = keras.Model([x, weights, label, index], outputs)
    model.compile(keras.optimizers.Adam(0.01), **kj.joint_loss({"a": "mse"}))
    return model


def test_layer_terms_train_as_without_them():
    def trained(callbacks, is_bad):
        weights = np.ones((40, 4), "float32")
        for term in range(4):  # Each in another step.
            items = slice(10 * term, 10 * term + (1 if is_bad else 10))
            weights[items, term] = np.nan if is_bad else 0
        model = layer_model()
        targets = {"a": Y["a"], "other": np.zeros(40), "embedding": np.zeros(40)}
        x = [X, weights, Y["b"], np.arange(40)]
        return model, fit(model, callbacks, x=x, y=targets, epochs=3)

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        model, history = trained(skipping(), is_bad=True)
    found = [str(x.message) for x in said if SKIP in str(x.message)]
    names = ("values", "pair", "classes", "points")
    assert len(found) == 4
    for step, name in enumerate(names, 1):
        assert any(f"The loss of the term {name!r} is" in x and f" {step}. " in x for x in found)
    expected, _ = trained(None, is_bad=False)
    assert_all_close(weights_of(model), weights_of(expected), 1e-5, 1e-6)
    assert [history[f"{name}_skipped"] for name in (*names, "a")] == [[1] * 3] * 4 + [[0] * 3]


def said_by(train):
    """Returns the warnings during a training that name what is not finite."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always", UserWarning)
        train()
    return [
        str(x.message) for x in found if "not finite" in str(x.message) or "nan" in str(x.message)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_first_term_is_named(kind):
    weights, targets = case(kind)
    model = build()
    model.compile("sgd", **kj.joint_loss({**LOSSES, "a": error}, weights))
    callback = kj.callbacks.JointLossCallback(on_nonfinite="warn")
    found = said_by(lambda: fit(model, [callback], y=targets, epochs=2))
    (own,) = [x for x in found if "training step" in x]
    value = "not finite" if kind == "gradient" else "nan"
    place = "In this step" if kind == "gradient" else "In the step before"
    assert own.startswith(f"The {kind} of the term 'a' is {value} in training step {BAD}. {place},")
    # Its loss there, in a model of the same seed.
    same = build()
    same.compile("sgd", loss={**LOSSES, "a": error})
    targets = case("gradient")[1] if kind == "gradient" else Y
    last = ITEMS if kind == "gradient" else slice(10)
    batch = {name: y[last] for name, y in targets.items()}
    if kind == "gradient":
        same.train_on_batch(X[:10], {name: y[:10] for name, y in targets.items()})
    loss = same.evaluate(X[last], batch, verbose=0, return_dict=True)["a_loss"]
    named = re.fullmatch(r".* its loss was (.*) and its weight 1\.", own)
    assert float(named[1]) == pytest.approx(loss, 1e-4)


@pytest.mark.backend("torch")
@pytest.mark.parametrize("kind", KINDS)
def test_steps_on_an_accelerator_are_kept_there(kind, monkeypatch):
    backend = importlib.import_module("keras_jointloss._core.backend.torch")
    for module in (nonfinite, backend):  # As if their numbers were.
        monkeypatch.setattr(module, "is_readable", lambda x: False)
    monkeypatch.setattr(nonfinite, "_KEPT_STEPS", 2)
    test_first_term_is_named(kind)
    test_step_trains_as_without_the_term(kind)


@pytest.mark.parametrize("seed", range(20))
def test_record_knows_the_first_of_any_steps(seed):
    generator = np.random.default_rng(seed)

    def number():
        return generator.choice([generator.random(), np.nan, np.inf], p=[0.8, 0.1, 0.1])

    def kind_of(step):
        loss, weight, gradients = step
        if np.isfinite([loss, weight]).all():
            return "gradient" if any(gradients) else None
        return "loss" if np.isfinite(weight) else "weight"

    record = kj.LossWeight().nonfinite
    # The loss, the weight, and whether the gradients of two calls of a layer are not finite.
    steps = [(number(), number(), generator.random(2) < 0.1) for _ in range(1 + seed % 6)]
    for loss, weight, gradients in steps:
        is_good = np.isfinite([loss, weight]).all()
        calls = [partial(record.add, *map(ops.convert_to_tensor, (loss, weight, is_good)))]
        adds = [partial(record.add_gradient, ops.convert_to_tensor(is_good & x)) for x in gradients]
        for call in [*adds, *calls] if BACKEND == "jax" else [*calls, *adds]:
            call()
        record.skipped()  # Reading changes nothing.
    kinds = [kind_of(step) for step in steps]
    assert record.skipped() == sum(kind is not None for kind in kinds)
    place = next((i for i, kind in enumerate(kinds) if kind), None)
    if place is None:
        assert record.first() is None
        return
    loss, weight, _ = steps[place]
    value = {"loss": loss, "weight": weight, "gradient": np.nan}[kinds[place]]
    known = place if kinds[place] == "gradient" else place - 1
    before = steps[known][:2] if known >= 0 else (None, None)
    assert record.first()[:2] == (place + 1, kinds[place])
    np.testing.assert_allclose(record.first()[2], value, 1e-6)
    assert record.first()[3:] == (pytest.approx(before[0]), pytest.approx(before[1]))


def test_training_ends_where_it_is_read():
    model = build()
    model.compile("sgd", **kj.joint_loss(LOSSES))
    ended = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ended.append(batch)
    )
    callback = kj.callbacks.JointLossCallback(on_nonfinite="raise", update_freq=BAD)
    said = f"The loss of the term 'a' is inf in training step {BAD}"
    targets = {**Y, "a": Y["a"].copy()}
    targets["a"][ITEMS.start] = np.inf
    with pytest.raises(FloatingPointError, match=said):
        fit(model, [callback, note], y=targets)
    assert ended == [0]


@pytest.mark.parametrize("name", ["rule", "balancer"])
def test_others_are_weighed_as_without_the_term(name):
    _, targets = case("loss" if name == "rule" else "gradient")

    def trained(callbacks, y, **options):
        keras.utils.set_random_seed(2)
        inputs = keras.Input((5,))
        shared = keras.layers.Dense(4, activation="tanh")(inputs)
        copies = {"a": shared, "b": shared}
        if name == "balancer":
            copies = kj.layers.GradientBalancer(["a", "b"], "pcgrad")(shared)
        outputs = {
            "a": keras.layers.Dense(2)(copies["a"]),
            "b": keras.layers.Dense(3, activation="softmax")(copies["b"]),
        }
        model = keras.Model(inputs, outputs)
        rule = "geometric_mean" if name == "rule" else None
        model.compile("sgd", **kj.joint_loss({**LOSSES, "a": error}, weighting=rule))
        return model, fit(model, callbacks, y=y, epochs=2, **options)

    with pytest.warns(UserWarning, match=SKIP):
        model, history = trained(skipping(), targets)
    expected, of_others = trained(None, Y, sample_weight=without_term("a"))
    assert_all_close(weights_of(model), weights_of(expected), 1e-6, 1e-6)
    assert history["a_skipped"] == [1, 1]
    assert history["b_weight"] == pytest.approx(of_others["b_weight"], 1e-6)


def test_overflow_of_float16_alone_reaches_the_scale_of_the_loss():
    keras.config.set_dtype_policy("mixed_float16")
    model = build()
    model.compile("sgd", **kj.joint_loss(LOSSES, {"a": 1e5}))
    history = fit(model, skipping())
    assert history["a_skipped"] == [0]
    # Each step that overflows halves it, and leaves all weights as they are.
    assert float(model.optimizer.dynamic_scale) == 2.0 ** (15 - BATCHES)


def test_validation_and_later_training_hide_nothing():
    _, targets = case("loss")
    model = build()
    model.compile(keras.optimizers.SGD(0.0), **kj.joint_loss(LOSSES))
    found = said_by(
        lambda: fit(model, skipping(), validation_data=(X, targets), validation_batch_size=10)
    )
    (found,) = (x for x in found if "step" in x)
    assert found.startswith("The loss of term 'a' is nan (validation, step 4).")
    with pytest.warns(UserWarning, match="is nan"):
        history = fit(model, skipping(), y=Y, validation_data=(X, targets))
    assert history["a_skipped"] == [0]
    assert np.isnan(history["val_a_loss"]).all()
    # Not without the callback, although the step is compiled for it.
    assert np.isnan(fit(model, [], y=targets)["a_loss"]).all()


class Evaluation(keras.callbacks.Callback):
    """Evaluates the model in the middle of an epoch, after the step that is not finite."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == BAD:
            self.model.evaluate(X, Y, verbose=0)


def trained_in_own_loop(model, callback, targets):
    """Trains an epoch by `train_on_batch`, which resets all metrics in each step."""
    callbacks = keras.callbacks.CallbackList([callback], model=model, epochs=1, steps=BATCHES)
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    for batch in range(BATCHES):
        callbacks.on_train_batch_begin(batch)
        items = slice(10 * batch, 10 * (batch + 1))
        y = {name: y[items] for name, y in targets.items()}
        logs = model.train_on_batch(X[items], y, return_dict=True)
        callbacks.on_train_batch_end(batch, logs)
    callbacks.on_epoch_end(0, logs)
    callbacks.on_train_end()


@pytest.mark.parametrize("place", ["evaluation", "own loop"])
def test_reset_of_metrics_in_the_middle_of_an_epoch_hides_nothing(place):
    _, targets = case("loss")
    said = rf"The loss of the term 'a' is nan in training step {BAD}\. In the step before, its"

    def train(on_nonfinite):
        model, logged = build(), []
        model.compile(keras.optimizers.SGD(0.01), **kj.joint_loss(LOSSES))
        callback = kj.callbacks.JointLossCallback(
            on_nonfinite=on_nonfinite, on_log=lambda run, tags, step: logged.append(tags)
        )
        if place == "evaluation":
            fit(model, [callback, Evaluation()], y=targets)
        else:
            trained_in_own_loop(model, callback, targets)
        return logged[-1]

    with pytest.raises(FloatingPointError, match=said):
        train("raise")
    with pytest.warns(UserWarning, match=f"{said}.*{SKIP}"):
        logged = train("skip")
    assert logged["joint_loss/a/skipped"] == 1
    assert logged["joint_loss/b/skipped"] == 0


def test_unknown_choice_is_refused():
    with pytest.raises(ValueError, match=r"`on_nonfinite`. Expected one of .*Received.*'ignore'"):
        kj.callbacks.JointLossCallback(on_nonfinite="ignore")
