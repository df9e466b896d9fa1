"""Rules that weigh the points of a differential equation, for `layers.PointWeights`."""

from keras_jointloss.points.base import PointRule, get
from keras_jointloss.points.causal import Causal
from keras_jointloss.points.residual import Residual
from keras_jointloss.points.self_adaptive import SelfAdaptive

__all__ = ["Causal", "PointRule", "Residual", "SelfAdaptive", "get"]
