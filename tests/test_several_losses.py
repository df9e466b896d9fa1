"""Several losses of one output: each is a term."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.joint.find_terms import find_terms
from keras_jointloss.terms import LossPart
from tests.backends import once_compiled
from tests.comparisons import approx_logs
from tests.small_models import X, Y, build, copies_of, fit, ramp
from tests.summaries import read_scalars

LOSSES = {
    "a": {"square": "mse", "huber": keras.losses.Huber()},
    "b": "sparse_categorical_crossentropy",
}
WEIGHTS = {"a_square": ramp(), "a_huber": 0.5}


def reference(model, target):
    """Returns the losses of `target` from their formulas."""
    error = np.abs(target - np.asarray(model.predict(X, verbose=0)["a"]))
    huber = np.where(error < 1, 0.5 * error**2, error - 0.5)
    return {"a_square": float(np.mean(error**2)), "a_huber": float(np.mean(huber))}


def test_each_loss_is_a_term_in_logs_and_summaries(tmp_path):
    model = build()
    joint = kj.joint_loss(LOSSES, WEIGHTS, metrics={"a": ["mae"]})
    model.compile(keras.optimizers.SGD(0.0), **joint)
    assert set(find_terms(model)) == {"a_square", "a_huber", "b"}
    expected = reference(model, Y["a"])
    evaluated = model.evaluate(X, Y, batch_size=10, verbose=0, return_dict=True)
    assert {key: evaluated[f"{key}_loss"] for key in expected} == pytest.approx(expected, 1e-5)
    assert set(evaluated) == {
        "loss", "a_loss", "b_loss", "a_square_loss", "a_square_weight", "a_huber_loss",
        "a_huber_weight", "b_weight", "a_mae",
    }  # fmt: skip
    # At the start of the schedule.
    assert evaluated["a_loss"] == pytest.approx(0.5 * expected["a_huber"], 1e-5)
    callback = kj.callbacks.JointLossCallback(str(tmp_path))
    history = fit(model, [callback], validation_data=(X, Y))
    assert history["a_square_weight"] == pytest.approx([0.4])
    assert history["val_a_huber_loss"] == pytest.approx([expected["a_huber"]], 1e-5)
    scalars = read_scalars(tmp_path / "train")
    for term, raw in expected.items():
        assert scalars[f"joint_loss/{term}/raw"][4] == pytest.approx(raw, 1e-5)
    weighted = [scalars[f"joint_loss/{term}/weighted"][4] for term in ("a_square", "a_huber", "b")]
    assert sum(weighted) == pytest.approx(history["loss"][0], 1e-5)


@once_compiled
@pytest.mark.parametrize("options", [{}, {"weighting": "uncertainty"}])
def test_copy_and_loaded_model_log_their_own_weights(options, tmp_path):
    model = build()
    model.compile(keras.optimizers.SGD(0.01), **kj.joint_loss(LOSSES, WEIGHTS, **options))
    copies = copies_of(model, tmp_path)
    expected = approx_logs(fit(model, epochs=2), 1e-4)
    for other in copies:
        assert {id(other.loss["a"].parts[part].weight) for part in LOSSES["a"]} == {
            id(find_terms(other)[f"a_{part}"]) for part in LOSSES["a"]
        }
        assert fit(other, epochs=2) == expected


LISTS = {
    "named_output": ({"a": ["mse", keras.losses.Huber(name="h")]}, ("a_mse", "a_h")),
    "unnamed_output": (["mse", keras.losses.huber], ("mse", "huber")),
}


@once_compiled
@pytest.mark.parametrize(("losses", "terms"), LISTS.values(), ids=LISTS)
def test_model_with_one_output_names_the_terms_after_the_losses(losses, terms):
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(2, name="a")(inputs))
    weights = {terms[0]: 0.25, terms[1]: kj.LossWeight(ramp())}
    model.compile(keras.optimizers.SGD(0.0), **kj.joint_loss(losses, weights, metrics="mae"))
    history = fit(model, y=Y["a"])
    logged = {f"{term}_{value}" for term in terms for value in ("loss", "weight")}
    assert set(history) == {"loss", "mae", *logged, *(f"{term}_share" for term in terms)}
    assert history[f"{terms[0]}_weight"] == [0.25]
    evaluated = model.evaluate(X, Y["a"], verbose=0, return_dict=True)
    assert set(evaluated) == {"loss", "mae", *logged}
    weighted = [evaluated[f"{term}_weight"] * evaluated[f"{term}_loss"] for term in terms]
    assert evaluated["loss"] == pytest.approx(sum(weighted), 1e-5)


def of_pairs(*outputs):
    """Returns a model whose outputs are the same stacked views."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    views = ops.stack([keras.layers.Dense(3)(inputs), keras.layers.Dense(3)(inputs)], axis=1)
    return keras.Model(inputs, dict.fromkeys(outputs, views))


def test_parts_of_a_contrastive_loss_are_logged_with_its_name():
    model = of_pairs("pair", "views")
    pair = {"vicreg": kj.losses.VICReg(), "nce": kj.losses.InfoNCE()}
    model.compile("sgd", **kj.joint_loss({"pair": pair}))
    history = fit(model, y=dict.fromkeys(("pair", "views"), np.zeros(len(X))))
    parts = {f"pair_vicreg_{part}" for part in kj.losses.VICReg.part_names}
    assert parts | {"pair_vicreg_loss", "pair_nce_loss", "pair_nce_weight"} <= set(history)


@pytest.mark.parametrize("part", kj.losses.VICReg.part_names)
@pytest.mark.parametrize("weight", [None, 2.0, [1.0, 0.0, 3.0, 1.0, 0.5]])
def test_parts_leave_out_masked_items(part, weight):
    views = np.random.default_rng(0).normal(size=(5, 2, 3)).astype("float32")
    views[3] = 0.0
    metric = LossPart(loss := kj.losses.VICReg(), part)
    metric.update_state(None, keras.layers.Masking()(views), weight)
    weight = np.broadcast_to(1.0 if weight is None else weight, (5,))
    counts = (weight != 0) & (np.arange(5) != 3)
    values = ops.convert_to_numpy(loss.part_values(ops.convert_to_tensor(views[counts]))[part])
    assert float(metric.result()) == pytest.approx(np.average(values, weights=weight[counts]))


@once_compiled
@pytest.mark.parametrize("with_others", [False, True])
def test_parts_are_logged_by_copies_and_loaded_models(with_others, tmp_path):
    model = of_pairs("pair")
    loss = {"vicreg": kj.losses.VICReg(invariance_weight=5.0), "nce": kj.losses.InfoNCE()}
    loss = loss if with_others else loss["vicreg"]
    model.compile(keras.optimizers.SGD(0.01), **kj.joint_loss({"pair": loss}))
    copies, y = copies_of(model, tmp_path), {"pair": np.zeros(len(X))}
    expected = fit(model, y=y)
    parts = {name for name in expected if name.endswith(kj.losses.VICReg.part_names)}
    assert len(parts) == len(kj.losses.VICReg.part_names)
    assert [fit(copy, y=y) for copy in copies] == [approx_logs(expected, 1e-4)] * 2


@pytest.mark.parametrize("losses", ["mse", ["mse", "mae"]])
def test_layer_term_named_like_the_output_is_refused(losses):
    inputs = keras.Input((5,))
    a, b = kj.layers.ContrastiveTerm("MeanSquaredError", name="a")((inputs, 2 * inputs))
    model = keras.Model(inputs, {"a": a + b})
    model.compile("sgd", **kj.joint_loss({"a": losses}))
    with pytest.raises(ValueError, match="two terms named 'a'"):
        find_terms(model)
