"""Data sets that choose the items of a batch, and the search for hard negatives."""

import pickle

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.data import ClassBatches, TaskBatches, UniqueBatches, hard_negatives, mining
from tests.backends import once_compiled, values_only
from tests.comparisons import assert_all_close

NAN = float("nan")
GENERATOR = np.random.default_rng(0)
#: Items of 9 classes: two large ones, and some with few items.
LABELS = GENERATOR.permutation(np.repeat(np.arange(9), [40, 30, 9, 8, 7, 6, 5, 2, 1]))
ITEMS = len(LABELS)
X = np.arange(ITEMS)


def drawn(batches, epoch=0):
    """Returns the items of each batch of an epoch, if the inputs are the items."""
    batches.epoch = epoch
    return [batch[0] for batch in batches]


def assert_unique(items):
    assert len(np.unique(items)) == np.size(items)


@values_only
@pytest.mark.parametrize(("classes", "items"), [(2, 3), (3, 2), (6, 4), (1, 5), (7, 1), (8, 2)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_class_batches_have_items_of_each_class(classes, items, shuffle):
    batches = ClassBatches(X, LABELS, classes, items, shuffle=shuffle)
    groups = np.bincount(LABELS) // items
    possible = [n for n in range(1, ITEMS) if np.minimum(groups, n).sum() >= n * classes]
    assert len(batches) == max(possible)
    for epoch in range(3):
        found = drawn(batches, epoch)
        assert len(found) == len(batches)
        assert_unique(found)
        for batch in found:
            counts = np.bincount(LABELS[batch])
            assert set(counts) <= {0, items}
            assert np.count_nonzero(counts) == classes


@values_only
@pytest.mark.parametrize("size", [1, 3, 8])
def test_unique_batches_have_no_id_twice(size):
    ids = LABELS.astype(str)
    batches = UniqueBatches(X, LABELS, ids, size)
    groups = np.bincount(LABELS)
    possible = [n for n in range(1, ITEMS + 1) if np.minimum(groups, n).sum() >= n * size]
    assert len(batches) == max(possible)
    found = drawn(batches, 5)
    assert_unique(found)
    for batch in found:
        assert len(batch) == size
        assert_unique(LABELS[batch])


@values_only
def test_epochs_and_seeds_differ_and_repeat():
    def order(epoch, **options):
        return np.concatenate(drawn(ClassBatches(X, LABELS, 3, 2, **options), epoch)).tolist()

    found = [order(epoch, seed=seed) for epoch in range(3) for seed in range(2)]
    assert len({*map(tuple, found)}) == 6
    assert order(2, seed=1) == found[-1]
    assert order(0, shuffle=False) == order(7, shuffle=False)
    # Over the epochs, each item of a class with enough others is drawn.
    seen = {item for epoch in range(40) for item in order(epoch)}
    assert seen == set(np.flatnonzero(LABELS < 8))


ROWS = np.eye(9)[LABELS]
FORMS = {
    "array": (X, LABELS, {}),
    "column": (X, LABELS[:, None], {}),
    "one-hot": (X, ROWS, {}),
    "by name in y": (X, {"a": X, "b": LABELS}, {"labels": "b"}),
    "by name in x": ({"x": X, "b": LABELS}, X, {"labels": "b"}),
    "array beside y": ([X, X], [X, X], {"labels": LABELS.astype(str).tolist()}),
    "NaN": (X, np.where(LABELS == 0, NAN, LABELS), {}),
    "unlabelled": (X, np.where(LABELS == 0, -1, LABELS), {"unlabelled": -1}),
    "tensor": (ops.convert_to_tensor(X), ops.convert_to_tensor(LABELS), {}),
}


@values_only
@pytest.mark.parametrize("form", FORMS)
def test_labels_may_have_any_form(form):
    x, y, options = FORMS[form]
    weights = np.linspace(0, 1, ITEMS)
    batches = ClassBatches(x, y, 3, 2, sample_weight=weights, **options)
    inputs, targets, sample_weight = batches[0]
    rows = inputs["x"] if isinstance(x, dict) else inputs[1] if isinstance(x, list) else inputs
    assert sorted(np.bincount(LABELS[rows]))[-3:] == [2, 2, 2]
    assert len(np.unique(rows)) == 6
    np.testing.assert_array_equal(sample_weight, weights[rows])
    if form in ("NaN", "unlabelled"):
        assert not np.isin(0, LABELS[np.concatenate(drawn(batches))])
    if y is not None:
        plain = keras.tree.map_structure(lambda a: ops.convert_to_numpy(a)[rows], y)
        assert_all_close(keras.tree.flatten(targets), keras.tree.flatten(plain))


# Inputs of several sources: 20 items of one, 6 of the other, and 3 of the third.
SIZES = {"a": 20, "b": 6, "c": 3}


SOURCES = {
    name: (np.full((n, 2), i, "float32"), np.arange(n) + 100 * i)
    for i, (name, n) in enumerate(SIZES.items())
}


@values_only
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"a": 10, "b": 3, "c": 2}),
        ({"drop_remainder": True}, {"a": 10, "b": 3, "c": 1}),
        ({"strategy": "round_robin"}, {"a": 2, "b": 2, "c": 2}),
        ({"strategy": "temperature", "temperature": 1}, {"a": 10, "b": 3, "c": 2}),
        # 2 batches of the third; the others have sqrt(10 / 2) and sqrt(3 / 2) times as many.
        ({"strategy": "temperature", "temperature": 2}, {"a": 4, "b": 2, "c": 2}),
        ({"strategy": "temperature", "temperature": 1e9}, {"a": 2, "b": 2, "c": 2}),
        # All of the first; of the others 3**2 / 10**2 * 10 and 2**2 / 10**2 * 10.
        ({"strategy": "temperature", "temperature": 0.5}, {"a": 10, "b": 1, "c": 1}),
        ({"batch_size": {"a": 5, "b": 6, "c": 1}}, {"a": 4, "b": 1, "c": 3}),
    ],
)
def test_strategy_determines_the_batches_of_each_source(options, expected):
    batches = TaskBatches(SOURCES, **{"batch_size": 2, **options})
    orders = []
    for epoch in range(2):
        batches.epoch = epoch
        counts, seen, order = dict.fromkeys(SIZES, 0), [], []
        for x, y, weights in batches:
            (name,) = [name for name in SIZES if not np.isnan(y[name]).any()]
            assert set(y) == {*SIZES}
            assert all(np.isnan(y[other]).all() for other in SIZES if other != name)
            assert all((weights[other] == (other == name)).all() for other in SIZES)
            assert (x == [*SIZES].index(name)).all()
            counts[name] += 1
            seen += y[name].tolist()
            order.append(name)
        assert counts == expected
        assert len(batches) == sum(expected.values())
        assert_unique(seen)
        orders.append((order, seen))
    assert orders[0][1] != orders[1][1]
    if options.get("strategy") == "round_robin":
        assert orders[0][0] == ["a", "b", "c"] * 2


@values_only
def test_inputs_of_other_sources_are_zero_and_weights_one():
    images, words = np.ones((4, 2, 2), "uint8"), np.array([["ab", "c"], ["d", "e"]])
    batches = TaskBatches(
        {
            "design": ({"image": images, "id": np.arange(4)},),
            "text": ({"words": words, "id": np.arange(2)}, {"kind": np.ones(2, "int32")}, [0.5, 2]),
        },
        batch_size=2,
        missing={"kind": -1},
        shuffle=False,
    )
    assert len(batches) == 3
    x, y, weight = batches[0]
    assert x["image"].tolist() == images[:2].tolist()
    assert x["words"].tolist() == [["", ""]] * 2
    assert (y["design"].tolist(), y["kind"].tolist()) == ([0, 0], [-1, -1])
    assert (weight["design"].tolist(), weight["kind"].tolist()) == ([1, 1], [0, 0])
    x, y, weight = batches[1]  # In turn.
    assert not x["image"].any()
    assert (x["image"].dtype, y["kind"].dtype) == ("uint8", "int32")
    assert x["words"].tolist() == words.tolist()
    assert np.isnan(y["design"]).all()
    assert y["kind"].tolist() == [1, 1]
    assert (weight["design"].tolist(), weight["kind"].tolist()) == ([0, 0], [0.5, 2])


ERRORS = [
    (lambda: ClassBatches(X, LABELS, 9, 2), "`classes_per_batch`.*at most the 8 classes.*=9"),
    (lambda: ClassBatches(X, LABELS, 0, 2), "`classes_per_batch`.*Received: classes_per_batch=0"),
    (lambda: ClassBatches(X, {"a": LABELS}, 2, 2), "`labels`.*Received: labels=None"),
    (lambda: ClassBatches(X, {"a": LABELS}, 2, 2, labels="b"), r"\['a'\].*Received: labels='b'"),
    (lambda: ClassBatches(X[1:], LABELS, 2, 2), r"same number of rows.*x of \[107\] rows"),
    (lambda: ClassBatches([X, 3], LABELS, 2, 2), "`x`.*a row for each item.*Received: x with 3"),
    (lambda: ClassBatches(X, LABELS, 2, 2, seed=-1), "`seed`"),
    (lambda: UniqueBatches(X, None, X, 2, sample_weight=X), "`sample_weight`.*`y` is None"),
    (lambda: ClassBatches(X, LABELS, 2, 2, workers=-1), "`workers`"),
    (lambda: UniqueBatches(X, None, LABELS, 10), "`batch_size`.*at most the 9 ids.*=10"),
    (lambda: TaskBatches({}), "`sources`"),
    (lambda: TaskBatches({"a": X}), r"`sources\['a'\]`.*\(x,\), \(x, y\)"),
    (lambda: TaskBatches({"a": (X, X[1:])}), "`y`.*same number of rows"),
    (lambda: TaskBatches({"a": (X,)}, {"b": 3}), "`batch_size`.*unknown names"),
    (lambda: TaskBatches({"a": (X,)}, 200, drop_remainder=True), "at most the 108 items of 'a'"),
    (lambda: TaskBatches({"a": (X,)}, strategy="mixed"), "`strategy`.*Received: strategy='mixed'"),
    (lambda: TaskBatches({"a": (X,)}, temperature=0), "`temperature`"),
    (lambda: TaskBatches({"a": (X,)}, missing={"b": 1}), "`missing`.*unknown names"),
    (lambda: TaskBatches({"a": (X,), "b": (X[:, None],)}), "'b'.*same shape"),
    (lambda: TaskBatches({"a": (X,), "b": ([X, X],)}), "`sources`.*one structure"),
    (lambda: TaskBatches({"a": (X, X + 2**25), "b": (X,)}), "`missing`.*integers of 'a'"),
    (lambda: hard_negatives(X, X), "`queries`.*Received: the shape"),
    (lambda: hard_negatives(np.eye(2), np.eye(3)), "`candidates`.*dim 2.*dim 3"),
    (lambda: hard_negatives([[NAN]], [[1.0]]), "`queries`.*finite"),
    (lambda: hard_negatives(np.eye(2), np.eye(2), margin=-1), "`margin`"),
    (lambda: hard_negatives(np.eye(2), np.eye(2), relevant=[0]), "`relevant`.*2 queries"),
    (
        lambda: hard_negatives(np.eye(2), np.eye(2), margin=0, relevant=[[0], []]),
        "`relevant`.*margin.*none for query 1",
    ),
]


@values_only
@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_invalid_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def naive_negatives(a, b, right, k, margin, strategy, similarity):
    result = []
    for i, query in enumerate(a):
        scores = []
        for candidate in b:
            length = np.linalg.norm(query) * np.linalg.norm(candidate)
            scores.append(query @ candidate / (length if similarity == "cosine" else 1))
        least = min(scores[j] for j in right[i])
        limit = np.inf
        if margin is not None:
            limit = least - margin if strategy == "absolute" else least * (1 - margin)
        wrong = [j for j in range(len(b)) if j not in right[i] and scores[j] <= limit]
        wrong.sort(key=lambda j: -scores[j])
        result.append((wrong + [-1] * k)[:k])
    return result


@values_only
@pytest.mark.parametrize("margin", [None, 0.0, 0.3])
@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_hard_negatives_equal_a_naive_loop_in_any_tiles(margin, strategy, similarity, monkeypatch):
    a, b = GENERATOR.normal(size=(11, 4)), GENERATOR.normal(size=(30, 4))
    right = [list(GENERATOR.choice(30, 1 + i % 3, replace=False)) for i in range(11)]
    for tile_size, at_once in ((1024, 2**24), (3, 21), (1, 1)):
        monkeypatch.setattr(mining, "_AT_ONCE", at_once)
        for k in (1, 5, 40):
            found = hard_negatives(a, b, k, margin, strategy, right, similarity, tile_size)
            expected = naive_negatives(a, b, right, k, margin, strategy, similarity)
            assert found.tolist() == expected
    one_to_one = naive_negatives(a, b[:11], [[i] for i in range(11)], 2, margin, strategy, "dot")
    tensors = [ops.convert_to_tensor(x, "float32") for x in (a, b[:11])]
    found = hard_negatives(*tensors, 2, margin, strategy, similarity="dot")
    assert found.tolist() == one_to_one


def visits(batches, epochs, **options):
    """Returns how often each item is in an epoch of `fit`, and the weights that depend on order.

    A step takes from each item that it has a number that grows with each step.
    """
    items = keras.Input((), dtype="int32")
    counts = keras.layers.Embedding(ITEMS, 1, embeddings_initializer="zeros")(items)
    model = keras.Model(items, ops.reshape(counts, (-1,)))
    rate = keras.optimizers.schedules.PolynomialDecay(1.0, 100, 101.0)
    model.compile(keras.optimizers.SGD(rate), loss=lambda y, x: x)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0, **options)
    return np.round(-6 * ops.convert_to_numpy(model.get_weights()[0])[:, 0]), model


def expected_visits(batches, epochs):
    """Returns the same from the batches by themselves."""
    totals, step = np.zeros(ITEMS), 0
    for epoch in epochs:
        for items in drawn(batches, epoch):
            step += 1
            totals[items] += step
    return totals


def make_batches(**options):
    return ClassBatches(X, LABELS.astype("float32"), 3, 2, seed=3, **options)


WORKERS = [
    {},
    {"workers": 3},
    pytest.param({"workers": 3, "max_queue_size": 1}, marks=values_only),
    # Each process of JAX and TensorFlow has threads, which Python must not fork.
    pytest.param({"workers": 2, "use_multiprocessing": True}, marks=values_only),
]


@pytest.mark.parametrize("options", WORKERS)
def test_fit_sees_the_batches_of_each_epoch_once_and_resumes_with_those_of_a_later_one(options):
    batches = make_batches(**options)
    found, model = visits(batches, 3)
    np.testing.assert_array_equal(found, expected_visits(make_batches(), range(3)))
    # Compiled again, so that Keras asks for a batch before the first epoch.
    found, _ = visits(batches, 4, initial_epoch=2)
    np.testing.assert_array_equal(found, expected_visits(make_batches(), (2, 3)))
    if not options:
        model.fit(batches, epochs=1, verbose=0)  # Now Keras knows the model.
        assert batches.epoch == 0


def test_model_without_outputs_for_losses_takes_no_targets():
    x = {"x": np.eye(6, dtype="float32"), "id": np.arange(6) % 3}
    inputs = {"x": keras.Input((6,), name="x"), "id": keras.Input((), name="id", dtype="int32")}
    views = keras.layers.Dense(2)(inputs["x"])
    views = kj.layers.ContrastiveTerm("SupCon")((views, inputs["id"]))
    model = keras.Model(inputs, views)
    model.compile("sgd")
    batches = ClassBatches(x, None, 2, 2, labels="id")
    assert len(batches[0]) == 1
    assert np.isfinite(model.fit(batches, verbose=0).history["loss"]).all()


@once_compiled
def test_backup_resumes_with_the_batches_of_its_epoch(tmp_path):
    class Fails(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    def backup():
        return keras.callbacks.BackupAndRestore(tmp_path / "backup", delete_checkpoint=False)

    with pytest.raises(KeyboardInterrupt):
        visits(make_batches(), 4, callbacks=[Fails(), backup()])
    found, _ = visits(make_batches(workers=2), 4, callbacks=[backup()])
    np.testing.assert_array_equal(found, expected_visits(make_batches(), range(4)))


@once_compiled
def test_evaluation_and_prediction_have_the_batches_that_are_due():
    batches = make_batches(shuffle=False, workers=2)
    _, model = visits(batches, 2, validation_data=batches)
    expected = np.concatenate([model.predict(x, verbose=0) for x, _ in make_batches(shuffle=False)])
    np.testing.assert_allclose(model.predict(batches, verbose=0), expected, rtol=1e-6)
    assert np.isfinite(model.evaluate(batches, verbose=0))


@values_only
def test_copies_have_the_same_batches():
    batches = make_batches(workers=2)
    batches.epoch = 3
    batches.on_epoch_begin()
    copy = pickle.loads(pickle.dumps(batches))
    batches.on_epoch_end()
    np.testing.assert_array_equal(drawn(copy, 3), drawn(batches, 3))


@pytest.mark.parametrize(
    "strategy", ["proportional", pytest.param("round_robin", marks=values_only)]
)
def test_tasks_train_as_a_loop_in_which_each_batch_has_one_term(strategy):
    generator = np.random.default_rng(1)
    x = {name: generator.normal(size=(n, 4)).astype("float32") for name, n in SIZES.items()}
    y = {name: generator.normal(size=(n, 2)).astype("float32") for name, n in SIZES.items()}
    y["c"] = generator.integers(0, 2, size=3)
    batches = TaskBatches(
        {name: (x[name], y[name]) for name in SIZES},
        batch_size={"a": 8, "b": 4, "c": 3},
        strategy=strategy,
        missing={"c": -1},
    )
    inputs = keras.Input((4,))
    heads = {name: keras.layers.Dense(2, use_bias=False, name=name)(inputs) for name in SIZES}
    model = keras.Model(inputs, heads)
    losses = {"a": "mse", "b": "mse"}
    losses["c"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    weights = {"a": 1.0, "b": 0.5, "c": 2.0}
    missing = {"a": NAN, "b": NAN, "c": -1}
    model.compile(keras.optimizers.SGD(0.1), **kj.joint_loss(losses, weights, missing=missing))
    kernels = {
        name: ops.convert_to_numpy(model.get_layer(name).kernel).astype("float64") for name in SIZES
    }
    callback = kj.callbacks.JointLossCallback()
    history = model.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=[callback])
    totals = dict.fromkeys(SIZES, 0.0)
    for epoch in range(2):
        batches.epoch, totals = epoch, dict.fromkeys(SIZES, (0.0, 0))
        for inputs, targets, _ in batches:
            for name, target in targets.items():
                if (target == -1).all() or np.isnan(target).all():
                    continue
                output = inputs.astype("float64") @ kernels[name]
                if name == "c":
                    p = np.exp(output) / np.exp(output).sum(axis=1, keepdims=True)
                    value = -np.log(p[np.arange(len(p)), target]).mean()
                    upstream = (p - np.eye(2)[target]) / len(p)
                else:
                    value = np.mean((output - target) ** 2)
                    upstream = 2 * (output - target) / target.size
                kernels[name] -= 0.1 * weights[name] * inputs.T @ upstream
                total, count = totals[name]
                totals[name] = total + len(inputs) * value, count + len(inputs)
    for name in SIZES:
        assert_all_close([model.get_layer(name).kernel], [kernels[name]], 1e-4, 1e-5)
        total, count = totals[name]
        labelled = history.history[f"{name}_labelled_loss"][-1]
        assert labelled == pytest.approx(total / count, rel=1e-4)


@values_only
def test_pairs_and_labels_train_in_one_fit():
    generator = np.random.default_rng(2)
    pair = {name: generator.normal(size=(16, 4)).astype("float32") for name in ("left", "right")}
    labelled = {"left": generator.normal(size=(6, 4)).astype("float32")}
    batches = TaskBatches(
        {"pair": (pair,), "label": (labelled, np.arange(6) % 3)},
        batch_size={"pair": 8, "label": 3},
        shuffle=False,
    )
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    tower = keras.layers.Dense(3, name="tower")
    views = ops.stack([tower(left), tower(right)], axis=1)
    label = keras.layers.Dense(3, activation="softmax", name="label")(views[:, 0])
    model = keras.Model({"left": left, "right": right}, {"pair": views, "label": label})
    losses = {"pair": kj.losses.InfoNCE(0.1), "label": "sparse_categorical_crossentropy"}
    joint = kj.joint_loss(losses, missing={"label": NAN}, weighting="famo")
    model.compile(keras.optimizers.SGD(0.0), **joint)
    callback = kj.callbacks.JointLossCallback()
    options = {"shuffle": False, "verbose": 0, "callbacks": [callback]}
    history = model.fit(batches, **options).history
    assert np.isfinite(history["loss"]).all()
    total = 0.0
    for start in (0, 8):
        outputs = model.predict({k: v[start : start + 8] for k, v in pair.items()}, verbose=0)
        total += 8 * float(losses["pair"](np.zeros(8), outputs["pair"]))
    assert history["pair_loss"] == pytest.approx([total / 22], rel=1e-4)
    probability = model.predict({**labelled, "right": labelled["left"]}, verbose=0)["label"]
    expected = -np.log(probability[np.arange(6), np.arange(6) % 3]).mean()
    assert history["label_labelled_loss"] == pytest.approx([expected], rel=1e-4)
    assert history["label_labelled"] == pytest.approx([6 / 22])
    # FAMO divides by the losses: none seems to be 0 where the other source has the batch.
    ratio = history["pair_weight"][0] / history["label_weight"][0]
    assert 0.5 < ratio * (total / 16) / expected < 2
