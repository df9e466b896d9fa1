"""Counts how often Python reads a tensor of the backend: each read would wait for a device."""

import sys

import numpy as np
from keras import ops

from tests.backends import BACKEND, jax, torch

#: Functions that read what is on the host: a number that is rounded, and an array that is checked.
OTHERS = {("numbers.py", "assign"), ("__init__.py", "host_values")}
#: Functions of Keras that read in each step: its logs, and whether TensorFlow's data has ended.
OTHERS |= {("python_utils.py", "pythonify_logs"), ("trainer.py", "function")}


def count_reads(monkeypatch) -> list[str]:
    """Returns a list that grows with each read, by the name of what has read."""
    reads: list[str] = []

    def counted(owner, name, is_read=lambda *arguments: True):
        original = getattr(owner, name)

        def read(*arguments, **options):
            if is_read(*arguments) and not _is_of_others():
                reads.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, read)

    counted(ops, "convert_to_numpy")
    if BACKEND == "torch":
        for name in ("item", "tolist", "numpy", "__array__", "__bool__", "__float__", "__int__"):
            counted(torch.Tensor, name)
        for name in ("nonzero", "masked_select", "cpu"):  # They wait for a size, or for all.
            counted(torch.Tensor, name)
    elif BACKEND == "jax":
        array = type(jax.numpy.zeros(()))
        for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__"):
            counted(array, name)
        for name in ("asarray", "array"):
            counted(np, name, lambda *values: isinstance(values[0], array))
        counted(jax, "device_get")
    else:
        from tensorflow.python.framework import ops as tensors

        counted(tensors._EagerTensorBase, "_numpy")
    return reads


def _is_of_others() -> bool:
    """Returns whether one of these functions has called, with few calls in between."""
    frame = sys._getframe(2)
    for _ in range(8):
        code = frame.f_code
        if (code.co_filename.rpartition("/")[2], code.co_name) in OTHERS:
            return True
        frame = frame.f_back
    return False
