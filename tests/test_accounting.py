"""The weighted terms and the loss that is part of no term add up to the total."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.callbacks.joint._term_readings import TermReadings
from keras_jointloss.joint.other_losses import OtherLosses
from tests.callbacks import Records
from tests.small_models import Penalty, X, Y, compiled, fit, ramp

GENERATOR = np.random.default_rng(3)


def model_with_other_losses():
    """Returns a model with a masked layer term, an output term, a regularizer and a penalty."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((5,))
    masked = keras.layers.Masking()(inputs)
    pair = (masked, keras.layers.Dense(5)(inputs))
    _, b = kj.layers.ContrastiveTerm("MeanSquaredError", weight=ramp(), name="pair")(pair)
    hidden = keras.layers.Dense(4, kernel_regularizer=keras.regularizers.L2(0.05))(Penalty()(b))
    model = keras.Model(inputs, {"a": keras.layers.Dense(2)(hidden)})
    model.compile(keras.optimizers.SGD(0.0), **kj.joint_loss({"a": "mse"}, {"a": 0.5}))
    return model


def test_parts_add_up_to_the_total_with_masks_and_a_smaller_last_batch():
    model, records = model_with_other_losses(), Records()
    x = X.copy()
    x[[1, 2, 3, 30]] = 0.0  # `Masking` masks these items: another number in each batch.
    callback = kj.callbacks.JointLossCallback(on_log=records, update_freq=2)
    y = {"a": Y["a"]}
    options = {"batch_size": 16, "epochs": 2, "validation_data": (x, y)}
    history = fit(model, [callback], y, x, **options)

    dense, kernel = (model.layers[i].get_weights() for i in (2, 5))
    penalties = 0.1 * np.mean((x @ dense[0] + dense[1]) ** 2, axis=1)
    penalty = 0.05 * np.sum(kernel[0] ** 2)
    assert sorted(records.tags["train"]["joint_loss/total"]) == [2, 3, 4, 6]
    # The last point of the training has the last two of three batches.
    for run, first in (("train", 16), ("validation", 0)):
        other, run = penalties[first:].mean() + penalty, records.tags[run]
        for step, total in run["joint_loss/total"].items():
            weighted = [run[f"joint_loss/{part}/weighted"][step] for part in ("a", "pair")]
            assert run["joint_loss/other"][step] + sum(weighted) == pytest.approx(total, 1e-6)
            shares = [run[f"joint_loss/{part}/share"][step] for part in ("a", "pair", "other")]
            assert sum(shares) == pytest.approx(1.0, abs=1e-6)
        assert run["joint_loss/other"][6] == pytest.approx(other, 1e-4)
    assert history["val_loss"][-1] == records.tags["validation"]["joint_loss/total"][6]
    assert history["val_pair_share"][-1] == records.tags["validation"]["joint_loss/pair/share"][6]


class Terms(dict):
    """Terms without a model."""

    weighting, output_sums = None, {}
    other = OtherLosses(keras.Sequential())


def test_term_of_some_batches_counts_by_their_share_of_the_items():
    terms = Terms(always=kj.LossWeight(2.0), seldom=kj.LossWeight(3.0), never=kj.LossWeight())
    readings = TermReadings(keras.Sequential(), terms)
    for loss in (1.0, 2.0):
        terms["always"].record(ops.convert_to_tensor(loss), 8)
    terms["seldom"].record(ops.convert_to_tensor(4.0), 5, batch_size=8)
    total = 2.0 * 1.5 + 3.0 * 4.0 / 2
    tags = readings.to_tags(readings.read(), total)
    assert tags["joint_loss/always/share"] == pytest.approx(3 / total)
    assert tags["joint_loss/seldom/raw"] == 4.0
    assert tags["joint_loss/seldom/share"] == pytest.approx(6 / total)
    assert "joint_loss/never/share" not in tags
    assert "joint_loss/other" not in tags
    assert readings.to_tags(readings.read(), total + 1)["joint_loss/other"] == pytest.approx(1.0)
    # Once there was any, the curve goes on, also where the total is not finite.
    tags = readings.to_tags(readings.read(), total)
    assert tags["joint_loss/other"] == pytest.approx(0, abs=1e-6)
    assert np.isnan(readings.to_tags(readings.read(), np.nan)["joint_loss/other"])


def test_failing_function_of_the_user_raises_its_error():
    def fails(run, values, step):
        raise KeyError("tracker")

    with pytest.raises(KeyError, match="tracker"):
        fit(compiled(), [kj.callbacks.JointLossCallback(on_log=fails)])
    with pytest.raises(ValueError, match=r"`on_log`.*a function"):
        kj.callbacks.JointLossCallback(on_log="wandb")
