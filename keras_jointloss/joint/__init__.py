"""Puts terms together: `joint_loss`, the terms of a model, its report."""
