"""Arguments of a wrong type or size are refused with the name of the argument."""

import keras
import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.terms.applied_weight import AppliedWeight
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.loss_across import LossAcross
from keras_jointloss.terms.loss_part import LossPart
from keras_jointloss.terms.missing.labelled_metric import LabelledMetric
from tests.backends import values_only
from tests.loss_cases import CLASSES, DEFAULTS, labels_of, views_of
from tests.refusals import refuses_calls

X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
LABELS = np.array([0, 1, 0, 1, 1])


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


NONNEGATIVE = """
    AlignmentUniformity.uniformity_weight ArcFace.margin BarlowTwins.off_diagonal_weight
    Circle.margin Contrastive.margin CosFace.margin CosineEmbedding.margin
    InfoNCE.false_negative_margin InfoNCE.hardness MarginContrastive.margin
    MultiSimilarity.mining_margin ProxyAnchor.margin SpreadOut.mean_weight
    SpreadOut.second_moment_weight Triplet.margin TripletMargin.margin VICReg.invariance_weight
    VICReg.variance_weight VICReg.covariance_weight CAGrad.c FAMO.decay GradNorm.alpha
    Uncertainty.min_weight Uncertainty.max_weight"""
POSITIVE = """
    AlignmentUniformity.alpha AlignmentUniformity.t AnglE.scale ArcFace.scale Circle.gamma
    CoSENT.scale CosFace.scale DecoupledContrastive.temperature InfoNCE.temperature
    KoLeo.epsilon MultiSimilarity.alpha MultiSimilarity.beta NTXent.temperature
    NormSoftmax.temperature ProxyAnchor.alpha ProxyNCA.scale SIGReg.t_max SigLIP.temperature
    SimilarityDistillation.temperature SimilarityDistillation.teacher_temperature
    SupCon.temperature VICReg.epsilon FairGrad.alpha FAMO.learning_rate FAMO.floor
    IMTLL.learning_rate DynamicWeightAverage.temperature GeometricMean.floor
    GradNorm.learning_rate NeuralTangentKernel.power ReLoBRaLo.temperature
    SmoothTchebycheff.smoothness Uncertainty.learning_rate Uncertainty.temperature"""
# Values that are refused and accepted, and arguments.
BOUNDS = {
    "number": (
        [],
        [-1.5, 3.0],
        "MultiSimilarity.base SigLIP.bias FAMO.minimum_loss SoftAdapt.beta",
    ),
    ">= 0": ([-0.5], [0.0, 0.5], NONNEGATIVE),
    "> 0": ([-0.5, 0.0], [0.5], POSITIVE),
    ">= 0 and < 1": (
        [-0.5, 1.0],
        [0.0, 0.5],
        """InfoNCE.label_smoothing NPairs.label_smoothing NTXent.label_smoothing
        SupCon.label_smoothing Mean.ema PCD.beta InverseGradientNorm.alpha NeuralTangentKernel.alpha
        ReLoBRaLo.alpha Uncertainty.ema""",
    ),
    ">= 0 and <= 1": ([-0.5, 1.5], [0.0, 1.0], "PCD.tau GradVac.beta ReLoBRaLo.beta"),
    "count": (
        [0, 1.5],
        [1],
        """DecoupledContrastive.tile_size InfoNCE.tile_size InfoNCE.num_hard_negatives
        NPairs.tile_size NTXent.tile_size SIGReg.num_slices SigLIP.tile_size SupCon.tile_size
        SoftAdapt.frequency Uncertainty.update_every""",
    ),
    "count >= 2": ([1], [2], "SIGReg.knots SoftAdapt.points"),
    "count >= 0": (
        [-1, 0.5],
        [0, 1],
        """SIGReg.seed PCD.main GradVac.seed PCGrad.seed RandomWeighting.seed ReLoBRaLo.seed
        Uncertainty.warmup_steps""",
    ),
}


@values_only
@pytest.mark.parametrize("kind", BOUNDS)
def test_arguments_have_their_bounds(kind):
    refused, accepted, arguments = BOUNDS[kind]
    for name, argument in (x.split(".") for x in arguments.split()):
        (make,) = (
            vars(family)[name]
            for family in (kj.losses, kj.aggregators, kj.weighting)
            if name in vars(family)
        )
        for value in accepted:
            assert make(**{argument: value}).get_config()[argument] == value, (name, argument)
        for value in refused:
            with pytest.raises(ValueError, match=rf"`{argument}`.*Received: {argument}={value}"):
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


def _joint(**arguments):
    return kj.joint_loss({"a": "mse"}, **arguments)


def _knn(**arguments):
    given = {"bank": X, "bank_labels": LABELS, "data": X, "labels": LABELS, **arguments}
    return kj.callbacks.KNNEvaluation(**given)


test_error_names_argument_and_class = values_only(
    refuses_calls(
        (lambda: kj.losses.InfoNCE(name=3), "`name`.*by InfoNCE"),
        (lambda: kj.metrics.RecallAtK(1, name=[]), "`name`.*by RecallAtK"),
        (lambda: kj.weighting.FAMO(name=0), "`name`.*by FAMO"),
        (lambda: kj.weighting.Uncertainty(analytic=np.ones(2)), "`analytic`.*by Uncertainty"),
        (lambda: kj.LossWeight(-1.0, name="a"), "`weight`.*by LossWeight"),
        (lambda: kj.layers.ContrastiveTerm("InfoNCE", "x"), "`weight`.*by ContrastiveTerm"),
        (lambda: kj.aggregators.MGDA(normalize=np.ones(2)), "`normalize`.*by MGDA"),
        (lambda: kj.aggregators.Mean(preference=np.array(1.0)), "`preference`.*by Mean"),
        (lambda: kj.layers.ProxyTerm("ArcFace", 3, proxies_initializer=1), "`proxies_initializer`"),
        (lambda: TermLoss(None, kj.LossWeight()), "`loss`.*by TermLoss"),
        (lambda: TermLoss("mse", kj.LossWeight(), class_weight=[1]), "`class_weight`.*TermLoss"),
        (lambda: _joint(missing=1e39), "`missing`.*float32 cannot hold"),
        (lambda: _joint(missing=10**400), "`missing`.*bits"),
        (lambda: _joint(weights={"a": "x"}), "'a' in `weights` of joint_loss"),
        (lambda: kj.callbacks.JointLossCallback(log_dir=3), "`log_dir`.*JointLossCallback"),
        (lambda: kj.callbacks.JointLossCallback(update_freq=X), "`update_freq`"),
        (lambda: kj.callbacks.RetrievalEvaluation(X, batch_size=True), "`batch_size`"),
        (lambda: _knn(labels=None), "`labels`.*by KNNEvaluation"),
        (lambda: _knn(bank_labels=[]), "`bank_labels`.*by KNNEvaluation"),
        (lambda: _knn(top=np.array(1.5)), "`top`.*by KNNEvaluation"),
        (lambda: kj.data.UniqueBatches(X, LABELS, ids=[]), "`ids`.*by UniqueBatches"),
    )
)


def _across(**options):
    return LossAcross(keras.losses.Huber(), kj.LossWeight(), "both", ["a", "b"], **options)


def _named(name, config):
    return {"class_name": name, "registered_name": f"keras_jointloss>{name}", "config": config}


test_config_that_does_not_fit_its_class_is_refused_by_name = values_only(
    refuses_calls(
        (lambda: TermLoss.from_config({"loss": "mse"}), "`weight`.*by TermLoss"),
        (lambda: TermLoss.from_config({"weight": kj.LossWeight()}), "`loss`.*by TermLoss"),
        (lambda: kj.LossWeight.from_config({"key": {}, "weight": 1.0}), "`key`.*by LossWeight"),
        (lambda: kj.LossWeight.from_config({}), "`weight`.*by LossWeight"),
        (lambda: AppliedWeight({}), "`term`.*by AppliedWeight"),
        (lambda: LossPart(kj.losses.VICReg(), "x"), "`part`.*variance.*by LossPart"),
        (lambda: LossAcross(abs, kj.LossWeight(), "both", ["a"]), "`outputs`.*by LossAcross"),
        (lambda: _across(missing={}), "`missing`.*'b'.*by LossAcross"),
        (lambda: _across(missing={"c": 0.0}), "`missing`.*'b'.*by LossAcross"),
        (lambda: _across(missing="nan"), "`missing`.*'b'.*by LossAcross"),
        (lambda: LabelledMetric("mae", missing=-1, name=3), "`name`.*by LabelledMetric"),
        (
            lambda: kj.weighting.FAMO.from_config({"progress": {"terms": ["a"], "state": [True]}}),
            "`state`.*FAMO",
        ),
        (lambda: kj.layers.ContrastiveTerm.from_config({"loss": "InfoNCE"}), "`weight`"),
        (lambda: kj.layers.SharedTrunk.from_config({"terms": ["a"]}), "`trunk`.*by SharedTrunk"),
        (lambda: kj.schedules.Sequential.from_config({"boundaries": []}), "`schedules`"),
        (
            lambda: kj.layers.ContrastiveTerm(_named("InfoNCE", {"temprature": 1.0})),
            "`loss`.*unexpected keyword argument 'temprature'",
        ),
        (
            lambda: kj.weighting.FAMO.from_config({"progress": {"terms": ["a"], "state": 10**400}}),
            "`state`.*FAMO",
        ),
    )
)
_VIEWS = np.stack([X, X], axis=1)
test_batch_that_cannot_be_used_is_refused_by_name = refuses_calls(
    (lambda: kj.losses.SupCon()(None, _VIEWS), "SupCon expects.*`?y_true"),
    (lambda: kj.losses.SupCon()(LABELS.astype(str), _VIEWS), "SupCon expects.*`y_true`"),
    (lambda: kj.losses.SupCon()(np.full(5, np.nan), _VIEWS), "SupCon expects finite labels"),
    (lambda: kj.losses.InfoNCE()(LABELS, "x"), "InfoNCE expects.*`y_pred`"),
    (lambda: kj.losses.InfoNCE()(LABELS, _VIEWS.astype("complex64")), "InfoNCE expects.*`y_pred`"),
    (lambda: kj.losses.InfoNCE()(LABELS, _VIEWS[..., :0]), "InfoNCE expects stacked views"),
    (lambda: kj.losses.InfoNCE()(LABELS, _VIEWS, np.ones((5, 2))), "InfoNCE.*`sample_weight`"),
    (lambda: kj.losses.InfoNCE()(LABELS, _VIEWS, np.ones((1, 5))), "InfoNCE.*`sample_weight`"),
    (lambda: kj.metrics.PairAccuracy()(None, _VIEWS), "PairAccuracy expects.*`y_true`"),
    (lambda: kj.aggregators.PCGrad()(np.ones((2, 0))), "`matrix`.*by PCGrad"),
    (lambda: kj.aggregators.PCGrad()("x"), "PCGrad expects.*`matrix`"),
    (lambda: kj.aggregators.MGDA().solve([[1.0, 0.5], [0.1, 1.0]]), "symmetric.*by MGDA"),
    (lambda: kj.layers.LossTerm("mse", name="a")(X, X[:4]), "The loss of 'a'"),
    (lambda: kj.layers.ContrastiveTerm("InfoNCE", name="a")((X, X[0, 0])), "'a' expects"),
    (lambda: kj.layers.ChunkedTower(keras.layers.Dense(2), 2, name="a")(X[0, 0]), "'a' expects"),
    (lambda: _term()(X, X[:4]), r"The loss of 'a'.*y_true of shape \(5, 4\), y_pred of shape"),
    (lambda: _term()(X, X, np.ones(4)), "The loss of 'a'.*sample_weight of shape"),
    (lambda: _term()(X[:1], X[:1], np.ones(0)), "The loss of 'a'.*same items"),
    (lambda: kj.layers.LossTerm("mse", name="a")(X[:0], X[:1]), "The loss of 'a'.*same items"),
    (lambda: _term()(None, X), "The loss of 'a'"),
)


def _term():
    return TermLoss("mse", kj.LossWeight(), "a")


def test_list_of_numbers_is_an_array():
    expected = float(kj.losses.InfoNCE()(LABELS, _VIEWS))
    assert float(kj.losses.InfoNCE()(LABELS, _VIEWS.tolist())) == pytest.approx(expected)


def test_error_of_a_loss_that_a_user_has_written_stays_as_it_is():
    def loss(y_true, y_pred):
        raise KeyError("own")

    with pytest.raises(KeyError, match="own"):
        TermLoss(loss, kj.LossWeight(), "a")(X, X)


def test_error_with_the_name_of_a_term_stays_as_it_is():
    with pytest.raises(ValueError, match=r"^Expected.*'a'"):
        kj.joint_loss({"a": keras.losses.Dice()})["loss"]["a"](X, X, np.ones((5, 4)))
