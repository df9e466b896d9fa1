"""Rules on weights: those that ran away, and those that never moved although they should."""

from collections.abc import Mapping

import numpy as np

from keras_jointloss.tensorboard.judgement.epochs import Epochs
from keras_jointloss.tensorboard.judgement.finding import Finding

#: A weight that has grown by so much against the others has left the range of useful ones: grids of
#: constant weights span less.
_FAR = 1e3
#: Of which its own weight has grown by so much.
_ALONE = 10.0
#: What the terms with such a weight leave to the others, or what has become of their loss.
_REST = 0.01


def ran_away(epochs: Epochs, term: str) -> Finding | None:
    """Returns since when a weight has grown 1,000-fold against the others, and 10-fold itself.

    Not if that makes up for the size of the loss, as rules do, and leaves the others a share: the
    term has to have 99 % of the weighted losses, or a loss that has fallen 1,000-fold, by whose
    size a rule divides. Nor if a schedule does so.
    """
    if term in epochs.schedules or len(epochs.train) < 2 or len(epochs) < 3:
        return None
    own = epochs.train[term]
    if not (own.weight > 0).any() or np.nanmax(own.weight) < _ALONE * np.nanmin(own.weight):
        return None
    weights = np.stack([x.weight for name, x in epochs.train.items() if name != term])
    known = np.flatnonzero((own.weight > 0) & (weights > 0).all(axis=0))
    if len(known) < 3:
        return None
    alone, others = np.log(own.weight[known]), np.log(weights[:, known]).mean(axis=0)
    growth = alone - alone[0] - (others - others[0])
    # Where only the others fade out, their weights have gone, not this one.
    if growth[-1] < np.log(_FAR) or alone[-1] - alone[0] < np.log(_ALONE):
        return None
    losses = np.abs(own.loss[known])
    takes_all = epochs.shares[term][known[-1]] >= 1 - _REST
    is_spent = losses[-1] <= losses[0] / _FAR
    if not (takes_all or is_spent):
        return None
    at = known[np.flatnonzero(growth < np.log(_FAR))[-1] + 1]
    why = (
        f"its loss has fallen from {losses[0]:.3g} to {losses[-1]:.3g}"
        if is_spent
        else f"it is {epochs.shares[term][known[-1]]:.1%} of the weighted losses"
    )
    return Finding(
        term,
        "weight_ran_away",
        int(epochs.numbers[at]),
        f"The weight of the term {term!r} has run away: against the others it is "
        f"{np.exp(growth[-1]):.2g} times what it was in {epochs.when(known[0])}, and {why}.",
        "Limit the rule with `max_weight` and `min_weight`, or, where the loss may reach 0, with a "
        "`floor`; or take constant weights.",
    )


def never_moved(epochs: Epochs, term: str) -> Finding | None:
    """Returns a weight that is the same in all epochs although its schedule moves."""
    if term not in epochs.schedules:
        return None
    weight, planned = epochs.train[term].weight, epochs.schedules[term]
    if not len(weight) or not np.isfinite(weight).all():
        return None
    size = max(np.max(np.abs(planned)), np.max(np.abs(weight)))
    is_still = np.ptp(weight) <= 1e-6 * size
    if not is_still or abs(weight[-1] - planned[-1]) <= 0.01 * size:
        return None
    return Finding(
        term,
        "weight_never_moved",
        int(epochs.numbers[0]),
        f"The weight of the term {term!r} is {weight[-1]:.4g} in all epochs, although its schedule "
        f"is at {planned[-1]:.4g} in {epochs.when(len(epochs) - 1)}.",
        "Pass a `kj.callbacks.JointLossCallback` to `fit`, which moves the weights; a "
        "`TermStopping` may have switched the term off.",
    )


def rule_never_moved(epochs: Epochs, rule: str) -> Finding | None:
    """Returns that a rule has moved no weight in three epochs or more."""
    weights: Mapping[str, np.ndarray] = {name: x.weight for name, x in epochs.train.items()}
    if len(epochs) < 3 or len(weights) < 2:
        return None
    if not all(np.isfinite(x).all() and np.ptp(x) == 0 for x in weights.values()):
        return None
    return Finding(
        None,
        "weight_never_moved",
        int(epochs.numbers[0]),
        f"The rule {rule} has moved no weight in {len(epochs)} epochs.",
        "Pass a `kj.callbacks.JointLossCallback` to `fit`, which runs the rule; its "
        "`warmup_steps` may be longer than the training.",
    )


def missed_steps(batches: int, epoch: int) -> Finding:
    """Returns the finding of weights that did not move in all batches of an epoch."""
    return Finding(
        None,
        "weight_never_moved",
        epoch + 1,
        "The weights of a schedule or weighting did not move in all of the "
        f"{batches} batches of epoch {epoch}.",
        "Expected training of all layer terms by `fit`, or by `train_on_batch` between the hooks "
        "of a `keras.callbacks.CallbackList` without `reset_metrics` after `on_train_batch_begin`.",
    )
