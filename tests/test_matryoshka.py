"""Matryoshka: a loss at several widths, in direct calls, in layers and as the loss of an output."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss._core.batch import Items
from keras_jointloss.callbacks import JointLossCallback
from tests import loss_cases as cases
from tests import reference
from tests.backends import once_compiled
from tests.loss_cases import VALID, Case, assert_close, labels_of, views_of

DIMS, WEIGHTS = [4, 2, 3], [1.0, 0.5, 2.0]
INNER = {
    "tiled": Case("info_nce", {"tile_size": 2}),
    "labelled": Case("sup_con", {"temperature": 0.2}, 1),
    "statistics": Case("vicreg"),
    "sigmoid": Case("siglip", {"bias": -1.0}),
    "pairs": Case("contrastive"),
}


def matryoshka(case, weights=WEIGHTS, **arguments):
    return kj.losses.Matryoshka(case.make(), DIMS, weights, **arguments)


def naive(case, views, labels, valid=None, weights=WEIGHTS):
    arguments = {key: x for key, x in case.arguments.items() if key != "tile_size"}
    parts = [case.naive(views[..., :dim], labels, valid, **arguments) for dim in DIMS]
    return sum(weight * part for weight, part in zip(weights, parts, strict=True))


@once_compiled
@pytest.mark.parametrize("case", INNER.values(), ids=INNER)
def test_value_and_gradient_are_the_sums_over_the_widths(case):
    views, labels = views_of(case, dim=4), labels_of(case) if case.labels else None
    weight = np.linspace(0.5, 1.5, 5)
    loss = matryoshka(case)
    assert (loss.has_labels, loss.min_views) == (case.labels is not None, case.make().min_views)

    def parts(x, labels, valid):
        items = (Items(0, 2), Items(2, 3))
        return ops.concatenate([loss.values(x, labels, valid, each) for each in items])

    for values in (loss.values, parts):
        value, gradient = cases.weighted_value_and_gradient(
            values, views.astype("float32"), labels, VALID, weight
        )
        assert_close(value, np.sum(naive(case, views, labels, VALID) * weight), 1e-4)
        numeric = reference.central_differences(
            lambda x: np.sum(naive(case, x, labels, VALID) * weight), views
        )
        assert_close(gradient, numeric, 1e-3)


def test_widths_weigh_1_by_default_and_the_reduction_is_the_outer_one():
    case = INNER["tiled"]
    views = views_of(case, dim=4)
    inner = case.make(reduction="mean_with_sample_weight")
    loss = kj.losses.Matryoshka(inner, DIMS, reduction="sum")
    expected = np.sum(naive(case, views, None, weights=[1, 1, 1]))
    assert float(loss(np.zeros(5), views.astype("float32"))) == pytest.approx(expected, rel=1e-4)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(loss))
    assert again.get_config() == loss.get_config()
    assert kj.losses.Matryoshka("InfoNCE", [2]).loss.name == "info_nce"


VIEWS = np.random.default_rng(0).normal(size=(6, 2, 4)).astype("float32")
LABELS = np.array([0, 1, 1, 2, 0, 1])


@once_compiled
def test_term_shares_temperature_and_memory_and_logs_each_width(tmp_path):
    inner = kj.losses.InfoNCE(0.5, same_label="ignore", unlabelled=2)
    loss = kj.losses.Matryoshka(inner, [4, 2], [1.0, 0.5])
    inputs = keras.Input((2, 4)), keras.Input((), dtype="int32")
    same = keras.layers.Dense(4, kernel_initializer="identity")(inputs[0])
    term = kj.layers.ContrastiveTerm(loss, learn_temperature=True, memory_size=6, name="pair")
    model = keras.Model(inputs, term((same[:, 0], same[:, 1], inputs[1])))
    model.compile(keras.optimizers.SGD(0.0))
    assert len(term.trainable_variables) == 1
    options = {"batch_size": 6, "verbose": 0, "callbacks": [JointLossCallback()]}
    term.trainable_variables[0].assign(np.log(5.0))

    def expected(memory):
        """Returns the loss and its parts among the batch and the memory, of the valid items."""
        views, labels = np.concatenate([VIEWS, memory]), np.resize(LABELS, 6 + len(memory))
        arguments = {"temperature": 0.2, "same_label": "ignore"}
        found = {
            d: np.sum(reference.info_nce(views[..., :d], labels, labels != 2, **arguments)[:6]) / 6
            for d in (4, 2)
        }
        return {"loss": found[4] + 0.5 * found[2], "dim_4": found[4], "dim_2": found[2]}

    for memory in (VIEWS[:0], VIEWS):  # The first epoch fills the memory with its batch.
        logs = model.fit([VIEWS, LABELS], **options).history
        for name, value in expected(memory).items():
            assert logs[f"pair_{name}"] == [pytest.approx(value, rel=1e-4)]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    found = (x.evaluate([VIEWS, LABELS], verbose=0) for x in (loaded, model))
    assert next(found) == pytest.approx(next(found), rel=1e-5)


def test_output_with_labels_logs_each_width():
    loss = kj.losses.Matryoshka(kj.losses.SupCon(0.5), [4, 2])
    inputs = keras.Input((2, 4))
    same = keras.layers.Dense(4, kernel_initializer="identity", name="views")
    model = keras.Model(inputs, {"views": same(inputs)})
    metric = kj.metrics.RecallAtK(dim=2)
    joint = kj.joint_loss({"views": loss}, metrics={"views": metric})
    model.compile(keras.optimizers.SGD(0.0), **joint)
    logs = model.evaluate(VIEWS, {"views": LABELS}, return_dict=True, verbose=0)
    parts = {d: np.mean(reference.sup_con(VIEWS[..., :d], LABELS, None, 0.5)) for d in (4, 2)}
    assert logs["loss"] == pytest.approx(parts[4] + parts[2], rel=1e-4)
    for dim, value in parts.items():
        found = [
            x for name, x in logs.items() if name.endswith(f"dim_{dim}") and "recall" not in name
        ]
        assert found == [pytest.approx(value, rel=1e-4)]
    assert any("recall_at_1_dim_2" in name for name in logs)


def test_widths_of_an_output_follow_the_schedule_of_their_loss(tmp_path):
    schedule = kj.schedules.Linear(0.6, 0.2, 2)
    inputs = keras.Input((2, 4))
    model = keras.Model(inputs, {"views": keras.layers.Dense(4, name="views")(inputs)})
    loss = kj.losses.Matryoshka(kj.losses.InfoNCE(schedule), [4, 2])
    model.compile(keras.optimizers.SGD(0.0), **kj.joint_loss({"views": loss}))
    options = {"batch_size": 6, "verbose": 0, "callbacks": [JointLossCallback()]}
    y = {"views": np.zeros(6)}
    model.save(tmp_path / "model.keras")
    for other in (model, keras.models.load_model(tmp_path / "model.keras")):
        for _ in range(2):
            logs = other.fit(VIEWS, y, **options).history
            evaluated = other.evaluate(VIEWS, y, verbose=0, return_dict=True)
            for found in ({key: x[0] for key, x in logs.items()}, evaluated):
                parts = [x for key, x in found.items() if key.endswith(("dim_4", "dim_2"))]
                assert len(parts) == 2
                assert sum(parts) == pytest.approx(found["loss"], rel=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [
        {"loss": "MeanSquaredError", "dims": [2]},
        *({"dims": dims} for dims in ([], [0], [2, 2], [1.5], "2", 2, None)),
        *({"weights": weights} for weights in ([1.0], [1.0, -1.0], [1.0, "2"], 1.0)),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(arguments):
    name = "loss" if "loss" in arguments else next(iter(arguments))
    with pytest.raises(ValueError, match=rf"`{name}`.*Received: {name}="):
        kj.losses.Matryoshka(**{"loss": "InfoNCE", "dims": [4, 2], **arguments})


def test_narrower_embeddings_are_refused():
    loss = kj.losses.Matryoshka("InfoNCE", [8])
    with pytest.raises(ValueError, match=r"`dims`.*at most 4.*Received: dims=\[8\]"):
        loss(np.zeros(6), VIEWS)
    with pytest.raises(ValueError, match=r"expects stacked views .*Received: shape="):
        loss(np.zeros(6), VIEWS[:, :1])
    model = keras.Sequential([keras.layers.Dense(4)])
    model.compile("sgd", loss)
    with pytest.raises(ValueError, match=r"`dims`.*at most 4"):
        model.evaluate(VIEWS, np.zeros(6), verbose=0)
