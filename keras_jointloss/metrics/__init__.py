"""Metrics on the views of an item: how well they retrieve each other and how they lie in space."""

from keras_jointloss.metrics.base import ViewsMetric
from keras_jointloss.metrics.geometry import Alignment, Uniformity
from keras_jointloss.metrics.pairs import (
    NegativeSimilarity,
    PairAccuracy,
    PositiveSimilarity,
    SimilarityGap,
)
from keras_jointloss.metrics.retrieval import (
    MeanAveragePrecisionAtR,
    MeanReciprocalRank,
    RecallAtK,
)

__all__ = [
    "Alignment",
    "MeanAveragePrecisionAtR",
    "MeanReciprocalRank",
    "NegativeSimilarity",
    "PairAccuracy",
    "PositiveSimilarity",
    "RecallAtK",
    "SimilarityGap",
    "Uniformity",
    "ViewsMetric",
]
