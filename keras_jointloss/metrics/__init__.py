"""Metrics on the views of an item: how well they retrieve each other and how they lie in space."""

from keras_jointloss.metrics.base import ViewsMetric
from keras_jointloss.metrics.geometry import Alignment, Uniformity
from keras_jointloss.metrics.pairs import (
    NegativeSimilarity,
    PairAccuracy,
    PositiveSimilarity,
    SimilarityGap,
)
from keras_jointloss.metrics.ranking import (
    MeanAveragePrecision,
    MeanAveragePrecisionAtR,
    NormalizedDiscountedCumulativeGain,
)
from keras_jointloss.metrics.retrieval import MeanReciprocalRank, RecallAtK

__all__ = [
    "Alignment", "MeanAveragePrecision", "MeanAveragePrecisionAtR", "MeanReciprocalRank",
    "NegativeSimilarity", "NormalizedDiscountedCumulativeGain", "PairAccuracy",
    "PositiveSimilarity", "RecallAtK", "SimilarityGap", "Uniformity", "ViewsMetric",
]  # fmt: skip
