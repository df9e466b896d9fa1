"""Rules that adapt the weights of the terms during `fit`."""

from keras_jointloss.weighting.base import Weighting, get
from keras_jointloss.weighting.constraint import Constraint
from keras_jointloss.weighting.dynamic_weight_average import DynamicWeightAverage
from keras_jointloss.weighting.famo import FAMO
from keras_jointloss.weighting.geometric_mean import GeometricMean
from keras_jointloss.weighting.grad_norm import GradNorm
from keras_jointloss.weighting.imtl_l import IMTLL
from keras_jointloss.weighting.inverse_gradient_norm import InverseGradientNorm
from keras_jointloss.weighting.neural_tangent_kernel import NeuralTangentKernel
from keras_jointloss.weighting.random_weighting import RandomWeighting
from keras_jointloss.weighting.relobralo import ReLoBRaLo
from keras_jointloss.weighting.shares import Shares
from keras_jointloss.weighting.smooth_tchebycheff import SmoothTchebycheff
from keras_jointloss.weighting.soft_adapt import SoftAdapt
from keras_jointloss.weighting.uncertainty import Uncertainty

__all__ = [
    "FAMO",
    "IMTLL",
    "Constraint",
    "DynamicWeightAverage",
    "GeometricMean",
    "GradNorm",
    "InverseGradientNorm",
    "NeuralTangentKernel",
    "RandomWeighting",
    "ReLoBRaLo",
    "Shares",
    "SmoothTchebycheff",
    "SoftAdapt",
    "Uncertainty",
    "Weighting",
    "get",
]
