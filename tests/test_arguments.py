"""Arguments of a wrong type or size are refused with the name of the argument."""

import numpy as np
import pytest

import keras_jointloss as kj
from tests.loss_cases import CLASSES, DEFAULTS, labels_of, views_of


@pytest.mark.backend("torch")
@pytest.mark.parametrize("value", ["False", 1, None])
@pytest.mark.parametrize(
    ("argument", "make"),
    [
        ("rescale", kj.aggregators.Mean),
        ("rescale", lambda rescale: kj.layers.GradientBalancer(["a"], rescale=rescale)),
        ("telemetry", lambda telemetry: kj.layers.GradientBalancer(["a"], telemetry=telemetry)),
        ("analytic", kj.weighting.Uncertainty),
    ],
)
def test_only_booleans_are_switches(argument, make, value):
    with pytest.raises(ValueError, match=rf"argument `{argument}`\. Expected True or False"):
        make(**{argument: value})


@pytest.mark.backend("torch")
@pytest.mark.parametrize("value", [1e39, -1e39, 10**400, np.float64(1e300)])
@pytest.mark.parametrize(
    ("argument", "make"), [("margin", kj.losses.MarginContrastive), ("weight", kj.LossWeight)]
)
def test_number_that_float32_cannot_hold_is_refused(argument, make, value):
    message = rf"`{argument}`\. Expected a finite number.*float32 cannot hold"
    with pytest.raises(ValueError, match=message):
        make(**{argument: value})


@pytest.mark.backend("torch")
@pytest.mark.parametrize("value", [1, None, "mse", {"mse": 1}])
def test_only_lists_are_lists(value):
    for make in (
        lambda: kj.layers.LossTerm("mse", metrics=value),
        lambda: kj.layers.ContrastiveTerm("InfoNCE", metrics=value),
    ):
        with pytest.raises(ValueError, match=r"`metrics`\. Expected a list"):
            make()
    if value is not None:
        with pytest.raises(ValueError, match=r"`preference`\. Expected a list"):
            kj.weighting.SmoothTchebycheff(preference=value)


@pytest.mark.parametrize("case", DEFAULTS, ids=lambda case: case.name)
def test_batch_without_items_and_weights_of_another_number_are_refused(case):
    loss, views, labels = CLASSES[case.name](), views_of(case), labels_of(case)
    with pytest.raises(ValueError, match=f"{type(loss).__name__} expects one item or more"):
        loss(None if labels is None else labels[:0], views[:0])
    with pytest.raises(ValueError, match=r"`sample_weight` of shape \(5,\)"):
        loss(labels, views, sample_weight=np.ones(4))
    assert np.isfinite(float(loss(labels, views, sample_weight=np.ones((5, 1)))))
