"""The mean losses of epochs, of rules that compare one epoch with another."""

from keras_jointloss._core.quick_ops import ops

#: The state of each term: the number of the epoch, the sum of its losses so far and their number.
EPOCH_STATE = {"epoch": 0.0, "total": 0.0, "steps": 0.0}


def add_to_epoch(state, epoch, losses):
    """Adds the losses of a step to those of the epoch in the state.

    Args:
        state: A dict with the entries of `EPOCH_STATE`, `(terms,)` each.
        epoch: The number of the epoch, an int32 scalar tensor.
        losses: `(terms,)`.

    Returns:
        The terms for which this is the first step after an epoch with losses, and the means of
        that epoch: `(terms,)` each.
    """
    epoch = ops.cast(epoch, losses.dtype) + ops.zeros_like(losses)
    is_new = ops.logical_and(ops.not_equal(epoch, state["epoch"]), state["steps"] > 0)
    mean = ops.divide_no_nan(state["total"], state["steps"])
    total = ops.where(is_new, 0, state["total"]) + losses
    steps = ops.where(is_new, 0, state["steps"]) + 1
    state.update({"epoch": epoch, "total": total, "steps": steps})
    return is_new, mean
