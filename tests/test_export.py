"""An exported model serves what the model predicts."""

import numpy as np
import pytest

from tests.subjects import DATA, SUBJECTS


@pytest.mark.filterwarnings(
    "ignore:The `native_serialization` parameter:DeprecationWarning"
)  # Keras.
@pytest.mark.backend("tensorflow", "jax")
@pytest.mark.parametrize("name", ["pairs", "layers", "nested"])
def test_exported_model_predicts_the_same(name, tmp_path):
    import tensorflow as tf

    subject = SUBJECTS[name]
    model, joint, _ = subject.make()
    model.compile("sgd", **joint)
    inputs = [DATA[key].astype("int32" if key == "match" else "float32") for key in subject.inputs]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    expected = model.predict(inputs, verbose=0)
    model.export(tmp_path / "served", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "served"))
    as_tensors = tf.nest.map_structure(tf.constant, inputs)
    actual = served.serve(as_tensors)
    tf.nest.map_structure(
        lambda old, new: np.testing.assert_allclose(old, new, rtol=1e-5, atol=1e-6),
        expected,
        actual,
    )
