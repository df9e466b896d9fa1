"""Random gradients of many kinds, and helpers that apply aggregators to them.

An aggregator compiles once for each number of terms and dtype. The tests therefore share these
functions and use few shapes; more matrices of the same shape are cheap. Computations that use the
same operations on all backends are tested with more shapes and dtypes on PyTorch, which does not
compile.
"""

import functools
import json

import numpy as np
import pytest
from keras import ops

import keras_jointloss as kj
from keras_jointloss.aggregators import DBMTL, MGDA, CAGrad, FairGrad
from tests.gradients import COMPILES, compiled, dtypes

PINNED_JACOBIAN = [[-4.0, 1.0, 1.0], [6.0, 1.0, 1.0]]

NAMES = ("Sum", "Mean", "PCGrad", "MGDA", "CAGrad", "NashMTL", "AlignedMTL", "IMTLG", "UPGrad")
NAMES += ("Shares", "FairGrad", "ConFIG", "DualProj", "DBMTL", "GradVac", "PCD")
CASES = {
    **{name: getattr(kj.aggregators, name)() for name in NAMES},
    **{f"MGDA-{normalize}": MGDA(normalize=normalize) for normalize in ("l2", "loss", "loss+")},
    "CAGrad-1.5": CAGrad(c=1.5),
    "FairGrad-3": FairGrad(alpha=3.0),
    "FairGrad-0.3": FairGrad(alpha=0.3),
    "DBMTL-log": DBMTL(log=True),
}
#: On backends that compile, only the aggregators with default arguments.
COMPARED = {key: case for key, case in CASES.items() if not (COMPILES and "-" in key)}
all_aggregators = pytest.mark.parametrize("aggregator", COMPARED.values(), ids=COMPARED)
all_dtypes = pytest.mark.parametrize("dtype", dtypes()[: 1 if COMPILES else 2])


def well_conditioned(count, generator):
    return generator.normal(size=(count, 64))


def similar(count, generator):
    return well_conditioned(count, generator) + 1


def ill_scaled(count, generator):
    lengths = 10 ** np.linspace(-3, 3, count)[:, None]
    return generator.permutation(lengths * well_conditioned(count, generator))


def rank_deficient(count, generator):
    rank = max(1, count // 2)
    return generator.normal(size=(count, rank)) @ generator.normal(size=(rank, 64))


def collinear(count, generator, factor=2, own=0):
    """Returns gradients of which the last is `factor` times the first plus `own` times itself."""
    result = well_conditioned(count, generator)
    result[-1] = factor * result[0] + own * result[-1]
    return result


def antiparallel(count, generator):
    return collinear(count, generator, -2)


def nearly_antiparallel(count, generator):
    return collinear(count, generator, -2, 1e-2)


def conflicting(count, generator):
    result = well_conditioned(count, generator)
    return result - 0.99 * np.mean(result, axis=0)


def orthogonal(count, generator):
    return np.eye(count, 64)


REGULAR = (well_conditioned, similar, ill_scaled, conflicting, orthogonal)
SINGULAR = (rank_deficient, collinear, antiparallel, nearly_antiparallel)


def jacobians(kinds, count, dtype="float64", number=2):
    """Yields each kind with float64 matrices whose entries are exact in `dtype`."""
    for kind in kinds:
        for seed in range(number):
            yield kind, kind(count, np.random.default_rng(seed)).astype(dtype).astype("float64")


def losses_of(jacobian):
    return np.linspace(1.0, 2.0, len(jacobian))


def solve(aggregator, jacobian, dtype="float32", step=0, losses=None):
    """Returns the coefficients as a float64 array."""
    gramian = ops.convert_to_tensor(jacobian @ jacobian.T, dtype)
    losses = losses_of(jacobian) if losses is None else losses
    return to_float64(call(aggregator, "solve", gramian, losses, step))


def combine(aggregator, jacobian, dtype="float32", step=0):
    """Returns the combined gradient as a float64 array."""
    matrix = ops.convert_to_tensor(jacobian, dtype)
    return to_float64(call(aggregator, "__call__", matrix, losses_of(jacobian), step))


def call(aggregator, method, matrix, losses, step=0):
    """Calls a method, compiled if the backend compiles."""
    losses = ops.convert_to_tensor(losses, "float32")
    step = ops.convert_to_tensor(step, "int32")
    config = json.dumps(aggregator.get_config())
    return _compiled(type(aggregator), config, method)(matrix, losses, step)


@functools.cache
def _compiled(cls, config, method):
    """Returns one compiled method for all aggregators with this config, shared by all tests."""
    return compiled(getattr(cls(**json.loads(config)), method))


def to_float64(tensor):
    return ops.convert_to_numpy(tensor).astype("float64")


def assert_vectors_close(actual, expected, tolerance, what=""):
    assert np.all(np.isfinite(actual)), what
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected), what
