"""Values and gradients of losses, and aggregators, compared with other libraries.

Requires PyTorch and pytorch-metric-learning; what sentence-transformers, lightly and open_clip have
is compared if they are installed. The peers compute in float64, the losses in float32.
"""

import importlib.util
import runpy
from pathlib import Path

import numpy as np
import pytest

import keras_jointloss as kj
from keras_jointloss.aggregators.pcgrad import random_orders
from keras_jointloss.losses.sigreg import directions
from tests import jacobians

torch = pytest.importorskip("torch")
pytest.importorskip("pytorch_metric_learning")

import torch.nn.functional as F  # noqa: E402, N812  # The usual name.
from pytorch_metric_learning import distances, losses, miners, reducers  # noqa: E402

pytestmark = pytest.mark.backend("torch")

BATCH, DIM = 8, 6
PAIR_LABELS = np.arange(BATCH) % 2
#: All classes have the same size, so a mean over triplets is also a mean over anchors.
CLASS_LABELS = np.array([0, 1, 2, 3, 0, 1, 2, 3])
EUCLIDEAN = distances.LpDistance(normalize_embeddings=False)
COSINE = distances.CosineSimilarity()
MEAN = reducers.MeanReducer()


def _views(views=2):
    generator = np.random.default_rng(0)
    center = generator.normal(size=(BATCH, 1, DIM))
    return center + 0.7 * generator.normal(size=(BATCH, views, DIM))


def _flat(views):
    """Returns all views of all items and their labels."""
    labels = torch.as_tensor(CLASS_LABELS).repeat_interleave(views.shape[1])
    return views.reshape(-1, DIM), labels


def _assert_parity(loss, labels, peer, views=None):
    """Asserts that `loss` of views and labels equals `peer` of the views."""
    views = _views() if views is None else views
    theirs = torch.tensor(views, dtype=torch.float64, requires_grad=True)
    _assert_same(lambda ours: loss(labels, ours), peer(theirs), [theirs])


def _assert_same(loss, expected, theirs):
    """Asserts that `loss` of tensors has the value and the gradients of the expected loss."""
    ours = [x.detach().float().requires_grad_() for x in theirs]
    actual = loss(*ours)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)
    actual.backward()
    expected.backward()
    for x, y in zip(ours, theirs, strict=True):
        scale = y.grad.abs().max().item()
        assert scale > 1e-3
        np.testing.assert_allclose(x.grad / scale, y.grad / scale, rtol=0, atol=1e-5)


def _of_samples(peer, miner=None):
    """Returns a loss of pytorch-metric-learning as a function of the views."""

    def function(views):
        embeddings, labels = _flat(views)
        return peer(embeddings, labels, miner(embeddings, labels) if miner else None)

    return function


@pytest.mark.parametrize("views", [1, 2, 3])
@pytest.mark.parametrize(
    ("loss", "peer"),
    [
        (kj.losses.SupCon(temperature=0.2), losses.SupConLoss(temperature=0.2, reducer=MEAN)),
        (kj.losses.SupCon(tile_size=3), losses.SupConLoss(temperature=0.07)),
        (kj.losses.MultiSimilarity(), losses.MultiSimilarityLoss()),
        (kj.losses.Circle(), losses.CircleLoss(reducer=MEAN)),
        (kj.losses.Circle(margin=0.25, gamma=16.0), losses.CircleLoss(0.25, 16, reducer=MEAN)),
    ],
    ids=["sup_con", "sup_con_tiled", "multi_similarity", "circle", "circle_mild"],
)
def test_losses_of_labelled_samples_equal_peer(loss, peer, views):
    def of_views(labels, x):
        return loss(labels, x[:, 0] if views == 1 else x)

    _assert_parity(of_views, CLASS_LABELS, _of_samples(peer), _views(views))


def _nearest_semi_hard(embeddings, labels):
    """Returns the triplet of each positive pair with its nearest semi-hard negative.

    The peer mines all negatives that are farther than the positive. If there are none, the
    farthest negative is used.
    """
    to = torch.cdist(embeddings, embeddings).detach()
    same = labels[:, None] == labels[None, :]
    farthest = torch.where(same, -1.0, to).argmax(1).tolist()
    pairs = (same & ~torch.eye(len(labels), dtype=torch.bool)).nonzero().tolist()
    negatives = {(a, p): farthest[a] for a, p in pairs}
    mined = miners.TripletMarginMiner(1e9, "semihard", distance=EUCLIDEAN)(embeddings, labels)
    triplets = torch.stack(mined, 1).tolist()
    for a, p, n in sorted(triplets, key=lambda x: -to[x[0], x[2]]):  # The nearest comes last.
        negatives[a, p] = n
    assert len({(a, p) for a, p, _ in triplets}) > len(pairs) / 2
    return torch.tensor([(a, p, n) for (a, p), n in negatives.items()]).unbind(1)


def _all_triplets(views):
    embeddings, labels = _flat(views)
    same = labels[:, None] == labels[None, :]
    other = ~torch.eye(len(labels), dtype=torch.bool)
    a, p, n = ((same & other)[:, :, None] & ~same[:, None, :]).nonzero(as_tuple=True)
    return torch.nn.TripletMarginLoss(margin=0.5, eps=0.0)(
        embeddings[a], embeddings[p], embeddings[n]
    )


def _given(loss, *arguments):
    """Returns a loss of PyTorch as a function of the stacked views."""
    return lambda views: loss(*views.unbind(1), *arguments)


def _triplets(**options):
    return losses.TripletMarginLoss(**{"distance": EUCLIDEAN, "reducer": MEAN, **options})


def _nt_xent(views):
    items = torch.arange(BATCH).repeat_interleave(2)
    return losses.NTXentLoss(temperature=0.1)(views.reshape(-1, DIM), items)


def _vicreg(views):
    return losses.VICRegLoss()(views[:, 0], ref_emb=views[:, 1])


# Short PyTorch implementations.


def _clip(views):
    a, b = F.normalize(views, dim=-1).unbind(1)
    logits, targets = a @ b.T / 0.07, torch.arange(BATCH)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def _siglip(views):
    a, b = F.normalize(views, dim=-1).unbind(1)
    return -F.logsigmoid((2 * torch.eye(BATCH) - 1) * (a @ b.T * 10 - 10)).sum() / BATCH


def _n_pairs(views):
    a, b = views.unbind(1)
    return F.cross_entropy(a @ b.T, torch.arange(BATCH))


def _barlow_twins(views):
    a, b = ((views - views.mean(0)) / views.std(0, correction=0)).unbind(1)
    correlation = a.T @ b / BATCH
    weight = torch.full((DIM, DIM), 0.0051, dtype=views.dtype).fill_diagonal_(1)
    return (weight * (correlation - torch.eye(DIM)) ** 2).sum()


SIGNS = torch.as_tensor(2 * PAIR_LABELS - 1)
COSINE_DISTANCE = {"distance_function": lambda a, b: 1 - F.cosine_similarity(a, b), "margin": 0.5}
MULTI_SIMILARITY = losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner(epsilon=0.1)
HARD = miners.BatchHardMiner(distance=EUCLIDEAN)
#: The loss, its labels and the peer of the views by the name of a case.
PEERS = {
    "multi_similarity_mined": (
        kj.losses.MultiSimilarity(mining_margin=0.1),
        CLASS_LABELS,
        _of_samples(*MULTI_SIMILARITY),
    ),
    "hard": (
        kj.losses.Triplet(0.5, mining="hard"),
        CLASS_LABELS,
        _of_samples(_triplets(margin=0.5), HARD),
    ),
    "semi_hard": (
        kj.losses.Triplet(0.5, mining="semi_hard"),
        CLASS_LABELS,
        _of_samples(_triplets(margin=0.5), _nearest_semi_hard),
    ),
    "torch_triplets": (kj.losses.Triplet(0.5, mining="all"), CLASS_LABELS, _all_triplets),
    "n_pairs": (kj.losses.NPairs(), np.arange(BATCH), _n_pairs),
    "barlow_twins": (kj.losses.BarlowTwins(), PAIR_LABELS, _barlow_twins),
}
for margin in (0.5, "soft"):
    soft = {"margin": 0, "smooth_loss": True} if margin == "soft" else {"margin": margin}
    for similarity, distance in (("euclidean", EUCLIDEAN), ("cosine", COSINE)):
        loss = kj.losses.Triplet(margin, mining="all", similarity=similarity)
        peer = _of_samples(_triplets(**soft, distance=distance))
        PEERS[f"all_triplets_{margin}_{similarity}"] = loss, CLASS_LABELS, peer
for margin in (0.0, 0.3):
    peer = _given(torch.nn.CosineEmbeddingLoss(margin), SIGNS)
    PEERS[f"cosine_embedding_{margin}"] = kj.losses.CosineEmbedding(margin), PAIR_LABELS, peer
for size in (None, 3):
    options = {"tile_size": size}
    PEERS[f"clip_{size}"] = kj.losses.InfoNCE(0.07, **options), PAIR_LABELS, _clip
    PEERS[f"siglip_{size}"] = kj.losses.SigLIP(**options), PAIR_LABELS, _siglip
    PEERS[f"nt_xent_{size}"] = kj.losses.NTXent(0.1, **options), CLASS_LABELS, _nt_xent


@pytest.mark.parametrize(("loss", "labels", "peer"), PEERS.values(), ids=PEERS)
def test_loss_of_two_views_equals_peer(loss, labels, peer):
    _assert_parity(loss, labels, peer)


def test_vicreg():
    _assert_parity(kj.losses.VICReg(), CLASS_LABELS, _vicreg, 0.4 * _views())


SCORES = torch.tensor([0.5, -1.0, 2.0, 0.5, 0.25, 3.0, 0.0, 0.1], dtype=torch.float64)


def _of_columns(peer, scores):
    """Returns a loss of sentence-transformers, without a model, as a function of the views."""
    return lambda views: peer.compute_loss_from_embeddings([*views.unbind(1)], scores)


def test_losses_of_scores_equal_sentence_transformers():
    peers = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    ranking = _of_columns(peers.CoSENTLoss(None), SCORES)
    _assert_parity(kj.losses.CoSENT(), SCORES, ranking)
    _assert_parity(kj.losses.CoSENT(3.0), SCORES, _of_columns(peers.CoSENTLoss(None, 3.0), SCORES))
    for dim in (DIM, DIM - 1):
        peer = _of_columns(peers.AnglELoss(None), SCORES)
        _assert_parity(kj.losses.AnglE(), SCORES, peer, _views()[:, :, :dim])
    margins = torch.stack([SCORES, SCORES.flip(0), SCORES**2], 1)
    for count in (1, 2, 3):  # Margins to one or two negatives; scores of the positive and of two.
        peer = _of_columns(peers.MarginMSELoss(None), margins[:, :count])
        views = _views(min(2 + count, 4))
        _assert_parity(kj.losses.MarginMSE(), margins[:, :count], peer, views)


def test_losses_of_clip_equal_open_clip():
    package = importlib.util.find_spec("open_clip")
    if package is None:
        pytest.skip("open_clip is not installed")
    # The file alone: the package imports torchvision and more.
    peers = runpy.run_path(str(Path(package.origin).with_name("loss.py")))

    def peer(name, *arguments):
        return lambda views: peers[name]()(*F.normalize(views, dim=-1).unbind(1), *arguments)

    def distilled(views):
        a, b, *teacher = F.normalize(views, dim=-1).unbind(1)
        u, v = (x.detach() for x in teacher)
        loss = peers["DistillClipLoss"]()(a, b, 1 / 0.07, u, v, 10.0)[1]
        logits = 10 * u @ v.T
        shares = [F.softmax(x, dim=1) for x in (logits, logits.T)]
        return loss + sum((p * p.log()).sum(1).mean() for p in shares) / 2  # Without the entropy.

    labels = np.zeros(BATCH)
    _assert_parity(kj.losses.InfoNCE(), labels, peer("ClipLoss", 1 / 0.07))
    _assert_parity(kj.losses.SigLIP(), labels, peer("SigLipLoss", 10.0, -10.0))
    distillation = kj.losses.SimilarityDistillation(teacher_temperature=0.1)
    _assert_parity(distillation, labels, distilled, _views(4))


def test_spread_out_equals_sentence_transformers():
    peers = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    peer = _of_columns(peers.GlobalOrthogonalRegularizationLoss(None), None)
    loss = kj.losses.SpreadOut()
    _assert_parity(loss, PAIR_LABELS, lambda views: sum(peer(views).values()), _views(3))


def _predictions(views):
    p, q, z, w = views.unbind(1)
    pairs = (p, w.detach()), (q, z.detach())
    return -sum(F.cosine_similarity(*pair).mean() for pair in pairs) / 2


def _distillation(views):
    a, b, u, v = F.normalize(views, dim=-1).unbind(1)
    logits, targets = a @ b.T / 0.1, (u @ v.T / 0.2).detach()
    pairs = [(logits, targets), (logits.T, targets.T)]
    return (
        sum(F.kl_div(x.log_softmax(1), y.softmax(1), reduction="batchmean") for x, y in pairs) / 2
    )


def test_losses_without_a_gradient_to_targets_equal_torch():
    _assert_parity(kj.losses.NegativeCosineSimilarity(), None, _predictions, _views(4))
    loss = kj.losses.SimilarityDistillation(0.1, 0.2)
    _assert_parity(loss, None, _distillation, _views(4))


def test_regularizers_equal_lightly():
    peers = pytest.importorskip("lightly.loss")
    hypersphere = pytest.importorskip("lightly.loss.hypersphere_loss")
    views, cosine = _views(), peers.NegativeCosineSimilarity()
    _assert_parity(kj.losses.KoLeo(), None, peers.KoLeoLoss(), views[:, 0])
    both = _given(hypersphere.HypersphereLoss(t=2.0, lam=0.5, alpha=1.5))
    _assert_parity(kj.losses.AlignmentUniformity(0.5, alpha=1.5), None, both)
    _assert_parity(
        kj.losses.NegativeCosineSimilarity(),
        None,
        lambda x: cosine(x[:, 0], x[:, 1].detach()),
        views,
    )
    sigreg = peers.SIGReg(num_vectors=256).double()
    sigreg._generate_unit_vectors = lambda *_: directions(torch.tensor(views), 256, 0)
    _assert_parity(kj.losses.SIGReg(), None, lambda x: sigreg(x.transpose(0, 1)), views)


ALL_DIRECTIONS = "query_to_doc", "doc_to_query", "query_to_query", "doc_to_doc"
#: Arguments of InfoNCE, and of the peer with a scale of 20, by the number of views.
RANKINGS = {
    "first": ({"directions": "first"}, {}, 4),
    "both": ({}, {"directions": ALL_DIRECTIONS[:2], "partition_mode": "per_direction"}, 2),
    "joint": (
        {"directions": "within", "partition": "joint"},
        {"directions": ALL_DIRECTIONS, "partition_mode": "joint"},
        2,
    ),
}


@pytest.mark.parametrize(("ours", "theirs", "views"), RANKINGS.values(), ids=RANKINGS)
def test_directions_equal_sentence_transformers(ours, theirs, views):
    peers = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    peer = _of_columns(peers.MultipleNegativesRankingLoss(None, **theirs), None)
    for tile_size in (None, 3):
        loss = kj.losses.InfoNCE(0.05, tile_size=tile_size, **ours)
        _assert_parity(loss, PAIR_LABELS, peer, _views(views))


class _Given(torch.nn.Module):
    """A model of sentence-transformers whose embeddings are given as features."""

    def __init__(self, name="own"):
        super().__init__()
        self.name = name

    def get_embedding_dimension(self):
        return DIM

    def forward(self, features):
        return {**features, "sentence_embedding": features[self.name]}


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("views", [2, 3])
def test_false_negatives_of_a_guide_equal_sentence_transformers(strategy, views):
    peers = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    peer = object.__new__(peers.GISTEmbedLoss)  # Its constructor wants tokenizers.
    torch.nn.Module.__init__(peer)
    options = {"margin": 0.1, "margin_strategy": strategy, "temperature": 0.2}
    options |= dict.fromkeys(("contrast_anchors", "contrast_positives"), False)
    options |= dict.fromkeys(("must_retokenize", "gather_across_devices"), False)
    options["similarity_fct"] = torch.nn.CosineSimilarity(dim=-1)
    options["cross_entropy_loss"] = torch.nn.CrossEntropyLoss()
    for name, value in {**options, "model": _Given(), "guide": _Given("guide")}.items():
        setattr(peer, name, value)
    guide = torch.as_tensor(_views(views)[..., ::2] + 0.3)

    def of_views(x):
        columns = zip(x.unbind(1), guide.unbind(1), strict=True)
        return peer([{"own": own, "guide": other} for own, other in columns], None)

    loss = kj.losses.InfoNCE(
        0.2, directions="first", false_negative_margin=0.1, false_negative_margin_strategy=strategy
    )
    for given in (guide, None):
        values = loss.values(torch.as_tensor(_views(views)), guide=given)
        differs = not torch.isclose(values.mean(), of_views(torch.as_tensor(_views(views))))
        assert differs == (given is None)
    _assert_parity(lambda _, x: loss.values(x, guide=guide).mean(), None, of_views, _views(views))


def test_chosen_and_corrected_negatives_equal_keras_rs():
    layers = pytest.importorskip("keras_rs").layers
    probability = torch.linspace(0.05, 0.9, BATCH)

    def peer(views):
        logits = F.normalize(views[:, 0], dim=1) @ F.normalize(views[:, 1], dim=1).T / 0.2
        logits = layers.SamplingProbabilityCorrection()(logits, probability.expand(BATCH, BATCH))
        logits, labels = layers.HardNegativeMining(3)(logits, torch.eye(BATCH))
        return F.cross_entropy(logits, labels)

    loss = kj.losses.InfoNCE(0.2, symmetric=False, num_hard_negatives=3)
    given = {"sampling_probability": probability}
    _assert_parity(lambda _, x: loss.values(x, **given).mean(), None, peer)


def test_matryoshka_equals_sentence_transformers():
    peers = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    model, dims, weights = _Given(), [DIM, 2, 4], [1, 0.5, 2]
    inner = peers.MultipleNegativesRankingLoss(model)
    peer = peers.MatryoshkaLoss(model, inner, dims, weights)
    loss = kj.losses.Matryoshka(kj.losses.InfoNCE(0.05, symmetric=False), dims, weights)

    def of_views(views):
        return peer([{"own": x} for x in views.unbind(1)], None)

    _assert_parity(loss, PAIR_LABELS, of_views)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("margin", [0.2, 2.0, "cosine"])
def test_given_triplets_equal_torch(margin, swap):
    if margin == "cosine":
        loss = kj.losses.TripletMargin(0.5, similarity="cosine", swap=swap)
        peer = torch.nn.TripletMarginWithDistanceLoss(**COSINE_DISTANCE, swap=swap)
    else:
        loss = kj.losses.TripletMargin(margin, swap=swap)
        peer = torch.nn.TripletMarginLoss(margin=margin, swap=swap, eps=0.0)
    _assert_parity(loss, None, _given(peer), _views(3))


PROXIES = np.random.default_rng(1).normal(size=(5, DIM))
#: The loss, its peer and options of that by the name of a case.
WITH_PROXIES = {
    "arc_face": (kj.losses.ArcFace(np.radians(28.6)), losses.ArcFaceLoss, {}),
    "arc_face_wide": (
        kj.losses.ArcFace(1.2, 8.0),
        losses.ArcFaceLoss,
        {"margin": np.degrees(1.2), "scale": 8},
    ),
    "cos_face": (kj.losses.CosFace(), losses.CosFaceLoss, {}),
    "norm_softmax": (kj.losses.NormSoftmax(), losses.NormalizedSoftmaxLoss, {}),
    "proxy_nca": (kj.losses.ProxyNCA(), losses.ProxyNCALoss, {}),
    "proxy_nca_9": (kj.losses.ProxyNCA(9.0), losses.ProxyNCALoss, {"softmax_scale": 9}),
    "proxy_anchor": (kj.losses.ProxyAnchor(), losses.ProxyAnchorLoss, {}),
    "proxy_anchor_mild": (
        kj.losses.ProxyAnchor(0.3, 4.0),
        losses.ProxyAnchorLoss,
        {"margin": 0.3, "alpha": 4},
    ),
}


@pytest.mark.parametrize(("loss", "peer", "options"), WITH_PROXIES.values(), ids=WITH_PROXIES)
def test_loss_with_proxies_equals_peer(loss, peer, options):
    proxies = torch.tensor(PROXIES, requires_grad=True)
    peer = peer(num_classes=len(PROXIES), embedding_size=DIM, **options)
    (name,) = dict(peer.named_parameters())
    own = peer.get_parameter(name)
    # One item is farther from its proxy than pi minus the margin.
    far = np.where(np.arange(BATCH)[:, None] == 3, 9 * PROXIES[3], 0)
    embeddings = torch.tensor(_views(1)[:, 0] - far, requires_grad=True)
    labels = torch.as_tensor(CLASS_LABELS)

    def expected(embeddings, proxies):
        given = {name: proxies if own.shape == proxies.shape else proxies.T}
        return torch.func.functional_call(peer, given, (embeddings, labels))

    _assert_same(
        lambda *tensors: loss.values(*tensors, labels).mean(),
        expected(embeddings, proxies),
        [embeddings, proxies],
    )


# Aggregators of torchjd and LibMTL.


def _with_zero(count, generator):
    """Returns gradients of which the last is 0."""
    result = jacobians.well_conditioned(count, generator)
    result[-1] = 0
    return result


def _opposed(count, generator):
    """Returns gradients that all oppose the first."""
    result = jacobians.well_conditioned(count, generator)
    result[1:] -= 1.5 * result[0]
    return result


#: Torchjd's FairGrad does not converge if the lengths differ much, and its projection is inexact.
OF_LIKE_LENGTHS = ("FairGrad", "DualProj")
KINDS = (
    *(jacobians.well_conditioned, jacobians.similar, jacobians.conflicting, jacobians.orthogonal),
    *(jacobians.ill_scaled, jacobians.rank_deficient, jacobians.collinear),
    *(jacobians.antiparallel, jacobians.nearly_antiparallel, _with_zero, _opposed),
)


def _peers(name, count):
    """Returns an aggregator and that of torchjd."""
    shares = torch.arange(1.0, count + 1, dtype=torch.float64)
    shares = shares / shares.sum()
    tau = torch.linspace(0.0, 0.4, count - 1, dtype=torch.float64)
    ours = kj.aggregators
    aggregation = pytest.importorskip("torchjd.aggregation")
    linalg = pytest.importorskip("torchjd.linalg")

    def projector():
        return linalg.QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)

    makers = {
        "FairGrad": lambda: (ours.FairGrad(2.0, rescale=False), aggregation.FairGrad(2.0)),
        "FairGrad-0.5": lambda: (ours.FairGrad(0.5, rescale=False), aggregation.FairGrad(0.5)),
        "ConFIG": lambda: (ours.ConFIG(), aggregation.ConFIG()),
        "ConFIG-p": lambda: (ours.ConFIG(preference=shares.tolist()), aggregation.ConFIG(shares)),
        "DualProj": lambda: (ours.DualProj(), aggregation.DualProj(projector=projector())),
        "DualProj-p": lambda: (
            ours.DualProj(preference=shares.tolist()),
            aggregation.DualProj(shares, projector=projector()),
        ),
        "GradVac": lambda: (ours.GradVac(seed=3), aggregation.GradVac(eps=1e-12)),
        "PCD": lambda: (ours.PCD(), aggregation.PCD(eps=0.0)),
        "PCD-tau": lambda: (ours.PCD(0, tau.tolist(), 0.7), aggregation.PCD(tau, 0.7, 0.0)),
    }
    try:
        return makers[name]()
    except (ImportError, NameError):
        pytest.skip("torchjd lacks the solver that this one needs")


def _is_comparable(name, kind, count):
    """Returns whether the combination of torchjd is more than its rounding error."""
    if kind is jacobians.ill_scaled:
        return not name.startswith(OF_LIKE_LENGTHS)
    if kind is jacobians.rank_deficient:
        return name.startswith("PCD") or (count == 5 and not name.startswith(OF_LIKE_LENGTHS))
    return kind is not jacobians.antiparallel or name.startswith("PCD")


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize(
    "name",
    [
        *("FairGrad", "FairGrad-0.5", "ConFIG", "ConFIG-p", "DualProj", "DualProj-p"),
        *("GradVac", "PCD", "PCD-tau"),
    ],
)
def test_aggregators_equal_torchjd_over_several_steps(name, count, monkeypatch):
    tolerance = 1e-5 if name.startswith("FairGrad") else 1e-6
    for kind in (kind for kind in KINDS if _is_comparable(name, kind, count)):
        ours, theirs = _peers(name, count)
        state = None
        for step in range(4 if ours.state_rows(count) else 1):
            # Each seed has other lengths of ill-scaled gradients, which those of a state keep.
            seed = 0 if kind is jacobians.ill_scaled else step
            jacobian = 10.0 ** (step % 3) * kind(count, np.random.default_rng(seed))
            orders = random_orders(count, 3, step).tolist()
            drawn = (
                torch.tensor([j - (j > i) for j in order if j != i])
                for i, order in enumerate(orders)
            )
            monkeypatch.setattr(torch, "randperm", lambda size, drawn=drawn: next(drawn))
            expected = theirs(torch.as_tensor(jacobian)).numpy()
            monkeypatch.undo()
            if kind is _with_zero and name.startswith("DualProj"):
                # Here a term without gradient has no part in the mean.
                absent = 1 / count if name == "DualProj" else 2 / (count + 1)
                expected = expected / (1 - absent)
            gramian = torch.as_tensor(jacobian @ jacobian.T)
            w, state = ours.solve_next(gramian, state, step=step)
            actual = w.numpy() @ jacobian
            jacobians.assert_vectors_close(actual, expected, tolerance, (kind, step))


def test_db_mtl_equals_libmtl_without_a_moving_average():
    generator = np.random.default_rng(0)
    for count in (2, 3, 5):
        jacobian = jacobians.ill_scaled(count, generator)
        losses = generator.uniform(0.01, 10, count)
        # As its `backward` computes with `DB_beta=0`, from the gradients of `log(losses + 1e-8)`.
        of_logs = jacobian / (losses[:, None] + 1e-8)
        lengths = np.linalg.norm(of_logs, axis=1)
        expected = (lengths.max() / (lengths + 1e-8)) @ of_logs
        actual = kj.aggregators.DBMTL(log=True)(torch.as_tensor(jacobian), losses)
        jacobians.assert_vectors_close(actual.numpy(), expected, 1e-5)
