"""Layers that add a term to the loss."""

from keras_jointloss.layers.contrastive_term import ContrastiveTerm

__all__ = ["ContrastiveTerm"]
