"""Losses on the views of an item, as classes and as functions, and losses with proxies."""

from keras_jointloss.losses._lookup import get
from keras_jointloss.losses._pairs import Memory
from keras_jointloss.losses.alignment_uniformity import AlignmentUniformity, alignment_uniformity
from keras_jointloss.losses.angle import AnglE, angle
from keras_jointloss.losses.arc_face import ArcFace
from keras_jointloss.losses.barlow_twins import BarlowTwins, barlow_twins
from keras_jointloss.losses.base import LearnedParameter, ViewsLoss
from keras_jointloss.losses.circle import Circle, circle
from keras_jointloss.losses.contrastive import Contrastive, contrastive
from keras_jointloss.losses.cos_face import CosFace
from keras_jointloss.losses.cosent import CoSENT, cosent
from keras_jointloss.losses.cosine_embedding import CosineEmbedding, cosine_embedding
from keras_jointloss.losses.decoupled_contrastive import DecoupledContrastive, decoupled_contrastive
from keras_jointloss.losses.gaussian_kl import gaussian_kl
from keras_jointloss.losses.info_nce import InfoNCE, info_nce
from keras_jointloss.losses.koleo import KoLeo, koleo
from keras_jointloss.losses.margin_contrastive import MarginContrastive, margin_contrastive
from keras_jointloss.losses.margin_mse import MarginMSE, margin_mse
from keras_jointloss.losses.matryoshka import Matryoshka
from keras_jointloss.losses.multi_similarity import MultiSimilarity, multi_similarity
from keras_jointloss.losses.n_pairs import NPairs, n_pairs
from keras_jointloss.losses.negative_cosine_similarity import (
    NegativeCosineSimilarity,
    negative_cosine_similarity,
)
from keras_jointloss.losses.norm_softmax import NormSoftmax
from keras_jointloss.losses.nt_xent import NTXent, nt_xent
from keras_jointloss.losses.proxy_anchor import ProxyAnchor
from keras_jointloss.losses.proxy_loss import ProxyLoss
from keras_jointloss.losses.proxy_nca import ProxyNCA
from keras_jointloss.losses.siglip import SigLIP, siglip
from keras_jointloss.losses.sigreg import SIGReg, sigreg
from keras_jointloss.losses.similarity_distillation import (
    SimilarityDistillation,
    similarity_distillation,
)
from keras_jointloss.losses.spread_out import SpreadOut, spread_out
from keras_jointloss.losses.sup_con import SupCon, sup_con
from keras_jointloss.losses.triplet import Triplet, triplet
from keras_jointloss.losses.triplet_margin import TripletMargin, triplet_margin
from keras_jointloss.losses.vicreg import VICReg, vicreg

__all__ = [
    "AlignmentUniformity", "AnglE", "ArcFace", "BarlowTwins", "Circle", "CoSENT", "Contrastive",
    "CosFace", "CosineEmbedding", "DecoupledContrastive", "InfoNCE", "KoLeo", "LearnedParameter",
    "MarginContrastive", "MarginMSE", "Matryoshka", "Memory", "MultiSimilarity", "NPairs",
    "NTXent", "NegativeCosineSimilarity", "NormSoftmax", "ProxyAnchor", "ProxyLoss", "ProxyNCA",
    "SIGReg", "SigLIP", "SimilarityDistillation", "SpreadOut", "SupCon", "Triplet",
    "TripletMargin", "VICReg", "ViewsLoss", "alignment_uniformity", "angle", "barlow_twins",
    "circle", "contrastive", "cosent", "cosine_embedding", "decoupled_contrastive", "gaussian_kl",
    "get", "info_nce", "koleo", "margin_contrastive", "margin_mse", "multi_similarity", "n_pairs",
    "negative_cosine_similarity", "nt_xent", "siglip", "sigreg", "similarity_distillation",
    "spread_out", "sup_con", "triplet", "triplet_margin", "vicreg",
]  # fmt: skip
