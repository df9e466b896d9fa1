"""The defaults of arguments, most of them those of the papers."""

import inspect

import pytest

import keras_jointloss as kj
from tests.backends import values_only

# Those that are not None, by class.
DEFAULTS = {
    "losses": """
        AlignmentUniformity: uniformity_weight=1.0 alpha=2.0 t=2.0
        AnglE: scale=20.0
        ArcFace: margin=0.5 scale=64.0
        BarlowTwins: off_diagonal_weight=0.0051
        Circle: margin=0.4 gamma=80.0
        CoSENT: scale=20.0
        Contrastive: margin=1.0
        CosFace: margin=0.35 scale=64.0
        CosineEmbedding: margin=0.0
        DecoupledContrastive: temperature=0.1 similarity=cosine
        InfoNCE: temperature=0.07 similarity=cosine symmetric=True label_smoothing=0.0
          false_negative_margin_strategy=absolute hardness=0.0 partition=per_direction
        KoLeo: epsilon=1e-08
        MarginContrastive: margin=1.0 normalize=False
        MarginMSE: similarity=dot
        MultiSimilarity: alpha=2.0 beta=50.0 base=0.5
        NPairs: similarity=dot label_smoothing=0.0
        NTXent: temperature=0.1 similarity=cosine label_smoothing=0.0
        NormSoftmax: temperature=0.05
        ProxyAnchor: margin=0.1 alpha=32.0
        ProxyNCA: scale=1.0
        SIGReg: num_slices=256 knots=17 t_max=3.0 seed=0
        SigLIP: temperature=0.1 bias=-10.0 similarity=cosine
        SimilarityDistillation: temperature=0.07 teacher_temperature=0.07 similarity=cosine
          symmetric=True
        SpreadOut: mean_weight=1.0 second_moment_weight=1.0
        SupCon: temperature=0.07 similarity=cosine label_smoothing=0.0
        Triplet: margin=1.0 mining=semi_hard similarity=euclidean
        TripletMargin: margin=1.0 similarity=euclidean swap=False
        VICReg: invariance_weight=25.0 variance_weight=25.0 covariance_weight=1.0 epsilon=0.0001
    """,
    "aggregators": """
        Aggregator: rescale=False ema=0.0
        AlignedMTL: rescale=False ema=0.0
        CAGrad: c=0.5 rescale=False ema=0.0
        ConFIG: rescale=False ema=0.0
        DBMTL: log=False rescale=False ema=0.0
        DualProj: rescale=False ema=0.0
        FairGrad: alpha=1.0 rescale=True ema=0.0
        GradVac: beta=0.5 seed=0 rescale=False ema=0.0
        IMTLG: rescale=True ema=0.0
        MGDA: rescale=False ema=0.0
        Mean: rescale=False ema=0.0
        NashMTL: rescale=True ema=0.0
        PCD: main=0 tau=0.02 beta=0.999 rescale=False ema=0.0
        PCGrad: seed=0 rescale=False ema=0.0
        PreferenceAggregator: rescale=False ema=0.0
        Shares: rescale=False ema=0.0
        Sum: rescale=False ema=0.0
        UPGrad: rescale=False ema=0.0
    """,
    "weighting": """
        Constraint: learning_rate=0.01 ema=0.9 min_weight=1e-06 max_weight=1000000.0
        DynamicWeightAverage: temperature=2.0
        FAMO: learning_rate=0.025 decay=0.001 minimum_loss=0.0
        GradNorm: alpha=1.5 learning_rate=0.025
        IMTLL: learning_rate=0.025
        InverseGradientNorm: alpha=0.9
        NeuralTangentKernel: alpha=0.0 power=1.0
        RandomWeighting: seed=0
        ReLoBRaLo: alpha=0.95 beta=0.99 temperature=1.0 seed=0
        Shares: ema=0.99 max_weight=1000000.0
        SmoothTchebycheff: smoothness=1.0
        SoftAdapt: variant=original beta=0.1 points=5 interval=epoch frequency=1
        Uncertainty: learning_rate=0.025 analytic=False softmax=False temperature=1.0
        Weighting: warmup_steps=0 ema=0.0 min_weight=0.0 update_every=1 on_nonfinite=raise
    """,
    "schedules": """
        Cyclical: ramp=0.5
        Linear: begin=0
    """,
    "points": """
        Causal: epsilon=1.0 chunks=32 delta=0.99
        Residual: gamma=0.999 eta=0.01 initial=0.0
        SelfAdaptive: learning_rate=0.005 initial=1.0
    """,
}


def defaults_of(make):
    """Returns the defaults of the arguments, in words, without those of Keras."""
    return {
        parameter.name: str(parameter.default)
        for parameter in inspect.signature(make).parameters.values()
        if parameter.default not in (parameter.empty, None)
        and parameter.name not in ("name", "reduction")
    }


@values_only
@pytest.mark.parametrize("family", DEFAULTS)
def test_defaults(family):
    expected, name = {}, None
    for word in DEFAULTS[family].split():
        if word.endswith(":"):
            name = word[:-1]
        else:
            expected.setdefault(name, {}).update([word.split("=")])
    members = vars(getattr(kj, family))
    classes = {x: members[x] for x in members["__all__"] if inspect.isclass(members[x])}
    found = {x: defaults for x in classes if (defaults := defaults_of(classes[x]))}
    assert found == expected


@values_only
def test_function_of_a_loss_has_its_defaults():
    losses = vars(kj.losses)
    classes = [losses[name] for name in losses["__all__"] if inspect.isclass(losses[name])]
    compared = 0
    for cls in (cls for cls in classes if getattr(cls, "function", None) is not None):
        expected, found = defaults_of(cls), defaults_of(cls.function)
        compared += len(found)
        assert {name: expected.get(name) for name in found} == found, cls
    assert compared > 40
