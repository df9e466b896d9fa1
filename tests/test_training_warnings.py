"""The warning of a weighting that gives one term practically all the weight."""

import keras
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.callbacks._training_warnings import TrainingWarnings
from tests.backends import once_compiled
from tests.small_models import compiled, fit


class Gives(kj.weighting.Weighting):
    """Returns the same weights in each step."""

    def __init__(self, weights, **options):
        super().__init__(**options)
        self.weights = weights

    def update(self, losses, step):
        return ops.convert_to_tensor(self.weights, dtype=losses.dtype)


class GivesZero(Gives):
    """Returns 0 on purpose."""

    widest_ratio = float("inf")


class IntendsBelow1(Gives):
    """Returns weights below 1 on purpose."""

    intended_below = 1.0


class ModelTerms(dict):
    """Terms with a rule, without a model."""

    def __init__(self, rule, count):
        super().__init__({f"term{i}": kj.LossWeight() for i in range(count)})
        self.weighting = rule
        rule.bind(self)
        rule.start(is_new_epoch=True)
        for weight in self.values():
            weight.record(ops.convert_to_tensor(1.0), 4)
        rule.update_state()
        if keras.backend.backend() == "jax":
            assert rule.step == 1


@pytest.mark.parametrize("weights", [[1.0, 0.0, 2.0], [1.0, 1.9e-4, 2.0]])
def test_extreme_ratio_of_factors_warns_once(weights):
    terms = ModelTerms(Gives(weights), 3)
    reports = TrainingWarnings(terms)
    with pytest.warns(UserWarning, match=r"Gives weights the term 'term2' with 2 and .*'term1'.*"):
        reports.of_factors()
    reports.of_factors()  # Warnings are errors.
    terms["term1"].switch_off()
    TrainingWarnings(terms).of_factors()


@pytest.mark.parametrize(
    "rule",
    [
        Gives([1.0, 2.1e-4, 2.0]),
        Gives([1.0, 0.0, 2.0], min_weight=0.01),
        GivesZero([1.0, 0.0, 2.0]),
        IntendsBelow1([1.0, 1e-6, 2.0]),
        Gives([0.0, 0.0, 0.0]),
    ],
    ids=["below", "limited", "intended", "intended below 1", "none"],
)
def test_factors_that_are_moderate_or_intended_do_not_warn(rule):
    TrainingWarnings(ModelTerms(rule, 3)).of_factors()


def test_multiplier_of_a_constraint_that_holds_does_not_warn_but_a_large_one_does():
    constraint = kj.weighting.Constraint({"term0": 1.0, "term1": 1.0}, 99.0, ema=0.0)
    terms = ModelTerms(constraint, 3)

    def multipliers_after(*losses):
        for weight, loss in zip(terms.values(), losses, strict=True):
            weight.record(ops.convert_to_tensor(loss), 4)
        constraint.update_state()
        return list(constraint.factors.values())

    assert multipliers_after(0.9, 1.0, 5.0) == pytest.approx([5e-5, 1.0, 1.0], rel=0.1)
    TrainingWarnings(terms).of_factors()  # Warnings are errors.
    assert multipliers_after(0.9, 1.1, 5.0) == pytest.approx([1e-6, 2e4, 1.0], rel=0.1)
    with pytest.warns(UserWarning, match=r"'term1' with 1.99e\+04 and the term 'term2' with 1:"):
        TrainingWarnings(terms).of_factors()


@once_compiled
def test_callback_warns_at_the_end_of_an_epoch_and_says_what_to_do():
    message = r"(?s)'b'.*'a' is hardly trained.*`min_weight` and `max_weight`.*`floor`"
    with pytest.warns(UserWarning, match=message) as caught:
        fit(compiled(weighting=Gives([0.0, 1.0])), epochs=2)
    assert sum("hardly" in str(x.message) for x in caught) == 1
