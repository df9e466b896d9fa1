"""What a rule makes of the losses of a step."""

import functools
import math
import operator
from typing import Any

from keras_jointloss._core.quick_ops import ops

#: The state of each term: the adapted weight, the latest loss, whether there was any (with
#: `corrects_bias` the total weight of the losses in the mean), the number of steps in which it was
#: unusable, and how many steps it has been since the first of them.
STATE = {"weight": 1.0, "loss": 1.0, "seen": 0.0, "unusable": 0.0, "culprit": 0.0}
#: With `update_every`: the sum of the losses since the latest update, and their number.
SUMS = {"sum": 0.0, "count": 0.0}
#: Those that are never negative.
NONNEGATIVE = frozenset({"weight", "seen", "unusable", "culprit", "count"})
#: Those that do not change together with the rule's own state, in an accepted step only.
COUNTS = ("unusable", "culprit", *SUMS)
#: Rounding may put a loss this far below the minimum: such a loss counts as the minimum.
_ROUNDING = 1e-4


def advanced(rule, names, variable, losses, is_present, known, step, is_on):
    """Returns the state of a rule after a step, `(names, terms)`.

    Args:
        rule: The rule.
        names: The names of the rows.
        variable: The state before.
        losses: `(terms,)`.
        is_present: Which terms count; `True` for all.
        known: The weights of the terms that the rule needs, if any: `(terms,)`.
        step: The number of the step.
        is_on: Whether the rule is on.
    """
    before = ops.convert_to_tensor(variable)
    state = dict(zip(names, ops.unstack(before), strict=True))
    is_usable = abs(losses) < math.inf
    if math.isfinite(rule.minimum_loss):
        is_usable = is_usable & (losses >= rule.minimum_loss - _ROUNDING)
        losses = ops.maximum(losses, rule.minimum_loss)
    is_unusable = _both(is_present, ~is_usable)
    if rule.warmup_steps:
        is_on = _both(is_on, step >= rule.warmup_steps)
    is_due, sums = is_on, []
    if rule.update_every > 1:
        is_due = _both(is_on, (step + 1) % rule.update_every == 0)
        is_added = _both(is_on, _both(is_present, ~ops.any(is_unusable)))
        total = state["sum"] + ops.where(is_added, losses, 0)
        count = state["count"] + ops.cast(is_added, losses.dtype)
        is_present, losses = count > 0, total / ops.maximum(count, 1)
        sums = [ops.where(is_due, 0, total), ops.where(is_due, 0, count)]

    after = _learned(rule, state, losses, is_present, known, step)
    is_changed = _both(is_due, is_present)
    is_broken = ~functools.reduce(operator.and_, ops.unstack(abs(after) < math.inf))
    is_broken = _both(is_changed, is_broken)
    # One reduction of both, as each is a function of its own for the compiler of JAX.
    has_unusable, has_broken = ops.unstack(ops.any(ops.stack([is_unusable, is_broken]), axis=1))
    is_changed = _both(is_changed, ~(has_unusable | has_broken))
    after = ops.where(is_changed, after, before[: after.shape[0]])

    is_unusable = _both(is_on, is_unusable) | (is_broken & ~has_unusable)
    unusable = state["unusable"] + ops.cast(is_unusable, losses.dtype)
    is_after = is_unusable | (state["culprit"] > 0)
    culprit = state["culprit"] + ops.cast(is_after, losses.dtype)
    return ops.concatenate([after, ops.stack([unusable, culprit, *sums])])


def _learned(rule, state, losses, is_present, known, step):
    """Returns the rows that the rule learns from the losses, its own state last."""
    loss, seen = losses, ops.ones_like(losses)
    has_loss = state["seen"] > 0
    if rule.ema and rule.corrects_bias:
        # The sum of the weights of all losses so far, by which a mean from 0 would be divided.
        previous = rule.ema * state["seen"]
        seen = previous + (1 - rule.ema)
        # A sum of positive parts: a difference of losses of unlike size would lose the smaller.
        loss = (previous * state["loss"] + (1 - rule.ema) * losses) / seen
    elif rule.ema:
        loss = ops.where(has_loss, rule.ema * state["loss"] + (1 - rule.ema) * losses, losses)
    if is_present is not True:
        loss = ops.where(is_present, loss, state["loss"])
    own = {name: state[name] for name in rule.initial_state}
    weight, own = rule.run_update(loss, step, own, is_present | has_loss, known)
    weight = ops.maximum(ops.cast(weight, loss.dtype), rule.min_weight)
    if rule.max_weight is not None:
        weight = ops.minimum(weight, rule.max_weight)
    own = {name: own.get(name, state[name]) for name in rule.initial_state}
    return ops.stack([weight, loss, seen, *own.values()])


def _both(known: Any, condition):
    """Returns whether both conditions hold, of which the first may be `True`."""
    return condition if known is True else known & condition
