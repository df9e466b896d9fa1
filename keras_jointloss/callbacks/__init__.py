"""Callbacks for joint losses."""

from keras_jointloss.callbacks.joint_loss_callback import JointLossCallback

__all__ = ["JointLossCallback"]
