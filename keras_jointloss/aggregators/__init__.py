"""Aggregators: rules that combine the gradients of several terms into one."""

from keras_jointloss.aggregators.aligned_mtl import AlignedMTL
from keras_jointloss.aggregators.base import Aggregator, get
from keras_jointloss.aggregators.cagrad import CAGrad
from keras_jointloss.aggregators.con_fig import ConFIG
from keras_jointloss.aggregators.db_mtl import DBMTL
from keras_jointloss.aggregators.dual_proj import DualProj
from keras_jointloss.aggregators.fair_grad import FairGrad
from keras_jointloss.aggregators.grad_vac import GradVac
from keras_jointloss.aggregators.imtl_g import IMTLG
from keras_jointloss.aggregators.linear import Mean, Sum
from keras_jointloss.aggregators.mgda import MGDA
from keras_jointloss.aggregators.nash_mtl import NashMTL
from keras_jointloss.aggregators.pcd import PCD
from keras_jointloss.aggregators.pcgrad import PCGrad
from keras_jointloss.aggregators.preference import PreferenceAggregator
from keras_jointloss.aggregators.shares import Shares
from keras_jointloss.aggregators.upgrad import UPGrad

__all__ = [
    "DBMTL", "IMTLG", "MGDA", "PCD", "Aggregator", "AlignedMTL", "CAGrad", "ConFIG", "DualProj",
    "FairGrad", "GradVac", "Mean", "NashMTL", "PCGrad", "PreferenceAggregator", "Shares", "Sum",
    "UPGrad", "get",
]  # fmt: skip
