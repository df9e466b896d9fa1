"""Losses on the views of an item, as `keras.losses.Loss` classes and as functions."""

from keras_jointloss.losses.base import LearnedParameter, ViewsLoss, get
from keras_jointloss.losses.info_nce import InfoNCE, info_nce
from keras_jointloss.losses.margin_contrastive import MarginContrastive, margin_contrastive

__all__ = [
    "InfoNCE",
    "LearnedParameter",
    "MarginContrastive",
    "ViewsLoss",
    "get",
    "info_nce",
    "margin_contrastive",
]
