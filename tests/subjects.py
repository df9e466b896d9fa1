"""Small models for the shared suite that together use every object of the package."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import PolynomialDecay

import keras_jointloss as kj

ITEMS = 48
BATCH = 8
DIM = 4


def _data() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(7)
    features = generator.normal(size=(ITEMS, 6)).astype("float32")
    return {
        "features": features,
        "label": generator.integers(0, 3, ITEMS),
        "rating": features[:, :1] * 2 + 1,
        "match": generator.integers(0, 2, ITEMS),
        "nothing": np.zeros(ITEMS, "float32"),
        **_with_gaps(features, generator),
    }


def _with_gaps(features, generator):
    """Returns targets of which about half are missing, and all labels of one batch."""
    labels = generator.integers(0, 3, ITEMS)
    labels[generator.random(ITEMS) < 0.4] = -1
    labels[BATCH : 2 * BATCH] = -1
    ratings = np.stack([features[:, 0] * 2 + 1, features[:, 1] - 1], axis=1)
    ratings[generator.random(ratings.shape) < 0.5] = np.nan
    return {"sparse_label": labels, "sparse_ratings": ratings}


DATA = _data()
CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
LOSSES = {"label": CROSSENTROPY, "rating": "mean_squared_error"}
MARGIN = kj.schedules.Linear(2.0, 0.5, 8)
LAYER_WEIGHTS = {
    "rating": 0.7,
    "margin": kj.schedules.Linear(1.0, 0.0, 8),
    "agree": 0.5,
    "hint": 0.2,
    "classes": kj.schedules.Linear(0.0, 0.1, 8),
    "times": 0.3,
}
# Each contrastive loss occurs once: as the loss of an output or of a layer.
OF_OUTPUTS = (
    *("BarlowTwins", "Circle", "Contrastive", "InfoNCE", "NPairs", "Triplet", "VICReg"),
    *("CoSENT", "KoLeo", "SIGReg", "AlignmentUniformity"),
)
OF_LAYERS = (
    *("CosineEmbedding", "DecoupledContrastive", "Matryoshka", "MultiSimilarity", "NTXent"),
    *("SigLIP", "SupCon", "TripletMargin", "VICReg", "AnglE", "MarginMSE"),
    *("NegativeCosineSimilarity", "SimilarityDistillation", "SpreadOut"),
)
#: Each loss with proxies occurs in a layer.
WITH_PROXIES = ("ArcFace", "CosFace", "NormSoftmax", "ProxyAnchor", "ProxyNCA")
#: Each rule that weighs points occurs in a layer, one of them with a schedule.
OF_POINTS = ("Residual", "SelfAdaptive")
#: The user's weight of each term, by the name of the model.
WEIGHTS = {
    "outputs": {
        "label": kj.schedules.Sequential([0.5, kj.schedules.Linear(0.5, 1.0, 8)], [4]),
        "rating": 0.3,
        "match": kj.schedules.Sigmoid(0.0, 1.0, midpoint=6, width=2),
    },
    "pairs": {
        "pair": kj.schedules.Cyclical(0.0, 1.0, cycle_steps=5),
        "label": 1.0,
        "align": PolynomialDecay(0.0, 10, 1.0),
    },
    "layers": LAYER_WEIGHTS,
    "nested": LAYER_WEIGHTS,
    "list_outputs": {"rating": 1.0, "label": PolynomialDecay(1.0, 10, 0.0)},
    "adapted": {
        "label": kj.schedules.Linear(0.5, 1.0, 8),
        "rating": 1.0,
        "agree": 0.5,
        "energy": PolynomialDecay(0.1, 10, 1.0),
    },
    "balanced": {"label": 1.0, "rating": 0.5},
    "targets": {"rating_square": PolynomialDecay(1.0, 10, 0.0), "rating_huber": 0.5, "label": 1.0},
    "shared": {"label": 1.0, "rating": 1.0},
    "across": {"label": 0.5, "both": PolynomialDecay(1.0, 10, 0.0), "sure": 0.3},
    "family_outputs": {name.lower(): 0.02 for name in OF_OUTPUTS},
    "family_layers": {
        "rating": 0.7,
        **{name.lower(): kj.schedules.Linear(0.0, 0.02, 8) for name in OF_LAYERS + WITH_PROXIES},
        **{name.lower(): 0.02 for name in OF_POINTS},
    },
    "subclassed": {"rating": 1.0, "agree": PolynomialDecay(0.0, 10, 1.0), "energy": 0.1},
}


def _weights(name, *terms):
    """Returns weights of some terms of a model, for `joint_loss`."""
    return {term: WEIGHTS[name][term] for term in terms}


def _trunk(inputs):
    options = {"activation": "tanh", "kernel_regularizer": "l2", "name": "hidden"}
    hidden = keras.layers.Dense(8, **options)(inputs)
    return keras.layers.Dense(DIM)(hidden), keras.layers.Dense(DIM)(hidden)


def _float32(x, name):
    """Converts an output to float32 under any policy, as recommended for heads."""
    return keras.layers.Activation("linear", dtype="float32", name=name)(x)


def _heads(label, rating):
    """Returns the outputs of the losses `LOSSES`."""
    return {
        "label": _float32(keras.layers.Dense(3)(label), "label"),
        "rating": _float32(keras.layers.Dense(1)(rating), "rating"),
    }


def _outputs():
    inputs = keras.Input((6,), name="features")
    a, b = _trunk(inputs)
    # Its scale is 0 at first, and nearly -1 at the end.
    reverse = kj.layers.GradientScale(kj.schedules.Sigmoid(1.0, -1.0, 0, 2), name="reverse")
    outputs = {**_heads(a, reverse(b)), "match": _float32(ops.stack([a, b], axis=1), "match")}
    joint = kj.joint_loss(
        {**LOSSES, "match": kj.losses.MarginContrastive(margin=MARGIN)},
        weights=WEIGHTS["outputs"],
        metrics={"label": "accuracy"},
    )
    return keras.Model(inputs, outputs), joint, ("label", "rating", "match")


def _pairs():
    inputs = keras.Input((6,), name="features")
    a, b = _trunk(inputs)
    a, b = kj.layers.ContrastiveTerm(
        # With a given size, only one of the two forms is compiled; a family has both.
        kj.losses.InfoNCE(tile_size=64),
        weight=WEIGHTS["pairs"]["align"],
        learn_temperature=True,
        memory_size=12,
        name="align",
    )((a, b))
    outputs = {
        "pair": _float32(ops.stack([a, b], axis=1), "pair"),
        "label": _float32(keras.layers.Dense(3)(a), "label"),
    }
    joint = kj.joint_loss(
        {"pair": kj.losses.BarlowTwins(), "label": CROSSENTROPY}, weights=_weights("pairs", "pair")
    )
    return keras.Model(inputs, outputs), joint, ("nothing", "label")


def _layer_terms(inputs, match):
    a, b = _trunk(inputs)
    weights = LAYER_WEIGHTS
    loss = kj.losses.MarginContrastive(margin=MARGIN)
    a, b = kj.layers.ContrastiveTerm(loss, weights["margin"], name="margin")((a, b, match))
    a, b = kj.layers.ContrastiveTerm("MeanSquaredError", weights["agree"], name="agree")((a, b))
    options = {"unlabelled": 0, "metrics": ["accuracy"], "name": "classes"}
    a = kj.layers.ProxyTerm(_family_loss("ArcFace"), 2, weights["classes"], **options)((a, match))
    causal = kj.points.Causal(kj.schedules.Linear(0.0, 1.0, 8), chunks=2)
    times = kj.layers.PointWeights(2, causal, weights["times"], name="times")
    hint = kj.layers.LossTerm("huber", weights["hint"], metrics=["mae"], name="hint")
    return hint(times(a, a - b, match), b), b


def _rating_loss():
    return kj.joint_loss({"rating": keras.losses.Huber()}, weights={"rating": 0.7})


def _features_and_match():
    return [keras.Input((6,), name="features"), keras.Input((), dtype="int32", name="match")]


def _layers(apply=_layer_terms):
    inputs = _features_and_match()
    a, b = apply(*inputs)
    head = keras.layers.Dense(1)
    slow = kj.layers.MomentumTower(head, kj.schedules.Linear(0.5, 1.0, 8), name="slow")
    rating = _float32(head(a + b) + slow(a - b), "rating")
    return keras.Model(inputs, rating), _rating_loss(), ("rating",)


def _nested():
    inputs = _features_and_match()
    inner = keras.Model(inputs, _layer_terms(*inputs), name="towers")
    return _layers(lambda *inputs: inner(inputs))


def _list_outputs():
    inputs = keras.Input((6,), name="features")
    a, b = _trunk(inputs)
    outputs = [
        _float32(keras.layers.Dense(1)(a), "rating"),
        _float32(b, "nothing"),
        _float32(keras.layers.Dense(3)(b), "label"),
    ]
    joint = kj.joint_loss(
        {"rating": "mse", "nothing": None, "label": CROSSENTROPY},
        weights=_weights("list_outputs", "label"),
        metrics={"rating": ["mae"]},
        weighted_metrics={"rating": ["mae"]},
    )
    return keras.Model(inputs, outputs), joint, ("rating", "nothing", "label")


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
class Subclassed(keras.Model):
    """A subclassed model with layer terms in `call`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.hidden = keras.layers.Dense(8, activation="tanh")
        self.first = keras.layers.Dense(DIM)
        self.second = keras.layers.Dense(DIM)
        loss, weight = keras.losses.CosineSimilarity(), WEIGHTS["subclassed"]["agree"]
        self.agree = kj.layers.ContrastiveTerm(loss, weight, name="agree")
        self.energy = kj.layers.LossTerm(
            weight=0.1, floor=0.5, target=kj.schedules.Linear(1.0, 3.0, 8), name="energy"
        )
        self.head = keras.layers.Dense(1, dtype="float32")

    def call(self, inputs):
        hidden = self.hidden(inputs)
        a, b = self.agree((self.first(hidden), self.second(hidden)))
        return {"rating": self.head(self.energy(a + b, ops.square(a)))}


def _subclassed():
    return Subclassed(), kj.joint_loss({"rating": "mse"}), ("rating",)


def _adapted():
    """Returns a model with a rule that adapts all weights, including those of layer terms."""
    inputs = keras.Input((6,), name="features")
    a, b = _trunk(inputs)
    a, b = kj.layers.ContrastiveTerm("MeanSquaredError", weight=0.5, name="agree")((a, b))
    # With a layer that differs in training mode.
    frozen = [keras.layers.Dense(DIM), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
    teacher = keras.Sequential([keras.Input((6,)), *frozen])
    target = kj.layers.Teacher(teacher, save_teacher=True, name="teacher")(inputs)
    energy = kj.layers.LossTerm(weight=WEIGHTS["adapted"]["energy"], name="energy")
    a = energy(a, ops.square(a - target))
    outputs = _heads(a, b)
    joint = kj.joint_loss(
        LOSSES,
        weights=_weights("adapted", "label"),
        weighting=kj.weighting.FAMO(ema=0.5, warmup_steps=2),
    )
    return keras.Model(inputs, outputs), joint, ("label", "rating")


def _balanced():
    """Returns a model that combines the terms' gradients at the output of the trunk, and weights
    the terms by the gradient statistics there.
    """
    inputs = keras.Input((6,), name="features")
    z = kj.layers.GradientBalancer(["label", "rating"], aggregator="cagrad")(list(_trunk(inputs)))
    outputs = _heads(ops.add(*z["label"]), ops.multiply(*z["rating"]))
    joint = kj.joint_loss(LOSSES, {"rating": 0.5}, kj.weighting.GradNorm())
    return keras.Model(inputs, outputs), joint, ("label", "rating")


def _shared():
    """Returns a model that combines the terms' gradients for the parameters of the trunk."""
    inputs = keras.Input((6,), name="features")
    trunk = keras.Sequential(
        [
            keras.layers.Dense(8, activation="tanh", kernel_regularizer="l2", name="hidden"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(DIM),
        ]
    )
    z = kj.layers.SharedTrunk(trunk, ["label", "rating"], aggregator="mgda")(inputs)
    outputs = _heads(z["label"], z["rating"])
    joint = kj.joint_loss(LOSSES)
    return keras.Model(inputs, outputs), joint, ("label", "rating")


def _targets():
    """Returns a model with several losses on one output, and with missing targets."""
    inputs = keras.Input((6,), name="features")
    a, b = _trunk(inputs)
    outputs = {
        "rating": _float32(keras.layers.Dense(2)(a), "rating"),
        "label": _float32(keras.layers.Dense(3)(b), "label"),
    }
    joint = kj.joint_loss(
        {"rating": {"square": "mse", "huber": keras.losses.Huber()}, "label": CROSSENTROPY},
        weights=_weights("targets", "rating_square", "rating_huber"),
        metrics={"rating": "mae", "label": "accuracy"},
        weighted_metrics={"rating": [keras.metrics.MeanSquaredError(name="weighted_mse")]},
        missing={"rating": float("nan"), "label": -1},
    )
    return keras.Model(inputs, outputs), joint, ("sparse_ratings", "sparse_label")


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
def _both(y, p):
    """Returns the error of the ratings of each item, more if the label is likely."""
    likely = ops.max(ops.softmax(p["label"]), axis=-1)
    return likely * ops.mean(ops.square(y["rating"] - p["rating"]), axis=-1)


@keras.saving.register_keras_serializable(package="keras_jointloss_tests")
class Sureness(keras.losses.Loss):
    """Returns one number for a batch."""

    def call(self, y_true, y_pred):
        likely = ops.max(ops.softmax(y_pred["label"]), axis=-1)
        return ops.mean(likely * ops.square(y_pred["match"][:, 0] - y_true["match"]))


def _across():
    """Returns a model with losses over several outputs, one of which has no loss of its own."""
    inputs = keras.Input((6,), name="features")
    a, b = _trunk(inputs)
    outputs = {
        "label": _float32(keras.layers.Dense(3)(a), "label"),
        "rating": _float32(keras.layers.Dense(2)(b), "rating"),
        "match": _float32(keras.layers.Dense(1)(b), "match"),
    }
    joint = kj.joint_loss(
        {"label": CROSSENTROPY, "rating": None, "match": None},
        weights=WEIGHTS["across"],
        missing={"rating": float("nan")},
        across={"both": (_both, ["rating", "label"]), "sure": (Sureness(), ["match", "label"])},
    )
    return keras.Model(inputs, outputs), joint, ("label", "sparse_ratings", "match")


def _family_loss(name, **arguments):
    """Returns a loss of the package that can be trained together with all others."""
    tame = {"Circle": {"gamma": 4.0}, "MultiSimilarity": {"beta": 5.0, "mining_margin": 0.5}}
    tame |= {"ArcFace": {"scale": 4.0}, "CosFace": {"scale": 4.0}, "ProxyAnchor": {"alpha": 4.0}}
    tame["SIGReg"] = {"num_slices": 16}
    options = {"num_hard_negatives": 3, "false_negative_margin": 0.1, "hardness": 1.0}
    if name == "Matryoshka":
        inner = kj.losses.InfoNCE(0.3, tile_size=64, directions="within", **options)
        tame[name] = {"loss": inner, "dims": [DIM, 2]}
    elif name == "SigLIP":
        tame["SigLIP"] = {"bias": -3.0}
    elif hasattr(getattr(kj.losses, name)(), "temperature"):
        tame[name] = {"temperature": 0.3}
    return getattr(kj.losses, name)(**tame.get(name, {}), **arguments)


# These take items of one view.
OF_ONE_VIEW = ("Circle", "KoLeo", "MultiSimilarity", "SpreadOut")
_TARGETS = {"pair": "match", "score": "rating", "class": "label", None: "nothing"}


def _family_outputs():
    """Returns a model with contrastive output losses."""
    inputs = keras.Input((6,), name="features")
    a, b = _trunk(inputs)
    views = ops.stack([a, b], axis=1)
    losses = {name.lower(): _family_loss(name) for name in OF_OUTPUTS}
    outputs = {
        name.lower(): _float32(a if name in OF_ONE_VIEW else views, name.lower())
        for name in OF_OUTPUTS
    }
    joint = kj.joint_loss(losses, weights=WEIGHTS["family_outputs"])
    targets = tuple(_TARGETS[loss.label_kind] for loss in losses.values())
    return keras.Model(inputs, outputs), joint, targets


def _family_layers():
    """Returns a model with contrastive layer terms that use all options."""
    inputs = keras.Input((6,), name="features")
    match = keras.Input((), dtype="int32", name="match")
    label = keras.Input((), dtype="int32", name="label")
    a, b = _trunk(inputs)
    flipped = ops.flip(inputs, axis=1)  # With the inputs, views of another dimension.
    for name in OF_LAYERS:
        options = {"NTXent": {"same_label": "ignore"}, "DecoupledContrastive": {"tile_size": 3}}
        loss = _family_loss(name, **options.get(name, {}))
        can_learn = bool(loss.learned_parameters())
        term = kj.layers.ContrastiveTerm(
            loss,
            weight=WEIGHTS["family_layers"][name.lower()],
            learn_temperature=can_learn,
            memory_size=12 if loss.has_memory else 0,
            name=name.lower(),
        )
        labels = (match if loss.label_kind == "pair" else label,) if loss.has_labels else ()
        others = {}
        if loss.call_arguments:
            probability = ops.sigmoid(inputs[:, 0])
            others = {"sampling_probability": probability, "guide": (inputs, flipped)}
        if name in OF_ONE_VIEW:
            a = term((a, *labels))
        else:
            more = {3: (ops.flip(b, axis=1),), 4: (inputs, flipped)}.get(loss.min_views, ())
            a, b = term((a, b, *more, *labels), **others)[:2]
    for name in WITH_PROXIES:
        weight = WEIGHTS["family_layers"][name.lower()]
        term = kj.layers.ProxyTerm(_family_loss(name), 3, weight, name=name.lower())
        a = term((a, label))
    for name in OF_POINTS:
        weight = WEIGHTS["family_layers"][name.lower()]
        a = kj.layers.PointWeights(3, name, weight, name=name.lower())(a, a - b, label)
    features = ops.concatenate([a + b, term.logits(a)], axis=1)
    rating = _float32(keras.layers.Dense(1)(features), "rating")
    return keras.Model([inputs, match, label], rating), _rating_loss(), ("rating",)


class Subject(NamedTuple):
    """A model to train.

    Attributes:
        make: Returns the model, the arguments of `compile` and the names of the targets.
        weights: The user's weight of each term: a number or a schedule.
        inputs: The names of the inputs.
        couples_own_items: Whether, under `MirroredStrategy`, the loss of an item depends on the
            other items of its replica alone: the loss of an output compares items, or a layer keeps
            batch statistics.
        factor_sum: The sum of the factors that the rule multiplies the weights by; `None` without
            a rule.
    """

    make: Callable
    weights: dict[str, Any]
    inputs: tuple[str, ...] = ("features",)
    couples_own_items: bool = False
    factor_sum: float | None = None


SUBJECTS = {
    "outputs": Subject(_outputs, WEIGHTS["outputs"]),
    "pairs": Subject(_pairs, WEIGHTS["pairs"], couples_own_items=True),
    "layers": Subject(_layers, WEIGHTS["layers"], ("features", "match")),
    "nested": Subject(_nested, WEIGHTS["nested"], ("features", "match")),
    "list_outputs": Subject(_list_outputs, WEIGHTS["list_outputs"]),
    "adapted": Subject(_adapted, WEIGHTS["adapted"], factor_sum=1.0),
    "balanced": Subject(_balanced, WEIGHTS["balanced"], factor_sum=2.0),
    "targets": Subject(_targets, WEIGHTS["targets"]),
    "shared": Subject(_shared, WEIGHTS["shared"], couples_own_items=True),
    "across": Subject(_across, WEIGHTS["across"]),
    "family_outputs": Subject(_family_outputs, WEIGHTS["family_outputs"], couples_own_items=True),
    "family_layers": Subject(
        _family_layers, WEIGHTS["family_layers"], ("features", "match", "label")
    ),
    "subclassed": Subject(_subclassed, WEIGHTS["subclassed"]),
}
