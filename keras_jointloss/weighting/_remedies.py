"""What the warnings of several rules advise."""

from collections.abc import Mapping
from typing import Any

from keras_jointloss._core.math import to_numpy

#: What helps in a rule that ignores the size of the losses.
SCALE_REMEDY = (
    "This rule ignores the size of a loss: scale the losses with the `weights` of `joint_loss`, or "
    "take a rule that makes up for it, such as `Uncertainty`."
)


def describe_first_gradient(rule: Any, losses: Mapping[str, float], forgets: bool) -> str | None:
    """Returns a sentence on a loss that is large in the first step; `None` if there is none.

    Args:
        rule: A rule that divides by the size of a loss from the second step on.
        losses: The mean losses of an epoch by the name of the term.
        forgets: As in `Weighting.describe_limit`.
    """
    largest = max(losses, key=losses.__getitem__, default=None)
    if forgets or largest is None or losses[largest] < 1e3 or int(to_numpy(rule.epoch)) > 1:
        return None
    return (
        f"the loss of the term {largest!r} is {losses[largest]:.3g}. With the weight of the "
        "first step, its gradient was about as many times as long as later. Optimizers such as "
        "Adam remember it for thousands of steps, in which they hardly train. Set "
        "`global_clipnorm=1.0` in the optimizer, or scale that loss or its targets."
    )
