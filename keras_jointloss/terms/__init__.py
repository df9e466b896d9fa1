"""The parts of a joint loss term: its weight, its clock, its loss and the means of both."""

from keras_jointloss.terms.applied_weight import AppliedWeight
from keras_jointloss.terms.class_weights import ClassWeightedMetric
from keras_jointloss.terms.loss import TermLoss
from keras_jointloss.terms.loss_across import LossAcross
from keras_jointloss.terms.loss_part import LossPart
from keras_jointloss.terms.loss_sum import LossSum
from keras_jointloss.terms.missing.labelled_metric import LabelledMetric
from keras_jointloss.terms.output_weight import LossWeight
from keras_jointloss.terms.term_reading import TermReading

__all__ = [
    "AppliedWeight", "ClassWeightedMetric", "LabelledMetric", "LossAcross", "LossPart",
    "LossSum", "LossWeight", "TermLoss", "TermReading",
]  # fmt: skip
