"""Layers that add a term to the loss, combine the gradients of terms, or save memory."""

from keras_jointloss.layers.chunked_tower import ChunkedTower
from keras_jointloss.layers.contrastive_term import ContrastiveTerm
from keras_jointloss.layers.gradient_balancer import GradientBalancer
from keras_jointloss.layers.loss_term import LossTerm
from keras_jointloss.layers.shared_trunk import SharedTrunk

__all__ = ["ChunkedTower", "ContrastiveTerm", "GradientBalancer", "LossTerm", "SharedTrunk"]
