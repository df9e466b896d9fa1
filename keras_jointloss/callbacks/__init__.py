"""Callbacks for joint losses."""

from keras_jointloss.callbacks.joint_loss_callback import JointLossCallback
from keras_jointloss.callbacks.retrieval_evaluation import RetrievalEvaluation

__all__ = ["JointLossCallback", "RetrievalEvaluation"]
