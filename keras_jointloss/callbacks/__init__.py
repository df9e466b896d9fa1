"""Callbacks for joint losses."""

from keras_jointloss.callbacks.joint.joint_loss_callback import JointLossCallback
from keras_jointloss.callbacks.retrieval.knn_evaluation import KNNEvaluation
from keras_jointloss.callbacks.retrieval.retrieval_evaluation import RetrievalEvaluation
from keras_jointloss.callbacks.term_stopping import TermStopping

__all__ = ["JointLossCallback", "KNNEvaluation", "RetrievalEvaluation", "TermStopping"]
