"""Files saved by earlier versions and commits load, predict, evaluate and train on as before.

`tests/data/v<version>` is what `tests.release_files` has written with that version: a model with
each kind of state, its data, and what the version computed. `tests/data/saved_2026_11` is an older
model, saved on TensorFlow, with output terms with a rule, a layer term with a learned temperature
and a memory, and a balancer, without predictions.
"""

import json

import keras
import numpy as np
import pytest

from tests.backends import once_compiled
from tests.release_files import DATA, results
from tests.small_models import fit

FOLDERS = sorted(path for path in DATA.iterdir() if path.is_dir())


def saved(folder):
    """Returns what was recorded, with inputs and targets as arrays."""
    found = json.loads((folder / "expected.json").read_text())
    for part in ("x", "y"):
        arrays = {name: np.array(values) for name, values in found[part].items()}
        found[part] = {
            n: v if v.dtype.kind == "i" else v.astype("float32") for n, v in arrays.items()
        }
    if len(found["x"]) == 1:
        (found["x"],) = found["x"].values()
    return found


def loaded_model(folder, expected):
    return keras.models.load_model(folder / "model.keras")


def loaded_weights(folder, expected):
    """Returns a model that has trained, and then loaded the weights: it is as if it had not."""
    model = loaded_model(folder, expected)
    fit(model, x=expected["x"], y=expected["y"], batch_size=8)
    model.load_weights(folder / "model.weights.h5")
    return model


def assert_equal(actual, expected):
    """Asserts that logs have the values of the earlier version; there may be more of them."""
    assert set(expected) <= set(actual)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name], values, 1e-4, 1e-5, err_msg=name)


@pytest.mark.parametrize("load", [loaded_model, pytest.param(loaded_weights, marks=once_compiled)])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_file_of_earlier_version_resumes_identically(folder, load):
    expected = saved(folder)
    (epochs, *_) = map(len, expected["fit"].values())
    found = results(load(folder, expected), expected["x"], expected["y"], epochs)
    for part in found.keys() & expected:
        assert_equal(found[part], expected[part])
