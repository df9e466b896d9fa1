"""Updates the state of a rule in a training step: warm-up, means, smoothing and guards.

The state is a vector `(terms,)` for each name. A step with a loss that the rule cannot use, or that
leads to a number that is not finite, changes only the count of such steps.
"""

from collections.abc import Mapping
from typing import Any

from keras import ops

#: The state of each term: the adapted weight, the latest loss, whether there was any (with
#: `corrects_bias` the total weight of the losses in the mean), the number of steps in which it was
#: unusable, and whether it was among the first that were unusable.
STATE = {"weight": 1.0, "loss": 1.0, "seen": 0.0, "unusable": 0.0, "culprit": 0.0}
#: With `update_every`: the sum of the losses since the latest update, and their number.
SUMS = {"sum": 0.0, "count": 0.0}
#: Those that are never negative.
NONNEGATIVE = frozenset({"weight", "seen", "unusable", "culprit", "count"})
#: Rounding may put a loss this far below the minimum: such a loss counts as the minimum.
_ROUNDING = 1e-4


def advance(rule: Any, state: Mapping[str, Any], losses, is_present, step, is_on) -> dict[str, Any]:
    """Returns the state of a rule after a training step.

    Args:
        rule: The `keras_jointloss.weighting.Weighting`: its options and its `update`.
        state: The state before: `(terms,)` by name.
        losses: `(terms,)`.
        is_present: `(terms,)`, whether a term has a loss in this step.
        step: The number of the step, an int32 scalar.
        is_on: Whether the rule is on, a bool scalar.
    """
    losses = _raise_rounded(losses, rule.minimum_loss)
    is_usable = ops.isfinite(losses) & (losses >= rule.minimum_loss)
    is_unusable = is_present & ~is_usable
    if rule.warmup_steps:
        is_on = is_on & (step >= rule.warmup_steps)
    is_due, sums = is_on, {}
    if rule.update_every > 1:
        is_due = is_on & ops.equal((step + 1) % rule.update_every, 0)
        sums = _added(state, losses, is_on & ~ops.any(is_unusable) & is_present)
        is_present = sums["count"] > 0
        losses = sums["sum"] / ops.maximum(sums["count"], 1)
        sums = {name: ops.where(is_due, 0, total) for name, total in sums.items()}

    updated = _updated(rule, state, losses, is_present, step)
    names = tuple(updated)
    before = ops.stack([state[name] for name in names])
    after = ops.stack([updated[name] for name in names])
    is_accepted = is_due & ~ops.any(is_unusable)
    is_broken = is_accepted & is_present & ~ops.all(ops.isfinite(after), axis=0)
    is_accepted = is_accepted & ~ops.any(is_broken) & is_present
    values = ops.unstack(ops.where(is_accepted, after, before))
    counts = _counted(state, (is_unusable & is_on) | is_broken)
    return {**state, **sums, **dict(zip(names, values, strict=True)), **counts}


def _raise_rounded(losses, minimum):
    """Returns the losses, with `minimum` in place of those that rounding has put below it."""
    is_rounded = (losses < minimum) & (losses >= minimum - _ROUNDING)
    return ops.where(is_rounded, ops.cast(minimum, losses.dtype), losses)


def _added(state, losses, is_added):
    """Returns the sums since the latest update, including this step."""
    return {
        "sum": state["sum"] + ops.where(is_added, losses, 0),
        "count": state["count"] + ops.cast(is_added, state["count"].dtype),
    }


def _updated(rule, state, losses, is_present, step):
    """Runs the rule on the losses and returns the new state by name."""
    loss, seen = losses, ops.ones_like(losses)
    if rule.ema and rule.corrects_bias:
        # The sum of the weights of all losses so far, by which a mean from 0 would be divided.
        previous = rule.ema * state["seen"]
        seen = previous + (1 - rule.ema)
        # A sum of positive parts: a difference of losses of unlike size would lose the smaller.
        loss = (previous * state["loss"] + (1 - rule.ema) * losses) / seen
    elif rule.ema:
        smoothed = rule.ema * state["loss"] + (1 - rule.ema) * losses
        loss = ops.where(state["seen"] > 0, smoothed, losses)
    loss = ops.where(is_present, loss, state["loss"])
    rule.has_loss = is_present | (state["seen"] > 0)
    rule.state = {name: state[name] for name in rule.initial_state}
    weight = ops.maximum(ops.cast(rule.update(loss, step), loss.dtype), rule.min_weight)
    if rule.max_weight is not None:
        weight = ops.minimum(weight, rule.max_weight)
    return {"weight": weight, "loss": loss, "seen": seen, **rule.state}


def _counted(state, is_unusable):
    """Returns the counts of unusable losses, and the terms that had the first."""
    unusable = ops.cast(is_unusable, state["unusable"].dtype)
    # Values that are not finite spread to the other terms in later steps.
    has_culprit = ops.any(state["culprit"] > 0)
    return {
        "unusable": state["unusable"] + unusable,
        "culprit": ops.where(has_culprit, state["culprit"], unusable),
    }
