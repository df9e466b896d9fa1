"""An exported model returns the same predictions as the original."""

import keras
import numpy as np
import pytest

from tests.subjects import DATA, SUBJECTS


def operation_types(function) -> list[str]:
    """Returns the types of all operations of a function, including called functions."""
    graph = function.graph.as_graph_def()
    nodes = [node for called in graph.library.function for node in called.node_def]
    return [node.op for node in [*graph.node, *nodes]]


@pytest.mark.filterwarnings(
    "ignore:The `native_serialization` parameter:DeprecationWarning"
)  # Keras.
@pytest.mark.backend("tensorflow", "jax")
@pytest.mark.parametrize(
    "name", ["pairs", "layers", "nested", "balanced", "shared", "family_layers"]
)
def test_exported_model_predicts_the_same(name, tmp_path):
    import tensorflow as tf

    subject = SUBJECTS[name]
    model, joint, _ = subject.make()
    model.compile("sgd", **joint)
    inputs = [DATA[key] for key in subject.inputs]
    inputs = [x.astype("int32") if x.dtype.kind == "i" else x for x in inputs]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    expected = model.predict(inputs, verbose=0)
    model.export(tmp_path / "served", verbose=False)
    _ = model.losses  # Nothing that belongs to the exported graph.
    served = tf.saved_model.load(str(tmp_path / "served"))
    actual = served.serve(tf.nest.map_structure(tf.constant, inputs))
    for old, new in zip(tf.nest.flatten(expected), tf.nest.flatten(actual), strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-5, atol=1e-6)
    # The graph contains only the model: the terms compute nothing.
    types = operation_types(served.signatures["serve"])
    products = sum(isinstance(x, keras.layers.Dense) for x in model._flatten_layers())
    products += name == "family_layers"  # The logits of a term with proxies.
    if keras.backend.backend() == "tensorflow":  # JAX exports an XLA module.
        assert types.count("MatMul") == products
        more = {"Einsum", "BatchMatMulV2", "Exp", "While", "If", "AssignVariableOp"}
        assert not more & set(types)
