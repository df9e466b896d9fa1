"""Layers, rules and logs are correct for every pair of `floatx` and dtype policy."""

import math

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from tests.balanced_models import X, Y, by_hand_step, of_parameters
from tests.reference import info_nce

# The dtypes of one to three steps: TensorFlow would trace them longer than it computes.
IS_EAGER = keras.backend.backend() == "tensorflow"
# JAX has no float64 by default.
WIDE = [] if keras.backend.backend() == "jax" else [("float32", "float64"), ("float64", "float32")]
DTYPES = [
    ("bfloat16", "bfloat16"),
    ("float16", "float16"),
    ("float32", "bfloat16"),
    ("float32", "mixed_bfloat16"),
    *WIDE,
]


def set_dtypes(floatx, policy):
    keras.config.set_floatx(floatx)
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(2)


@pytest.mark.parametrize(("floatx", "policy"), DTYPES)
def test_gradient_statistics_are_correct_in_every_dtype(floatx, policy):
    set_dtypes(floatx, policy)
    inputs = keras.Input((5,))
    trunks = {kind: keras.layers.Dense(4, name=f"{kind}_trunk") for kind in ("balanced", "shared")}
    rule = kj.aggregators.CAGrad(ema=0.5)
    balancer = kj.layers.GradientBalancer(["a", "b"], rule, name="balanced")
    shared = kj.layers.SharedTrunk(trunks["shared"], ["a", "b"], rule, name="shared")
    layers = {"balanced": balancer, "shared": shared}
    z = {"balanced": balancer(trunks["balanced"](inputs)), "shared": shared(inputs)}
    heads = {(kind, term): keras.layers.Dense(Y[term].shape[1]) for kind in layers for term in "ab"}
    outputs = {f"{kind}_{term}": head(z[kind][term]) for (kind, term), head in heads.items()}
    model = keras.Model(inputs, outputs)
    expected = {}
    for kind in layers:
        named = {"trunk": trunks[kind], **{f"head_{term}": heads[kind, term] for term in "ab"}}
        values = {
            f"{name}_{index}": ops.convert_to_numpy(ops.cast(value, "float32")).astype("float64")
            for name, layer in named.items()
            for index, value in enumerate(layer.variables)
        }
        at_z, _ = by_hand_step(values, slice(0, 8), {"a": 1.0, "b": 1.0})
        if kind == "shared":
            at_z = [of_parameters(X[:8], gradient) for gradient in at_z]
        expected[kind] = [np.linalg.norm(g) for g in at_z]
    losses = dict.fromkeys(outputs, "mean_squared_error")
    model.compile("sgd", loss=losses, run_eagerly=IS_EAGER)
    y = {f"{kind}_{term}": Y[term][:8] for kind, term in heads}
    model.fit(X[:8], y, batch_size=8, verbose=0)
    tolerance = 1e-4 if policy.startswith("float") and "16" not in policy else 0.05
    wide = "float64" if floatx == "float64" else "float32"
    for kind, layer in layers.items():
        norms = layer.statistics().norms
        np.testing.assert_allclose(norms, expected[kind], rtol=tolerance, err_msg=kind)
        assert keras.backend.standardize_dtype(layer.record.latest.dtype) == wide


@pytest.mark.parametrize(("floatx", "policy"), DTYPES)
def test_terms_and_rule_are_correct_in_every_dtype(floatx, policy, tmp_path):
    set_dtypes(floatx, policy)
    inputs = keras.Input((5,))
    a, b = keras.layers.Dense(4)(inputs), keras.layers.Dense(4)(inputs)
    views = keras.Model(inputs, [a, b])
    term = kj.layers.ContrastiveTerm(
        "InfoNCE", weight=kj.schedules.Linear(0.25, 1.0, 3), learn_temperature=True, name="pair"
    )
    a, b = term((a, b))
    model = keras.Model(inputs, {"a": keras.layers.Dense(2)(a + b)})
    famo = kj.weighting.FAMO(learning_rate=0.5)
    joint = kj.joint_loss({"a": "mse"}, weighting=famo)
    model.compile(keras.optimizers.SGD(0.0), **joint, run_eagerly=IS_EAGER)
    embeddings = [np.asarray(x, "float64") for x in views.predict(X, verbose=0)]
    callbacks = [kj.callbacks.JointLossCallback()]
    options = {"batch_size": len(X), "epochs": 3, "verbose": 0, "callbacks": callbacks}
    history = model.fit(X, {"a": X[:, :2]}, **options).history
    expected = np.mean(info_nce(np.stack(embeddings, axis=1)))
    assert history["pair_loss"] == pytest.approx([expected] * 3, rel=0.05)
    # FAMO's factors sum to 1, and the schedule has ended.
    assert history["pair_weight"][-1] + history["a_weight"][-1] == pytest.approx(1.0, rel=1e-3)
    assert all(math.isfinite(loss) for loss in history["loss"])
    # On TensorFlow, Keras itself logs tensors of bfloat16.
    assert {type(x) for name in ("pair_share", "a_share") for x in history[name]} == {float}
    wide = "float64" if floatx == "float64" else "float32"
    dtypes = {
        keras.backend.standardize_dtype(x.dtype) for x in (*term.weight.state, *famo.variables)
    }
    assert dtypes <= {wide, "int32", "bool"}
    model.save_weights(tmp_path / "model.weights.h5")
    (scale,) = term.trainable_variables
    saved = float(ops.convert_to_numpy(scale))
    scale.assign(1.0)
    model.load_weights(tmp_path / "model.weights.h5")
    assert float(ops.convert_to_numpy(scale)) == saved != 1.0
