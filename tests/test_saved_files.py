"""Files saved by earlier commits load, evaluate and continue training as before.

`tests/data/saved_2026_11` contains a model and the logs of its training after saving, on
TensorFlow. The model has output terms with a rule, a layer term with a learned temperature and a
memory, and a balancer.
"""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.backends import once_compiled
from tests.small_models import fit

FOLDER = Path(__file__).parent / "data" / "saved_2026_11"
EXPECTED = json.loads((FOLDER / "expected.json").read_text())
X = np.random.default_rng(0).normal(size=(24, 5)).astype("float32")
Y = {"rating": X[:, :1], "label": (X[:, 1] > 0).astype("int32")}


def loaded_model():
    return keras.models.load_model(FOLDER / "model.keras")


def loaded_weights():
    model = keras.models.clone_model(loaded_model())
    # The optimizer counts the steps, and the file includes its weights.
    model.load_weights(FOLDER / "model.weights.h5")
    return model


def assert_equal_logs(actual, expected):
    shared = {key: actual[key] for key in expected if key in actual}
    assert {"loss", "rating_weight", "label_weight", "label_loss"} <= set(shared)
    assert shared == pytest.approx({key: expected[key] for key in shared}, 1e-4, 1e-5)


@pytest.mark.parametrize("load", [loaded_model, pytest.param(loaded_weights, marks=once_compiled)])
def test_file_of_earlier_commit_resumes_identically(load):
    model = load()
    model.run_eagerly = keras.backend.backend() == "tensorflow"  # For three steps.
    # The file has what TensorFlow chose on a CPU: not to compile.
    model.jit_compile = keras.backend.backend() == "jax"
    evaluated = model.evaluate(X, Y, batch_size=8, verbose=0, return_dict=True)
    assert_equal_logs(evaluated, EXPECTED["evaluate"])
    history = fit(model, y=Y, x=X, batch_size=8, epochs=3, initial_epoch=2)
    assert_equal_logs({key: values[0] for key, values in history.items()}, EXPECTED["fit"])
    assert "pair_loss" in history
