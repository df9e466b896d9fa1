"""Writes what a probe has measured, for TensorBoard."""

import os
from typing import Any

import numpy as np

from keras_jointloss.tensorboard import SummaryWriter


def write(probe: Any, log_dir: str) -> None:
    """Writes the statistics before the warm-up to `log_dir/train` at step 0."""
    writer = SummaryWriter(os.path.join(log_dir, "train"))
    try:
        writer.scalars({x: y for x, y in _values(probe).items() if np.isfinite(y)}, step=0)
    finally:
        writer.close()


def _values(probe: Any) -> dict[str, float]:
    state = probe.untrained
    lengths = state.lengths()
    found: dict[str, float] = {}
    for term in state.terms:
        weight = probe.current_weights[term]
        found |= {
            f"joint_loss/{term}/raw": state.loss[term],
            f"joint_loss/{term}/weight": weight,
            f"joint_loss/{term}/weighted": weight * state.loss[term],
            f"gradients/{term}/norm": weight * lengths[term],
        }
    for a, b in state.cosine:
        found[f"gradients/{a}~{b}/cosine"] = state.cosine[a, b]
        found[f"gradients/{a}~{b}/conflict"] = state.conflict[a, b]
    return found
