"""The layer that computes the targets of a frozen model, for distillation."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.layers import LossTerm, Teacher
from tests.backends import BACKEND, once_compiled, tf
from tests.comparisons import assert_all_close
from tests.refusals import refuses
from tests.test_export import operation_types
from tests.test_training import replicas

GENERATOR = np.random.default_rng(0)
X = GENERATOR.normal(size=(24, 6)).astype("float32")
Y = GENERATOR.integers(0, 3, 24)
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def make_teacher(width=8, **options):
    """Returns a model with layers that differ in training mode, and with losses of its own."""
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(width, name="features", activity_regularizer="l2", **options),
        keras.layers.BatchNormalization(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(3, name="logits"),
    ]
    teacher = keras.Sequential(layers, name="large")
    # Statistics that are not those of any batch.
    statistics = [GENERATOR.uniform(0.5, 2, size=x.shape) for x in teacher.layers[1].get_weights()]
    teacher.layers[1].set_weights(statistics)
    return teacher


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
def soft_targets(target, logits, temperature=3.0):
    """Returns the divergence of softened classes, as in Hinton 2015."""
    target, logits = (ops.softmax(x / temperature) for x in (target, logits))
    return temperature**2 * keras.losses.kl_divergence(target, logits)


def make_student(teacher=None, layer=None, **options):
    """Returns a compiled student; without a teacher, its targets come from a layer or are zeros."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,), name="x")
    hidden = keras.layers.Dense(4, activation="tanh", name="hidden")(inputs)
    logits = keras.layers.Dense(3, name="head")(hidden)
    if layer is None and teacher is not None:
        layer = Teacher(teacher, name="teacher", **options)
    target = 0 * logits if layer is None else layer(inputs)
    logits = LossTerm(soft_targets, weight=0.5, name="distill")(logits, target)
    model = keras.Model(inputs, {"label": keras.layers.Activation("linear")(logits)})
    model.compile(keras.optimizers.Adam(0.01), **kj.joint_loss({"label": CROSSENTROPY}))
    return model


def fit(model, **options):
    options = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0, **options}
    callbacks = [kj.callbacks.JointLossCallback()]
    return model.fit(X, {"label": Y}, callbacks=callbacks, **options).history


def kernels(model):
    return [np.copy(ops.convert_to_numpy(x)) for x in model.trainable_variables]


def with_targets(targets):
    """Returns a student whose targets are computed beforehand and are an input."""
    keras.utils.set_random_seed(1)
    inputs, target = keras.Input((6,), name="x"), keras.Input((3,), name="target")
    hidden = keras.layers.Dense(4, activation="tanh", name="hidden")(inputs)
    logits = keras.layers.Dense(3, name="head")(hidden)
    logits = LossTerm(soft_targets, weight=0.5, name="distill")(logits, target)
    model = keras.Model([inputs, target], {"label": keras.layers.Activation("linear")(logits)})
    model.compile(keras.optimizers.Adam(0.01), **kj.joint_loss({"label": CROSSENTROPY}))
    return model


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_training_equals_that_with_targets_computed_beforehand(policy):
    teacher = make_teacher(dtype="float32")
    keras.config.set_dtype_policy(policy)
    before = [np.copy(x) for x in teacher.get_weights()]
    targets = teacher.predict(X, verbose=0)
    expected = with_targets(targets)
    data = {"batch_size": 8, "epochs": 2, "shuffle": False, "verbose": 0}
    callbacks = [kj.callbacks.JointLossCallback()]
    logs = expected.fit([X, targets], {"label": Y}, callbacks=callbacks, **data).history
    model = make_student(teacher)
    history = fit(model)
    tolerance = 1e-5 if policy == "float32" else 1e-2
    assert_all_close(history, logs, tolerance)
    assert_all_close(kernels(model), kernels(expected), tolerance, tolerance)
    evaluated = model.evaluate(X, {"label": Y}, batch_size=8, verbose=0, return_dict=True)
    given = {"batch_size": 8, "verbose": 0, "return_dict": True}
    assert_all_close(evaluated, expected.evaluate([X, targets], {"label": Y}, **given), tolerance)
    assert_all_close(teacher.get_weights(), before)
    assert teacher.losses == [] or BACKEND != "jax"  # What is left is dropped in the next step.
    assert len(teacher.losses) <= 2


def test_student_has_neither_weights_nor_optimizer_state_of_the_teacher():
    teacher, plain = make_teacher(), make_student()
    model = make_student(teacher)
    for set_trainable in (None, False, True):
        if set_trainable is not None:
            model.trainable = set_trainable
        assert teacher.trainable_variables == []
        assert len(model.weights) == len(plain.weights)
    assert len(model.trainable_variables) == len(plain.trainable_variables)
    fit(model, epochs=1)
    fit(plain, epochs=1)
    assert len(model.optimizer.variables) == len(plain.optimizer.variables)


def sizes(model, folder):
    model.save(folder / "model.keras")
    model.save_weights(folder / "model.weights.h5")
    return [(folder / name).stat().st_size for name in ("model.keras", "model.weights.h5")]


def test_files_have_the_size_of_those_without_a_teacher(tmp_path):
    plain, small, large = (
        make_student(*teachers)
        for teachers in ([], [make_teacher()], [make_teacher(width=512, kernel_regularizer="l2")])
    )
    found = [sizes(model, tmp_path) for model in (plain, small, large)]
    assert found[1] == found[2]
    assert 0 <= found[1][0] - found[0][0] < 800  # The arguments of the layer.
    assert found[1][1] == found[0][1]
    asked = sizes(make_student(make_teacher(width=512), save_teacher=True), tmp_path)
    assert min(np.subtract(asked, found[2])) > 4 * 6 * 512


@pytest.mark.parametrize("save_teacher", [False, True])
def test_loaded_student_resumes_with_its_teacher(save_teacher, tmp_path):
    teacher = make_teacher()
    model = make_student(teacher, save_teacher=save_teacher)
    fit(model, epochs=1)
    expected = model.predict(X, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_all_close([loaded.predict(X, verbose=0)], [expected], 1e-5)
    assert_all_close([loaded(X)], [expected], 1e-4, 1e-5)
    layer = loaded.get_layer("teacher")
    if save_teacher:
        with pytest.raises(ValueError, match="has its teacher for good"):
            layer.set_model(teacher)
    else:
        message = r"'teacher' has no teacher.*get_layer\('teacher'\).set_model\(teacher\)"
        with pytest.raises(ValueError, match=message):
            fit(loaded)
        with pytest.raises(ValueError, match=message):
            loaded.evaluate(X, {"label": Y}, verbose=0)
        assert np.isnan(ops.convert_to_numpy(layer(X))).all()
        layer.set_model(teacher)
    data = {"epochs": 2, "initial_epoch": 1}
    assert_all_close(fit(loaded, **data), fit(model, **data), 1e-4)
    loaded.load_weights(tmp_path / "model.weights.h5")


def test_clone_has_the_same_teacher():
    model = make_student(make_teacher())
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    assert clone.get_layer("teacher")._get_model() is model.get_layer("teacher")._get_model()
    assert_all_close(fit(clone), fit(model), 1e-5)


def features_of(teacher):
    return keras.Model(teacher.inputs[0], [x.output for x in teacher.layers])


@once_compiled
def test_outputs_are_those_of_layers():
    teacher = make_teacher()
    z = features_of(teacher)(X, training=False)
    found = Teacher(teacher, outputs=["logits", "features"])(X)
    assert_all_close(found, [z[3], z[0]], 1e-6)
    assert_all_close([Teacher(teacher, outputs="features")(X)], [z[0]], 1e-6)


def test_features_of_a_teacher_are_targets(tmp_path):
    teacher = make_teacher()
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4)(inputs)
    guess = keras.layers.Dense(8, name="guess")(hidden)
    layer = Teacher(teacher, outputs=["features", "logits"], name="teacher")
    features, logits = layer(inputs)
    guess = LossTerm("mse", name="hint")(guess, features)
    output = LossTerm("mse", name="distill")(keras.layers.Dense(3)(guess), logits)
    model = keras.Model(inputs, output)
    model.compile(keras.optimizers.SGD(0.1))
    model.fit(X, verbose=0)
    logs = model.evaluate(X, batch_size=24, verbose=0, return_dict=True)
    part = keras.Model(inputs, [guess, output])
    z = features_of(teacher).predict(X, verbose=0)
    for name, found, expected in zip(
        ("hint", "distill"), part.predict(X, verbose=0), (z[0], z[3]), strict=True
    ):
        assert logs[f"{name}_loss"] == pytest.approx(np.mean((found - expected) ** 2), rel=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.get_layer("teacher").set_model(teacher)
    again = loaded.evaluate(X, batch_size=24, verbose=0, return_dict=True)
    assert again == pytest.approx(logs, rel=1e-5)


class Counting(keras.layers.Layer):
    """Counts its calls, in training mode and in inference mode."""

    def __init__(self):
        super().__init__()
        self.calls, self.training = 0, set()

    def call(self, x, training=None):
        self.calls += 1
        self.training.add(training)
        return 2 * x


class Student(keras.Model):
    """A subclassed student, which runs without a symbolic build."""

    def __init__(self, teacher):
        super().__init__()
        self.head, self.teacher = keras.layers.Dense(6), Teacher(teacher)
        self.distill = LossTerm("mse", name="distill")

    def call(self, x):
        return self.distill(self.head(x), self.teacher(x))


@pytest.mark.parametrize("is_subclassed", [False, True])
def test_teacher_runs_in_fit_and_evaluate_and_not_in_predict(is_subclassed, monkeypatch):
    counting = Counting()
    teacher = keras.Sequential([keras.Input((6,)), counting])
    if is_subclassed:
        model = Student(teacher)
    else:
        inputs = keras.Input((6,))
        z = LossTerm("mse", name="distill")(keras.layers.Dense(6)(inputs), Teacher(teacher)(inputs))
        model = keras.Model(inputs, z)
    model.compile("adam")
    counting.training.clear()

    def calls(run):
        counting.calls = 0
        run(X)
        return counting.calls

    run = {"batch_size": 8, "verbose": 0}
    # Of a subclassed student, the first call learns the shapes.
    model.predict(X, **run)
    assert calls(lambda x: model.predict(x, **run)) == 0
    assert calls(lambda x: model.predict_on_batch(x)) == 0
    with monkeypatch.context() as patched:  # Nor are its shapes computed again.
        patched.setattr(teacher, "compute_output_spec", None)
        model.predict(X, **run)
    assert calls(lambda x: model.fit(x, **run)) > 0
    assert calls(lambda x: model.evaluate(x, **run)) > 0
    assert calls(lambda x: model(x)) == 1
    assert calls(lambda x: model(x, training=True)) == 1
    assert calls(lambda x: model.predict(x, **run)) == 0
    assert counting.training == {False}


@pytest.mark.filterwarnings("ignore:The `native_serialization` parameter:DeprecationWarning")
@pytest.mark.backend("tensorflow", "jax")
def test_prediction_and_export_have_no_operation_of_the_teacher(tmp_path):
    import tensorflow

    teacher = make_teacher(width=8192)
    model = make_student(teacher)
    expected = model.predict(X, verbose=0)
    model.export(tmp_path / "served", verbose=False)
    served = tensorflow.saved_model.load(str(tmp_path / "served"))
    assert_all_close(served.serve(X), expected, 1e-5, 1e-6)
    size = sum(x.stat().st_size for x in (tmp_path / "served").rglob("*") if x.is_file())
    assert size < 4 * sum(x.size for x in teacher.get_weights())
    if BACKEND == "tensorflow":
        predict = tf.function(lambda x: model.predict_step((x,)))
        graph = predict.get_concrete_function(tf.TensorSpec((None, 6)))
        for function in (graph, served.signatures["serve"]):
            assert operation_types(function).count("MatMul") == 2


@once_compiled
def test_outputs_of_a_prediction_are_nan_or_zero_of_the_right_shapes():
    inputs = keras.Input((None, 2))
    teacher = keras.Model(
        inputs,
        {
            "pool": keras.layers.GlobalAveragePooling1D()(inputs),
            "time": keras.layers.Dense(3)(inputs),
            "class": ops.argmax(inputs, axis=-1),
        },
    )
    student = keras.Model(inputs, Teacher(teacher)(inputs))
    x = np.ones((5, 7, 2), "float32")
    found, expected = student.predict(x, verbose=0), teacher.predict(x, verbose=0)
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        assert np.isnan(found[name]).all() if value.dtype.kind == "f" else not found[name].any()


def test_teacher_may_have_terms_of_its_own_and_be_a_student():
    """Its terms add no losses and count no steps, and its own teacher does not run."""
    first = keras.Sequential([keras.Input((6,)), Counting(), keras.layers.Dense(3)])
    schedule = kj.schedules.Linear(0.0, 1.0, 10)
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    tower = keras.layers.Dense(3)
    z, slow = tower(inputs), kj.layers.MomentumTower(tower, name="slow")(inputs)
    z, _ = kj.layers.ContrastiveTerm("InfoNCE", schedule, name="pair")((z, slow))
    z = LossTerm("mse", schedule, name="own")(z, Teacher(first)(inputs))
    z = kj.layers.GradientScale(schedule, name="scale")(z)
    z = kj.layers.GradientBalancer(["a"], name="balancer")(z)["a"]
    teacher = keras.Model(inputs, z)
    teacher.compile("adam", **kj.joint_loss("mse"))
    before = teacher.get_weights()
    targets = teacher.predict(X, verbose=0)
    model = make_student(teacher)
    first.layers[0].calls = 0
    history = fit(model)
    assert_all_close(history, fit(with_student_targets(targets)), 1e-4)
    assert_all_close(teacher.get_weights(), before)
    assert first.layers[0].calls == 0
    for name in ("pair", "own"):
        assert teacher.get_layer(name).weight.step == 0


def with_student_targets(targets):
    """Returns a student whose teacher is a table of the targets of each input."""

    class Table(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.keys, self.values = ops.convert_to_tensor(X), ops.convert_to_tensor(targets)

        def call(self, x):
            distance = ops.sum((x[:, None] - self.keys[None]) ** 2, axis=-1)
            return ops.take(self.values, ops.argmin(distance, axis=1), axis=0)

    return make_student(layer=Table())


@pytest.mark.backend("tensorflow")
def test_two_replicas_equal_one_device():
    teacher = make_teacher()
    single = make_student(teacher)
    expected = fit(single)
    with replicas(2).scope():
        model = make_student(teacher)
    assert_all_close(fit(model), expected, 1e-4)
    assert_all_close(kernels(model), kernels(single), 1e-4, 1e-5)


def test_teacher_whose_weights_change_between_trainings_is_followed():
    teacher = make_teacher()
    model, expected = make_student(teacher), make_student(teacher)
    fit(model, epochs=1)
    model.set_weights(expected.get_weights())
    for variable in model.optimizer.variables:
        if variable.name != "learning_rate":
            variable.assign(np.zeros(variable.shape))
    teacher.set_weights([2 * x for x in teacher.get_weights()])
    assert_all_close(fit(model, epochs=1), fit(expected, epochs=1), 1e-5)


def test_loss_equals_that_of_the_distiller_of_keras():
    distillation = pytest.importorskip("keras.distillation")
    teacher = make_teacher()
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(4, activation="tanh")(inputs)
    student = keras.Model(inputs, keras.layers.Dense(3)(hidden))
    peer = distillation.Distiller(
        teacher,
        student,
        # By its name, Keras 3.15 finds the function, and compares the logits themselves.
        distillation.LogitsDistillation(3.0, keras.losses.KLDivergence()),
        student_loss_weight=0.5,
    )
    peer.compile(keras.optimizers.SGD(0.1), CROSSENTROPY)
    logs = peer.fit(X, Y, batch_size=8, epochs=2, shuffle=False, verbose=0).history

    model = make_student(teacher)
    joint = kj.joint_loss({"label": CROSSENTROPY}, weights={"label": 0.5})
    model.compile(keras.optimizers.SGD(0.1), **joint)
    history = fit(model)
    for name, other in (
        ("distill_loss", "distillation_loss"),
        ("label_loss", "student_loss"),
        ("loss", "total_loss"),
    ):
        assert history[name] == pytest.approx(logs[other], rel=1e-5)
    assert_all_close(kernels(model), kernels(student), 1e-5, 1e-6)


def other_shape():
    layer = make_student(make_teacher()).get_layer("teacher")
    layer.set_model(keras.Sequential([keras.Input((6,)), keras.layers.Dense(1)]))
    return layer(X)


@once_compiled
def test_teacher_with_outputs_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shapes \[\(None, 3\)\].*Received.*\(24, 1\)"):
        other_shape()


test_invalid_arguments_are_refused = refuses(
    lambda **arguments: Teacher(**{"model": make_teacher(), **arguments}),
    ({"model": "large"}, "`model`.*a layer or a model.*Received: model='large'"),
    ({"outputs": 2}, "`outputs`.*a list of such names, or None.*Received: outputs=2"),
    ({"outputs": []}, r"`outputs`.*Received: outputs=\[\]"),
    ({"outputs": "no_such"}, "`outputs`.*'no_such' for the model 'large' with the layers.*'logit"),
    ({"model": keras.layers.Dense(2), "outputs": "logits"}, "`outputs`.*Functional or Sequential"),
    ({"save_teacher": 1}, "`save_teacher`.*True or False"),
)
