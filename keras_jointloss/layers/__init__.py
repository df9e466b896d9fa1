"""Layers that add a term to the loss, combine the gradients of terms, or save memory."""

from keras_jointloss.layers.chunked_tower import ChunkedTower
from keras_jointloss.layers.contrastive.contrastive_term import ContrastiveTerm
from keras_jointloss.layers.gradient_scale import GradientScale
from keras_jointloss.layers.gradients.gradient_balancer import GradientBalancer
from keras_jointloss.layers.gradients.shared_trunk import SharedTrunk
from keras_jointloss.layers.loss_term import LossTerm
from keras_jointloss.layers.momentum_tower import MomentumTower
from keras_jointloss.layers.point_weights import PointWeights
from keras_jointloss.layers.proxy_term import ProxyTerm
from keras_jointloss.layers.teacher import Teacher

__all__ = [
    "ChunkedTower",
    "ContrastiveTerm",
    "GradientBalancer",
    "GradientScale",
    "LossTerm",
    "MomentumTower",
    "PointWeights",
    "ProxyTerm",
    "SharedTrunk",
    "Teacher",
]
