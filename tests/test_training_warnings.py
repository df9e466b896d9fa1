"""The warning of a term that contributes practically nothing under a weighting."""

from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.callbacks.joint._term_readings import TermReadings
from keras_jointloss.callbacks.joint._training_warnings import (
    TrainingWarnings,
    forgets_large_gradients,
)
from keras_jointloss.joint.other_losses import OtherLosses
from tests.backends import once_compiled
from tests.small_models import X, compiled, fit
from tests.terms import RULES, make

SCALE = "Scale the losses"


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


class IgnoresSize(Gives):
    """Knows what to do about small losses, and returns small weights on purpose."""

    small_weight_remedy = None
    small_loss_remedy: ClassVar = SCALE


class ModelTerms(dict):
    """Terms with a rule, without a model.

    Args:
        rule: The rule.
        losses: The loss of each term.
        given: The user's weight of each term.
    """

    other = OtherLosses(keras.Sequential())

    def __init__(self, rule, losses, given=None):
        given = [1.0] * len(losses) if given is None else given
        super().__init__({f"term{i}": kj.LossWeight(weight) for i, weight in enumerate(given)})
        self.weighting = rule
        rule.bind(self)
        rule.start(is_new_epoch=True)
        self.step(losses)

    def step(self, losses):
        """Runs the rule on the losses, and then records them as an epoch with its weights."""
        self.record(losses)
        self.weighting.update_state()
        for weight in self.values():
            weight.recorded.reset()
        self.weighting.stop()
        self.record(losses)
        self.weighting.update_state()
        self.weighting.start()

    def record(self, losses):
        """Records the losses of a step; `None` for one of no items that count, which is 0."""
        for weight, loss in zip(self.values(), losses, strict=True):
            counts = ops.convert_to_tensor(loss is not None)
            weight.record(ops.convert_to_tensor(loss or 0.0, "float32"), 4, counts)

    def warn(self, reports=None, lengths=(), forgets=True):
        readings = TermReadings(keras.Sequential(), self).read()
        counted = {name for name, weight in self.items() if weight.recorded.has_counted}
        reports = reports or TrainingWarnings(self)
        reports.of_factors(readings, counted, dict(zip(self, lengths, strict=False)), forgets)


@pytest.mark.parametrize("weights", [[1.0, 0.0, 2.0], [1.0, 1.9e-4, 2.0]])
def test_small_weight_of_a_term_warns_once(weights):
    terms = ModelTerms(Gives(weights), [1.0, 1.0, 1.0])
    reports = TrainingWarnings(terms)
    message = r"Gives weights the term 'term2' with 2 at a loss of 1 and the term 'term1'.*hardly"
    with pytest.warns(UserWarning, match=f"{message}.*Limit the weights"):
        terms.warn(reports)
    terms.warn(reports)  # Warnings are errors.
    terms["term1"].switch_off()
    terms.warn()


@pytest.mark.parametrize(
    ("rule", "losses"),
    [
        (Gives([1.0, 2.1e-4, 2.0]), [1.0, 1.0, 1.0]),
        (Gives([1.0, 0.0, 2.0], min_weight=0.01), [1.0, 1.0, 1.0]),
        (GivesZero([1.0, 0.0, 2.0]), [1.0, 1.0, 1.0]),
        (IntendsBelow1([1.0, 1e-6, 2.0]), [1.0, 1.0, 1.0]),
        (Gives([0.0, 0.0, 0.0]), [1.0, 1.0, 1.0]),
        (Gives([1.0, 1e-6, 2.0]), [1.0, -1e5, 1.0]),
        (Gives([1.0, 1.0, 2.0]), [1.0, 1e-9, 1.0]),
        (IgnoresSize([1.0, 1.0, 1e-8]), [1.0, 1e-3, 2.0]),
        (kj.weighting.Uncertainty(analytic=True), [1e-8, 1.0, 1e12]),
        (kj.weighting.Uncertainty(learning_rate=50.0), [1e-8, 1.0, 1e12]),
        (kj.weighting.GeometricMean(floor=1e-12), [1e-8, 1.0, 1e12]),
        (kj.weighting.FAMO(), [1e-6, 1.0, 1e12]),
        (kj.weighting.Shares({"term0": 1, "term1": 1, "term2": 1}), [1e-5, 1.0, 0.1]),
        (kj.weighting.SmoothTchebycheff(), [30.0, 1.0, 1.0]),
    ],
)
def test_terms_that_contribute_or_are_small_on_purpose_do_not_warn(rule, losses):
    ModelTerms(rule, losses).warn()


def test_loss_too_small_for_the_rule_warns_in_the_first_epoch_only():
    def terms(**options):
        return ModelTerms(IgnoresSize([1.0, 1.0], **options), [1e-6, 1.0])

    with pytest.warns(UserWarning, match=rf"'term0' is hardly .* 1e-06 times .*{SCALE}"):
        terms().warn()
    terms(warmup_steps=5).warn()
    later = terms()
    later.weighting.start(is_new_epoch=True)
    later.warn()  # By then it may be learned.


@pytest.mark.parametrize(
    ("rule", "remedy"),
    [
        ("DynamicWeightAverage", "weights"),
        ("RandomWeighting", "weights"),
        ("ReLoBRaLo", "weights"),
        ("SoftAdapt", "weights"),
        ("SmoothTchebycheff", "smoothness"),
    ],
)
def test_rules_that_depend_on_the_size_of_a_loss_say_what_to_do(rule, remedy):
    with pytest.warns(UserWarning, match=rf"{rule} .*'term1' is hardly .*`{remedy}`"):
        ModelTerms(kj.weighting.get(rule), [1e7, 1.0]).warn()


def test_weights_of_the_user_are_no_reason_to_warn():
    for loss, given in ((1.0, 0.0), (1.0, 1e-6), (1e6, 1e-6)):
        ModelTerms(IgnoresSize([1.0, 1.0]), [loss, 1.0], given=[given, 1.0]).warn()


def test_gradients_count_where_a_layer_reports_them():
    terms = ModelTerms(Gives([1.0, 1e-5]), [1.0, 1.0])
    terms.warn(lengths=[1.0, 1.0])
    with pytest.warns(UserWarning, match=r"1e-05 times as much to the length of the gradient"):
        terms.warn(lengths=[1.0, 1e-5])


@pytest.mark.parametrize("rule", ["FAMO", "GeometricMean"])
def test_loss_below_the_default_floor_warns(rule):
    rule = getattr(kj.weighting, rule)
    with pytest.warns(UserWarning, match=r"loss of the term 'term0' is 1e-08 and .*1e-07.*`floor`"):
        ModelTerms(rule(), [1e-8, 1.0]).warn()
    with pytest.warns(UserWarning, match=r"'term0'"):
        ModelTerms(rule(floor={"term1": 1e-9}), [1e-8, 1.0]).warn()
    for floor in (1e-6, 1e-12, {"term0": 1e-12}):
        ModelTerms(rule(floor=floor), [1e-8, 1.0]).warn()
    ModelTerms(rule(min_weight=0.1), [1e-8, 1.0]).warn()
    falling = ModelTerms(rule(), [1.0, 1.0])
    falling.step([1e-8, 1.0])
    falling["term0"].record(ops.convert_to_tensor(1e-6), 4)
    with pytest.warns(UserWarning, match=r"'term0' is 1e-08"):  # Although the mean is 5e-7.
        falling.warn()


def test_large_loss_without_clipped_gradients_warns_in_the_first_epoch_of_uncertainty():
    terms = ModelTerms(kj.weighting.Uncertainty(), [1.0, 1.1e3])
    terms.warn()
    ModelTerms(kj.weighting.Uncertainty(), [1.0, 900.0]).warn(forgets=False)
    message = r"Uncertainty: the loss of the term 'term1' is 1.1e\+03.*`global_clipnorm=1.0`"
    with pytest.warns(UserWarning, match=message):
        terms.warn(forgets=False)
    terms.weighting.start(is_new_epoch=True)
    terms.warn(forgets=False)


def test_optimizers_that_forget_large_gradients():
    adam, scaled = keras.optimizers.Adam, keras.optimizers.LossScaleOptimizer
    clipped = (adam(clipnorm=1.0), adam(clipvalue=1.0), adam(global_clipnorm=1.0), scaled(adam()))
    assert all(forgets_large_gradients(x) for x in (*clipped, keras.optimizers.SGD()))
    assert not any(forgets_large_gradients(x) for x in (adam(), keras.optimizers.SGD(momentum=0.9)))


def test_multiplier_of_a_constraint_that_holds_does_not_warn_but_a_large_one_does():
    constraint = kj.weighting.Constraint({"term0": 1.0, "term1": 1.0}, 99.0, ema=0.0)
    terms = ModelTerms(constraint, [1.0, 1.0, 1.0])
    terms.step([0.9, 1.0, 5.0])
    assert list(constraint.factors.values()) == pytest.approx([5e-5, 1.0, 1.0], rel=0.1)
    terms.warn()  # Warnings are errors.
    terms.step([0.9, 1.1, 0.5])
    assert list(constraint.factors.values()) == pytest.approx([1e-6, 2e4, 1.0], rel=0.1)
    message = r"'term1' with 1.99e\+04 .* the term 'term2' with 1 .* bound out of reach"
    with pytest.warns(UserWarning, match=message):
        terms.warn()


@pytest.mark.parametrize("name", [name for name in RULES if name != "Constraint"] + ["Gives"])
def test_term_of_which_no_item_counts_is_not_judged(name):
    rule = Gives([1e-8, 1.0]) if name == "Gives" else make(name)
    terms = ModelTerms(rule, [None, 1.0])
    terms.warn()  # Warnings are errors.
    assert rule.factors["term0"] > 0


@pytest.mark.parametrize("rule", [pytest.param("FAMO", marks=once_compiled), "RandomWeighting"])
def test_terms_without_weights_or_labels_do_not_warn_in_training(rule):
    inputs, zero = keras.Input((5,)), keras.Input(())
    views = keras.layers.Dense(4)(inputs), keras.layers.Dense(4)(inputs)
    pair = kj.layers.ContrastiveTerm("InfoNCE", name="pair")(views, sample_weight=zero)
    heads = {name: keras.layers.Dense(2)(pair[0]) for name in ("a", "weightless", "classes")}
    model = keras.Model([inputs, zero], heads)
    losses = {"a": "mse", "weightless": "mse", "classes": kj.losses.SupCon(unlabelled=-1)}
    model.compile("sgd", **kj.joint_loss(losses, weighting=rule))
    y = {"a": X[:, :2], "weightless": X[:, :2], "classes": np.full(len(X), -1)}
    weights = {name: np.full(len(X), float(name != "weightless")) for name in losses}
    x = [X, np.zeros(len(X), "float32")]
    fit(model, y=y, x=x, sample_weight=weights, epochs=2)


def test_loss_of_0_with_a_small_weight_is_told_what_to_do_about_the_weight():
    with pytest.warns(UserWarning, match=r"'term0' with 1e-08 at a loss of 0.*Limit the weights"):
        ModelTerms(Gives([1e-8, 1.0]), [0.0, 1.0]).warn()


@once_compiled
def test_callback_warns_at_the_end_of_an_epoch_and_says_what_to_do():
    message = r"(?s)'b'.*'a' is hardly trained.*`min_weight` and `max_weight`"
    with pytest.warns(UserWarning, match=message) as caught:
        fit(compiled(weighting=Gives([0.0, 1.0])), epochs=2)
    assert sum("hardly" in str(x.message) for x in caught) == 1
