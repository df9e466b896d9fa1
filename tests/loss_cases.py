"""The losses as test cases: arguments, data and comparison with the references."""

import functools
from typing import NamedTuple

import numpy as np
from keras import ops

import keras_jointloss as kj
from tests import reference
from tests.gradients import COMPILES, value_and_gradient

_NAMES = (
    *("Contrastive", "CosineEmbedding", "MarginContrastive", "Triplet", "TripletMargin"),
    *("InfoNCE", "SigLIP", "NTXent", "SupCon", "DecoupledContrastive", "NPairs"),
    *("MultiSimilarity", "Circle", "VICReg", "BarlowTwins"),
    *("CoSENT", "AnglE", "MarginMSE", "SimilarityDistillation", "NegativeCosineSimilarity"),
    *("KoLeo", "SpreadOut", "AlignmentUniformity", "SIGReg"),
)
#: The classes of the losses by the name of their function.
CLASSES = {cls.function.__name__: cls for cls in (getattr(kj.losses, name) for name in _NAMES)}
#: The losses by their kind of labels.
PAIR_LABELS = {"contrastive", "cosine_embedding", "margin_contrastive"}
SCORE_LABELS = {"cosent", "angle", "margin_mse"}
CLASS_LABELS = {"triplet", "sup_con", "n_pairs", "multi_similarity", "circle"}
TILED = {"info_nce", "siglip", "nt_xent", "sup_con", "decoupled_contrastive", "n_pairs"}
#: The losses with cosine similarity by default.
COSINE = TILED - {"n_pairs"} | {"cosine_embedding", "multi_similarity", "circle"}
COSINE |= {"cosent", "angle", "similarity_distillation", "negative_cosine_similarity"}
COSINE |= {"koleo", "spread_out", "alignment_uniformity"}
#: The losses that take one view per item.
ONE_VIEW = {"triplet", "sup_con", "multi_similarity", "circle", "koleo", "spread_out", "sigreg"}
#: The losses of which a part carries no gradient.
DETACHED = {"circle", "similarity_distillation", "negative_cosine_similarity", "sigreg"}
MORE_VIEWS = ONE_VIEW | {"nt_xent", "decoupled_contrastive", "info_nce"}


class Case(NamedTuple):
    """A loss with its arguments and the number of views of an item."""

    name: str
    arguments: dict = {}  # noqa: RUF012  # It is never modified.
    views: int = 2

    @property
    def function(self):
        return getattr(kj.losses, self.name)

    @property
    def naive(self):
        return getattr(reference, self.name)

    @property
    def labels(self):
        """The kind of labels: "pair", "score", "class" or `None`."""
        if self.name in PAIR_LABELS | SCORE_LABELS:
            return "pair" if self.name in PAIR_LABELS else "score"
        return "class" if self.name in CLASS_LABELS or self.arguments.get("same_label") else None

    @property
    def tile_sizes(self):
        """Tile sizes to test; fewer for a loss with arguments."""
        if self.name not in TILED or self.arguments.get("similarity") == "euclidean":
            return (None,)
        if COMPILES:
            return (None,) if self.arguments else (None, 4)
        return (None, 4) if self.arguments else (None, 4, 2, 3, 100)

    @property
    def few_tile_sizes(self):
        """Fewer tile sizes, for tests that focus on arguments or degenerate batches."""
        return self.tile_sizes[: 1 if self.arguments or COMPILES else 2]

    @property
    def is_cosine(self):
        default = "cosine" if self.name in COSINE else None
        normalize = self.arguments.get("normalize", False)
        return normalize or self.arguments.get("similarity", default) == "cosine"

    def given(self, views):
        """Returns views as the class takes them: one view per item need not be stacked."""
        return views[:, 0] if self.views == 1 else views

    def make(self, **arguments):
        return CLASSES[self.name](**self.arguments, **arguments)

    def with_tile_size(self, tile_size):
        """Returns the function with its arguments and this tile size."""
        arguments = {"tile_size": tile_size} if self.name in TILED else {}
        return functools.partial(self.function, **self.arguments, **arguments)


_PARTS = {"invariance_weight": 2.0, "variance_weight": 3.0, "covariance_weight": 4.0}
_HARD = {"num_hard_negatives": 3, "hardness": 2.0}
_RELATIVE = {"false_negative_margin": 0.05, "false_negative_margin_strategy": "relative"}
_ALL_OPTIONS = {**_HARD, **_RELATIVE, "directions": "within", "partition": "joint"}
#: The number of views where it is not 2.
VIEWS = {"triplet_margin": 3, "margin_mse": 3, "similarity_distillation": 4}
DEFAULTS = [Case(name, views=VIEWS.get(name, 2)) for name in CLASSES]
#: One loss of each kind: softmax, mining, labels of pairs and statistics of the batch.
EACH_KIND = [Case(name) for name in ("info_nce", "triplet", "margin_contrastive", "vicreg")]
CASES = {
    f"{case.name}-{case.views}"
    + "".join(f"-{key}={value}" for key, value in case.arguments.items()): case
    for case in [
        *DEFAULTS,
        *(Case(name, views=1) for name in sorted(ONE_VIEW)),
        Case("contrastive", {"margin": 2.5}),
        Case("cosine_embedding", {"margin": 0.3}),
        Case("margin_contrastive", {"margin": 0.5, "normalize": True}),
        Case("triplet", {"mining": "all", "margin": 0.2}, 3),
        Case("triplet", {"mining": "hard", "similarity": "cosine"}),
        Case("triplet", {"mining": "semi_hard", "margin": "soft", "similarity": "dot"}, 3),
        Case("triplet", {"mining": "all", "margin": "soft", "similarity": "cosine"}),
        Case("triplet", {"mining": "hard", "similarity": "cosine"}, 1),
        Case("triplet_margin", {"margin": 0.2, "swap": True}, 3),
        Case("triplet_margin", {"margin": "soft", "similarity": "cosine", "swap": True}, 3),
        Case("triplet_margin", {"margin": "soft", "similarity": "dot"}, 3),
        Case("info_nce", {"symmetric": False, "similarity": "euclidean", "temperature": 0.5}),
        Case("info_nce", {"similarity": "dot", "temperature": 2.0, "label_smoothing": 0.1}, 3),
        Case("info_nce", {"same_label": "positive", "label_smoothing": 0.2}),
        Case("info_nce", {"same_label": "positive", "temperature": 0.5}, 4),
        Case("info_nce", {"same_label": "ignore", "label_smoothing": 0.2}, 3),
        Case("info_nce", {"num_hard_negatives": 2, "similarity": "dot", "temperature": 1.0}),
        Case("info_nce", {"false_negative_margin": 0.2, "same_label": "positive", **_HARD}, 3),
        Case("info_nce", {"hardness": 3.0, "temperature": 0.5, "similarity": "euclidean"}, 3),
        Case("info_nce", {"directions": "within", "label_smoothing": 0.1, **_RELATIVE}),
        Case("info_nce", {"directions": "within", "partition": "joint", "hardness": 2.0}, 3),
        Case("info_nce", {"same_label": "ignore", **_ALL_OPTIONS}),
        Case("siglip", {"similarity": "dot", "temperature": 1.0, "bias": -1.0}),
        Case("siglip", {"same_label": "positive", "bias": -2.0}),
        Case("siglip", {"same_label": "ignore", "bias": -2.0}),
        Case("nt_xent", {"similarity": "dot", "temperature": 1.0, "label_smoothing": 0.1}, 3),
        Case("nt_xent", {"same_label": "positive", "similarity": "euclidean"}),
        Case("nt_xent", {"same_label": "ignore", "label_smoothing": 0.1}, 3),
        Case("nt_xent", {"same_label": "positive"}, 1),
        Case("sup_con", {"similarity": "dot", "temperature": 1.0, "label_smoothing": 0.1}, 3),
        Case("sup_con", {"similarity": "euclidean", "temperature": 0.5}),
        Case("decoupled_contrastive", {"similarity": "euclidean", "same_label": "positive"}),
        Case("decoupled_contrastive", {"same_label": "ignore", "temperature": 0.5}, 3),
        Case("decoupled_contrastive", {"same_label": "positive"}, 1),
        Case("decoupled_contrastive", {"similarity": "dot", "temperature": 1.0}, 3),
        Case("n_pairs", {"similarity": "cosine", "label_smoothing": 0.1}),
        Case("multi_similarity", {"mining_margin": 0.1}),
        Case("multi_similarity", {"alpha": 3.0, "beta": 10.0, "base": 0.2}, 3),
        Case("circle", {"margin": 0.25, "gamma": 10.0}, 3),
        Case("vicreg", {**_PARTS, "epsilon": 1e-2}),
        Case("barlow_twins", {"off_diagonal_weight": 0.5}),
        Case("cosent", {"scale": 3.0}),
        Case("margin_mse", {"similarity": "cosine"}, 3),
        Case("similarity_distillation", {"symmetric": False, "similarity": "euclidean"}, 4),
        Case("similarity_distillation", {"temperature": 0.3, "teacher_temperature": 0.5}, 4),
        Case("similarity_distillation", {"similarity": "dot", "temperature": 1.0}, 4),
        Case("negative_cosine_similarity", {}, 4),
        Case("koleo", {"epsilon": 0.1}, 3),
        Case("spread_out", {"mean_weight": 2.0, "second_moment_weight": 0.5}, 3),
        Case("alignment_uniformity", {"uniformity_weight": 0.5, "alpha": 1.5, "t": 3.0}),
        Case("sigreg", {"num_slices": 7, "knots": 5, "t_max": 2.0, "seed": 3}, 3),
        Case("margin_mse", {"similarity": "euclidean"}, 3),
    ]
}
#: The cases for degenerate batches, without those that differ only in a number.
VARIANTS = {
    key: case
    for key, case in CASES.items()
    if not case.arguments or case.arguments.keys() & {"mining", "similarity", "same_label"}
}
WITH_LABELS = {key: case for key, case in CASES.items() if case.labels == "class"}
VALID = np.array([True, True, False, True, True])


def views_of(case, batch=5, dim=3, scale=1.0, seed=0):
    """Returns items with similar views, as float64 values that are exact in float32."""
    generator = np.random.default_rng(seed)
    center = generator.normal(size=(batch, 1, dim))
    views = center + 0.8 * generator.normal(size=(batch, case.views, dim))
    return (scale * views).astype("float32").astype("float64")


def labels_of(case, batch=5):
    if case.labels == "pair":
        return np.resize([0, 1, 1, 0, 0.25], batch)
    if case.labels == "score":
        return np.resize([0.5, -1, 2, 0.5, 0.25], batch)
    return np.resize([3, -1, 3, 0, 0], batch)


def tensor(x):
    return None if x is None else ops.convert_to_tensor(x)


def assert_close(actual, expected, tolerance, least=1.0, **more):
    """Compares with a tolerance relative to the largest value, at least `least`."""
    scale = max(np.abs(expected).max(), least)
    np.testing.assert_allclose(
        ops.convert_to_numpy(actual) / scale, expected / scale, rtol=0, atol=tolerance, **more
    )


def expected_gradient(case, views, labels, valid, weight, scale=1.0):
    """Returns the gradient of the weighted sum of the naive values by central differences."""
    is_fixed = case.name in DETACHED or case.arguments.get("hardness")
    fixed = {"fixed_at": views} if is_fixed else {}

    def total(x):
        return np.sum(case.naive(x, labels, valid, **case.arguments, **fixed) * weight)

    return reference.central_differences(total, views, 1e-6 * scale)


def weighted_value_and_gradient(function, views, labels, valid, weight):
    """Returns the weighted sum of the values and its gradient."""
    labels, valid = tensor(labels), tensor(valid)
    weight = ops.convert_to_tensor(weight.astype(views.dtype))

    def total(x):
        return ops.sum(function(x, labels, valid) * weight)

    value, gradient = value_and_gradient(total, views)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    return value, gradient


def assert_equals_reference(
    case, views, labels, valid=None, tile_sizes=None, gradient=True, dtype="float32"
):
    """Asserts that values and gradients equal the reference for every tile size."""
    value_tolerance, tolerance = (1e-6, 1e-5) if dtype == "float64" else (1e-4, 1e-3)
    weight = np.linspace(0.5, 1.5, len(views))
    expected = np.sum(case.naive(views, labels, valid, **case.arguments) * weight)
    scale = max(np.nanmax(np.abs(views)), 1.0)
    numeric = expected_gradient(case, views, labels, valid, weight, scale) if gradient else None
    for tile_size in tile_sizes or case.tile_sizes:
        value, actual = weighted_value_and_gradient(
            case.with_tile_size(tile_size), views.astype(dtype), labels, valid, weight
        )
        assert_close(value, expected, value_tolerance, err_msg=f"tile_size={tile_size}")
        if gradient:
            message = f"tile_size={tile_size}"
            assert_close(actual, numeric, tolerance, least=0.1 / scale, err_msg=message)
