"""Operations on the few numbers of each term that every training step computes.

`ops` is `keras.ops`, but on PyTorch its functions accept only tensors of one dtype and, as a second
argument, numbers: the checks and conversions of Keras take longer than to compute such numbers.
"""

from keras_jointloss._core.backend import is_traced, quick_ops, runs_in_python
from keras_jointloss._core.keras_calls import is_stateless
from keras_jointloss._core.types import Tensor

ops = quick_ops()


def runs_immediately(x: Tensor) -> bool:
    """Returns whether operations on a tensor, and assignments to variables, run one by one now."""
    return runs_in_python() and not is_traced(x) and not is_stateless()
