"""The schedules: values, types of steps, compilation, saving and training."""

import functools
import json
import math

import keras
import numpy as np
import pytest
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule, PolynomialDecay

import keras_jointloss as kj
from keras_jointloss.schedules import Cyclical, Linear, Sequential, Sigmoid
from tests.backends import BACKEND, torch
from tests.small_models import fit

pytestmark = [
    # From PyTorch itself when it compiles, of what Keras does with dtypes and outputs.
    pytest.mark.filterwarnings("ignore:.torch.jit.script_method.:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo detected a call to:UserWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not:UserWarning"),
]

STEPS = range(64)
FAR_STEP = 2**31 - 1

# Naive references in Python's float64, one step at a time.


def linear(step, start, end, steps, begin=0):
    share = (step - begin) / steps
    return start + (end - start) * min(max(share, 0.0), 1.0)


def sigmoid(step, start, end, midpoint, width):
    return start + (end - start) / (1 + math.exp(-(step - midpoint) / width))


def cyclical(step, start, end, cycle_steps, ramp=0.5, cycles=None):
    cycle, in_cycle = divmod(step, cycle_steps)
    if cycles is not None and cycle >= cycles:
        return end
    return start + (end - start) * min(in_cycle / (ramp * cycle_steps), 1.0)


def joined(step):
    if step < 5:
        return 0.25
    if step < 15:
        return 0.1 + 0.8 * (1 - (step - 5) / 10) ** 2
    if step < 25:
        return linear(step - 15, 0.2, 0.9, 7, begin=3)
    if step < 35:
        return sigmoid(step - 25, 0.9, 0.3, 4, 1.5)
    return cyclical(step - 35, 1.0, 0.5, 6, 0.4, 2)


def case(cls, reference, *args):
    name = "-".join([cls.__name__, *map(str, args)])
    return pytest.param(cls(*args), lambda step: reference(step, *args), id=name)


NESTED = Sequential(
    [
        Sequential([0.25, PolynomialDecay(0.9, 10, 0.1, power=2.0)], [5]),
        Sequential(
            [Linear(0.2, 0.9, 7, 3), Sigmoid(0.9, 0.3, 4, 1.5), Cyclical(1.0, 0.5, 6, 0.4, 2)],
            [10, 20],
        ),
    ],
    [15],
)
CASES = [
    case(Linear, linear, 0.0, 1.0, 49),
    case(Linear, linear, 0.9, 0.1, 7, 11),
    case(Linear, linear, -1.0, 3.0, 1, 5),
    case(Sigmoid, sigmoid, 0.0, 1.0, 20, 5),
    case(Sigmoid, sigmoid, 0.9, 0.1, 30.5, 0.7),
    case(Cyclical, cyclical, 0.0, 1.0, 10),
    case(Cyclical, cyclical, 0.1, 0.7, 7, 0.3, 3),
    case(Cyclical, cyclical, 2.0, 0.5, 9, 1.0, 1),
    case(Cyclical, cyclical, 0.0, 1.0, 1),
    pytest.param(NESTED, joined, id="Sequential-nested"),
    pytest.param(Sequential([0.25], []), lambda step: 0.25, id="Sequential-of-one"),
]
all_schedules = pytest.mark.parametrize(("schedule", "reference"), CASES)


def values(schedule, steps=STEPS):
    return np.array([float(schedule(step)) for step in steps])


def assert_close(actual, expected):
    # Near 0, the rounding error of the largest value dominates.
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=2e-7 * np.max(np.abs(expected)))


@all_schedules
def test_values_equal_the_reference(schedule, reference):
    assert_close(values(schedule), [reference(step) for step in STEPS])


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Linear(0.3, 0.7, 49), {0: 0.3, 49: 0.7, 50: 0.7, FAR_STEP: 0.7}),
        (Linear(1.0, 0.0, 3, begin=2), {0: 1.0, 2: 1.0, 5: 0.0, 6: 0.0, FAR_STEP: 0.0}),
        (Linear(0.0, 1.0, 10, begin=FAR_STEP - 5), {0: 0.0, FAR_STEP - 5: 0.0, FAR_STEP: 0.5}),
        (Linear(0.0, 1.0, FAR_STEP), {0: 0.0, FAR_STEP: 1.0}),
        (Sigmoid(0.0, 1.0, 8, 0.5), {8: 0.5, FAR_STEP: 1.0}),
        (Sigmoid(1.0, 0.0, 8, 0.5), {8: 0.5, FAR_STEP: 0.0}),
        (
            Cyclical(0.3, 0.7, 30, ramp=0.1),
            {0: 0.3, 3: 0.7, 29: 0.7, 30: 0.3, 33: 0.7, 30 * 10**7: 0.3, 30 * 10**7 + 3: 0.7},
        ),
        (
            Cyclical(0.3, 0.7, 4, ramp=1.0, cycles=2),
            {0: 0.3, 4: 0.3, 8: 0.7, 9: 0.7, 12: 0.7, FAR_STEP: 0.7},
        ),
        (Cyclical(0.3, 0.7, FAR_STEP, cycles=FAR_STEP), {0: 0.3, FAR_STEP - 1: 0.7}),
        (
            Sequential([0.3, Linear(0.7, 0.1, 5), 0.9], [2, 7]),
            {0: 0.3, 1: 0.3, 2: 0.7, 7: 0.9, FAR_STEP: 0.9},
        ),
        (Sequential([0.3, 0.7], [0]), {0: 0.7, 1: 0.7}),
        (Sequential([0.3, 0.7], [FAR_STEP]), {0: 0.3, FAR_STEP - 1: 0.3, FAR_STEP: 0.7}),
    ],
)
def test_boundary_values_are_exact(schedule, expected):
    actual = {step: float(schedule(step)) for step in expected}
    assert actual == {step: float(np.float32(value)) for step, value in expected.items()}


STEP_TYPES = {
    "int": int,
    "numpy-int32": np.int32,
    "numpy-int64": np.int64,
    "numpy-array": np.array,
    "tensor-int32": lambda step: ops.convert_to_tensor(step, "int32"),
    "tensor-int64": lambda step: ops.convert_to_tensor(step, "int64"),
    "tensor-float32": lambda step: ops.convert_to_tensor(step, "float32"),
    "variable": lambda step: keras.Variable(step, dtype="int32", trainable=False),
}


if BACKEND == "jax":
    del STEP_TYPES["tensor-int64"]  # JAX has no int64 by default.


@pytest.mark.parametrize("step_type", STEP_TYPES)
@all_schedules
def test_step_may_be_any_scalar(schedule, reference, step_type):
    value = schedule(STEP_TYPES[step_type](17))
    assert ops.is_tensor(value)
    assert value.shape == ()
    assert keras.backend.standardize_dtype(value.dtype) == "float32"
    assert float(value) == float(schedule(17))
    assert_close(float(value), reference(17))


@pytest.mark.parametrize(
    ("floatx", "tolerance"), [("bfloat16", 2**-8), ("float16", 2**-11), ("float64", 1e-15)]
)
@pytest.mark.parametrize(
    "schedule",
    [
        Linear(0.0, 1.0, 200_000),
        Sigmoid(0.0, 1.0, 100_000, 1),
        Cyclical(0.0, 1.0, 400_000),
        Sequential([0.0, Linear(0.5, 0.5, 1)], [10]),
    ],
)
def test_floatx_sets_dtype_but_does_not_limit_steps(schedule, floatx, tolerance):
    if floatx == "float64" and BACKEND == "jax":
        pytest.skip("JAX computes in float32 unless told otherwise")
    keras.config.set_floatx(floatx)
    value = schedule(100_000)
    assert keras.backend.standardize_dtype(value.dtype) == floatx
    assert float(value) == pytest.approx(0.5, rel=tolerance)


class Reciprocal(LearningRateSchedule):
    """A schedule that is infinite at step 4 and NaN later."""

    def __call__(self, step):
        left = ops.cast(4 - step, "float32")
        return ops.sqrt(left) / left

    def get_config(self):
        return {}


class Witness(LearningRateSchedule):
    """A schedule that returns the step and records it."""

    def __init__(self):
        self.steps = []

    def __call__(self, step):
        self.steps.append(int(step))
        return ops.cast(step, "float32")


def test_nonfinite_value_outside_range_does_not_leak():
    schedule = Sequential([Reciprocal(), 0.1, Reciprocal(), 0.2], [4, 6, 10])
    expected = [(4 - step) ** -0.5 for step in range(4)]
    assert_close(values(schedule, range(12)), [*expected, 0.1, 0.1, *expected, 0.2, 0.2])


def test_each_schedule_counts_steps_from_its_boundary():
    witnesses = [Witness() for _ in range(4)]
    schedule = Sequential([Sequential(witnesses[:2], [3]), Sequential(witnesses[2:], [2])], [5])
    assert values(schedule, range(10)).tolist() == [0, 1, 2, 0, 1, 0, 1, 0, 1, 2]
    assert all(min(witness.steps) == 0 for witness in witnesses)


def prediction(y_true, y_pred):
    return y_pred


def trained(names, learning_rate, callbacks=(), **compile_options):
    """Trains outputs from 0 whose i-th weight has gradient 1 in step i and 0 otherwise."""
    inputs, options = keras.Input((len(STEPS),)), {"use_bias": False, "kernel_initializer": "zeros"}
    outputs = {name: keras.layers.Dense(1, name=name, **options)(inputs) for name in names}
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.SGD(learning_rate), **compile_options)
    x = np.eye(len(STEPS), dtype="float32")
    fit(model, list(callbacks), dict.fromkeys(names, x[:, :1]), x, batch_size=1)
    return model


def load_model(path):
    return keras.models.load_model(path, custom_objects={"prediction": prediction})


def movement(model, name):
    return -ops.convert_to_numpy(ops.squeeze(model.get_layer(name).weights[0]))


@pytest.fixture
def captured_by_torch(monkeypatch):
    """Lets PyTorch capture steps without making kernels of them, which takes half a minute."""
    if BACKEND == "torch":
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_learning_rate_schedule_is_applied_in_training(captured_by_torch, jit_compile):
    # This schedule contains all others.
    model = trained(["rate"], NESTED, loss=prediction, jit_compile=jit_compile)
    assert_close(movement(model, "rate"), [joined(step) for step in STEPS])
    np.testing.assert_allclose(movement(model, "rate"), values(NESTED), rtol=1e-6, atol=1e-7)
    assert float(model.optimizer.learning_rate) == float(NESTED(len(STEPS)))


# Loss weights start at 0 or more.
WEIGHTS = {f"term{i}": case.values for i, case in enumerate(CASES) if float(case.values[0](0)) >= 0}


# Each step trains a weight of its own, so that the loss of every step is 0.
@pytest.mark.filterwarnings("ignore:The loss of the term")
@pytest.mark.parametrize("jit_compile", [False, True])
def test_loss_weight_schedule_is_applied_in_training(captured_by_torch, jit_compile, tmp_path):
    if not jit_compile and BACKEND == "jax":
        pytest.skip("JAX takes half a minute to run this step operation by operation")
    weights = WEIGHTS
    if jit_compile and BACKEND == "torch":  # It takes half a minute to capture them all.
        weights = {"term": (NESTED, joined)}
    schedules = {name: schedule for name, (schedule, _) in weights.items()}
    joint = kj.joint_loss(dict.fromkeys(schedules, prediction), weights=schedules)
    callbacks = [kj.callbacks.JointLossCallback()]
    model = trained(schedules, 1.0, callbacks, **joint, jit_compile=jit_compile)
    for name, (schedule, reference) in weights.items():
        actual = movement(model, name)
        assert_close(actual, [reference(step) for step in STEPS])
        np.testing.assert_allclose(actual, values(schedule), rtol=1e-6, atol=1e-7)
    if jit_compile == (BACKEND == "jax"):
        model.save(tmp_path / "model.keras")
        loaded = load_model(tmp_path / "model.keras")
        for name, schedule in schedules.items():
            assert_equal(loaded.loss[name].weight.schedule, schedule)
            assert float(loaded.loss[name].weight) == float(schedule(len(STEPS)))


def from_json(module, value):
    """Returns what a module of Keras makes of a value that it has serialized as JSON."""
    return module.deserialize(json.loads(json.dumps(module.serialize(value))))


def assert_equal(again, schedule):
    serialize = keras.saving.serialize_keras_object
    assert type(again) is type(schedule)
    assert serialize(again) == serialize(schedule)
    some = STEPS[::9]
    np.testing.assert_array_equal(values(again, some), values(schedule, some))


@all_schedules
def test_schedule_survives_serialization(schedule, reference):
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
    assert_equal(keras.saving.deserialize_keras_object(config), schedule)
    assert_equal(from_json(keras.optimizers.schedules, schedule), schedule)
    assert_equal(type(schedule).from_config(schedule.get_config()), schedule)
    optimizer = from_json(keras.optimizers, keras.optimizers.Adam(schedule))
    assert_equal(optimizer._learning_rate, schedule)


def test_learning_rate_schedule_survives_in_model_file(tmp_path):
    trained(["rate"], NESTED, loss=prediction).save(tmp_path / "model.keras")
    optimizer = load_model(tmp_path / "model.keras").optimizer
    assert float(optimizer.learning_rate) == float(NESTED(len(STEPS)))
    assert_equal(optimizer._learning_rate, NESTED)


def test_custom_objects_reach_nested_schedules():
    config = keras.optimizers.schedules.serialize(Sequential([0.1, Reciprocal()], [2]))
    again = keras.optimizers.schedules.deserialize(config, {"Reciprocal": Reciprocal})
    assert isinstance(again.schedules[1], Reciprocal)


VALID = {
    Linear: {"start": 0, "end": 1, "steps": 10, "begin": 0},
    Sigmoid: {"start": 0, "end": 1, "midpoint": 10, "width": 2},
    Cyclical: {"start": 0, "end": 1, "cycle_steps": 10, "ramp": 0.5, "cycles": None},
    Sequential: {"schedules": [0.1, Linear(0, 1, 2)], "boundaries": [3]},
}
NOT_FINITE = [math.nan, math.inf, "1", None, True, [1.0]]
NOT_INTEGER = [1.0, 2.5, math.nan, "1", True, np.True_, [1], 2**31]
EXPECTED = {
    "a finite number": NOT_FINITE,
    "a finite number > 0": [*NOT_FINITE, 0, -1.0],
    "a number > 0 and <= 1": [*NOT_FINITE, 0, -0.5, 1.01],
    "a whole number >= 0 and <= 2147483647": [*NOT_INTEGER, None, -1],
    "a whole number >= 1 and <= 2147483647": [*NOT_INTEGER, None, 0, -1],
    "a list": [None, 3, "ab", Linear(0, 1, 2)],
}
ERRORS = [
    (cls, {name: value}, name, expected)
    for cls, names, expected in [
        (Linear, "start end", "a finite number"),
        (Linear, "steps", "a whole number >= 1 and <= 2147483647"),
        (Linear, "begin", "a whole number >= 0 and <= 2147483647"),
        (Sigmoid, "start end midpoint", "a finite number"),
        (Sigmoid, "width", "a finite number > 0"),
        (Cyclical, "start end", "a finite number"),
        (Cyclical, "cycle_steps cycles", "a whole number >= 1 and <= 2147483647"),
        (Cyclical, "ramp", "a number > 0 and <= 1"),
        (Sequential, "schedules boundaries", "a list"),
    ]
    for name in names.split()
    for value in EXPECTED[expected]
    if not (name == "cycles" and value is None)
]
#: Schedules that are no schedules, or do not fit the boundaries.
ERRORS += [
    (Sequential, {"schedules": schedules, "boundaries": boundaries}, name, expected)
    for schedules, boundaries, name, expected in [
        ([0.1, math.nan], [3], "schedules[1]", "a finite number or a `keras.optimizers"),
        (["linear", 0.1], [3], "schedules[0]", "a finite number or a `keras.optimizers"),
        ([0.1, Linear], [3], "schedules[1]", "a finite number or a `keras.optimizers"),
        ([0.1, 0.2], [-1], "boundaries[0]", "a whole number >= 0"),
        ([0.1, 0.2, 0.3], [1, 2.0], "boundaries[1]", "a whole number >= 0"),
        ([0.1, 0.2], [True], "boundaries[0]", "a whole number >= 0"),
        ([], [], "boundaries", "one entry fewer than `schedules`, which has 0"),
        ([0.1], [3], "boundaries", "one entry fewer than `schedules`, which has 1"),
        ([0.1, 0.2], [], "boundaries", "one entry fewer than `schedules`, which has 2"),
        ([0.1, 0.2, 0.3], [3, 3], "boundaries", "strictly increasing integers"),
        ([0.1, 0.2, 0.3], [4, 3], "boundaries", "strictly increasing integers"),
    ]
]


@pytest.mark.parametrize(("cls", "arguments", "name", "expected"), ERRORS)
def test_invalid_arguments_are_refused(cls, arguments, name, expected):
    message = rf"`{name}`\. Expected {expected}.*\. Received: {name}="
    with pytest.raises(ValueError, match=message.replace("[", r"\[")):
        cls(**{**VALID[cls], **arguments})


@pytest.mark.parametrize("integer", [np.int32, np.int64, np.uint8])
def test_numpy_integers_are_accepted(integer):
    schedule = Sequential([np.float32(0.5), Linear(integer(0), 1, integer(4))], (integer(2),))
    config = keras.saving.serialize_keras_object(schedule)
    assert json.loads(json.dumps(config)) == config
    assert float(schedule(4)) == 0.5
