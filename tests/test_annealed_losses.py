"""Arguments of losses that follow a schedule."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.gradients import value_and_gradient
from tests.small_models import X, fit

START, END, STEPS = 0.6, 0.2, 4
SCHEDULE = kj.schedules.Linear(START, END, STEPS)
#: The losses that take a schedule, by the name of the argument.
LOSSES = {
    "temperature": (
        *("InfoNCE", "NTXent", "SupCon", "DecoupledContrastive", "SigLIP"),
        "SimilarityDistillation",
    ),
    "teacher_temperature": ("SimilarityDistillation",),
    "label_smoothing": ("InfoNCE", "NTXent", "SupCon", "NPairs"),
    "hardness": ("InfoNCE",),
    "margin": (
        *("Circle", "Contrastive", "CosineEmbedding", "MarginContrastive"),
        *("Triplet", "TripletMargin"),
    ),
}
#: The number of views where it is not 2.
VIEWS = {"TripletMargin": 3, "SimilarityDistillation": 4}
CASES = [(name, argument) for argument, names in LOSSES.items() for name in names]


def views(count=2):
    return np.random.default_rng(3).normal(size=(8, count, 4)).astype("float32")


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_loss_with_a_moved_argument_is_that_with_the_number(name, argument):
    create = getattr(kj.losses, name)
    moved = create(**{argument: SCHEDULE}).moved_by(
        lambda: {argument: ops.convert_to_tensor(0.3, "float32")}
    )
    labels = np.arange(8) % 2
    found, expected = (
        value_and_gradient(lambda x, loss=loss: loss(labels, x), views(VIEWS.get(name, 2)))
        for loss in (moved, create(**{argument: 0.3}))
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5, atol=1e-7)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(moved))
    assert copy.schedules[argument].get_config() == SCHEDULE.get_config()


def test_matryoshka_moves_the_argument_of_its_loss():
    loss = kj.losses.Matryoshka(kj.losses.InfoNCE(SCHEDULE), [4, 2])
    moved, expected = (
        kj.losses.Matryoshka.from_config(x.get_config())
        for x in (loss, kj.losses.Matryoshka(kj.losses.InfoNCE(0.3), [4, 2]))
    )
    assert list(moved.schedules) == ["temperature"]
    found = moved.moved_by(lambda: {"temperature": 0.3})(np.zeros(8), views())
    np.testing.assert_allclose(found, expected(np.zeros(8), views()), rtol=1e-6)


def model_of(loss, is_layer):
    inputs = keras.Input((5,))
    dense = [
        keras.layers.Dense(3, kernel_initializer=keras.initializers.RandomNormal(seed=i))
        for i in (0, 1)
    ]
    a, b = (layer(inputs) for layer in dense)
    if is_layer:
        model = keras.Model(inputs, kj.layers.ContrastiveTerm(loss, name="pair")((a, b)))
        model.compile(keras.optimizers.SGD(0.0))
    else:
        model = keras.Model(inputs, {"pair": ops.stack([a, b], axis=1)})
        model.compile(keras.optimizers.SGD(0.0), **kj.joint_loss({"pair": loss}))
    return model


@pytest.mark.parametrize("is_layer", [False, True])
def test_argument_follows_the_steps_of_training_through_saving(tmp_path, is_layer):
    def run(model, epochs, start=0):
        y = X if is_layer else {"pair": X[:, :1]}
        return fit(model, y=y, batch_size=len(X), epochs=start + epochs, initial_epoch=start)

    model = model_of(kj.losses.InfoNCE(SCHEDULE), is_layer)
    logs = run(model, 2)
    model.save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    more = run(model, 3, 2)
    # At the end of an epoch, of one step, the logs show the value of the next step.
    values = [START + (END - START) * min(i, STEPS) / STEPS for i in range(6)]
    np.testing.assert_allclose(
        [*logs["pair_temperature"], *more["pair_temperature"]], values[1:], rtol=1e-6
    )
    found = [*logs["pair_loss"], *more["pair_loss"]]
    expected = [
        run(model_of(kj.losses.InfoNCE(value), is_layer), 1)["pair_loss"][0] for value in values[:5]
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_schedule_that_nothing_moves_is_refused():
    loss = kj.losses.InfoNCE(SCHEDULE)
    with pytest.raises(ValueError, match=r"`keras_jointloss.joint_loss`.*\['temperature'\]"):
        loss(np.zeros(8), views())


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda x: kj.losses.InfoNCE(x), "`temperature`.*a finite number > 0"),
        (lambda x: kj.losses.InfoNCE(label_smoothing=x), "`label_smoothing`.*>= 0 and < 1"),
        (lambda x: kj.losses.Triplet(x), "`margin`.*a finite number >= 0"),
    ],
)
def test_schedule_that_starts_with_an_invalid_value_is_refused(create, message):
    with pytest.raises(ValueError, match=f"{message}.*Received"):
        create(kj.schedules.Linear(-1.0, 0.5, 8))


def test_temperature_that_follows_a_schedule_is_not_learned():
    with pytest.raises(ValueError, match=r"`learn_temperature`.*follows a schedule"):
        kj.layers.ContrastiveTerm(kj.losses.SigLIP(SCHEDULE), learn_temperature=True)


def test_target_that_follows_a_schedule_is_logged():
    inputs = keras.Input((5,))
    target = kj.schedules.Linear(0.0, 2.0, 2)
    x = keras.layers.Dense(1)(inputs)
    model = keras.Model(inputs, kj.layers.LossTerm(target=target, name="capacity")(x, x))
    model.compile("sgd")
    logs = fit(model, y=X, batch_size=len(X), epochs=2)
    np.testing.assert_allclose(logs["capacity_target"], [1.0, 2.0])


def test_schedule_without_callback_warns():
    model = model_of(kj.losses.InfoNCE(SCHEDULE), False)
    with pytest.warns(UserWarning, match="do not move: no `JointLossCallback`"):
        fit(model, y={"pair": X[:, :1]}, callbacks=[])
