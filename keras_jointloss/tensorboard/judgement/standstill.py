"""Rules on terms that stand still: judged by steps in the callback, and by epochs from the logs."""

import numpy as np

from keras_jointloss.tensorboard.judgement.epochs import Epochs
from keras_jointloss.tensorboard.judgement.finding import Finding
from keras_jointloss.tensorboard.judgement.trends import FEWEST, scatter, trend

#: The mean of an epoch may change by so much, relative to it, from rounding alone.
_ROUNDING = 1e-6
#: Another term has to fall by this share for a standstill to be that of one term.
_FALL = 0.1
#: In how many epochs a plateau may begin, at most.
_STARTS = 50
_CAUSES = (
    "Possible causes: its embeddings have collapsed to one point; it is detached, as by "
    "`stop_gradient` or constants in place of the output of the model; the units before it are "
    "dead, saturated or frozen; it has reached its floor, as when all pairs keep a margin; it has "
    "converged on a batch that is the same in each step."
)


def constant_loss(term: str, loss: float, epoch: str, since: int, is_of_steps: bool) -> Finding:
    """Returns the finding of a loss that is always the same, from step to step or by epoch."""
    verb = "did not change from step to step in" if is_of_steps else "has not changed since"
    mean = "" if is_of_steps else " of all steps"
    return Finding(
        term,
        "stands_still",
        since,
        f"The loss of the term {term!r} {verb} {epoch}, in which its mean{mean} was {loss:.6g}, "
        "although its weight is not 0.",
        _CAUSES,
    )


def no_gradient(term: str, layer: str | None, epoch: str, since: int) -> Finding:
    """Returns the finding of a gradient that was 0 in every step, at a layer if it is known."""
    at = "" if layer is None else f" at the layer {layer!r}"
    verb = f"was 0 in every step of {epoch}" if layer is not None else f"has been 0 since {epoch}"
    z = "..." if layer is None else f"{layer}(...)"
    return Finding(
        term,
        "stands_still",
        since,
        f"The gradient of the term {term!r}{at} {verb}, although its loss moves and its weight is "
        "not 0.",
        f"Its head has to read `z[{term!r}]` of z = {z}. Likely causes: it reads the copy of "
        "another term or a tensor before the layer; `stop_gradient` or an operation without a "
        "derivative lies between; the units between are dead or saturated.",
    )


def stands_still(epochs: Epochs, term: str) -> Finding | None:
    """Returns since when a term stands still although it has a weight.

    Its gradient or its loss may do so exactly, for two or three epochs. Or its loss does not fall
    in at least six epochs while another one falls by a tenth: from the start, which is a fault, or
    after it has fallen, which is none.
    """
    if term in epochs.may_be_constant:
        return None
    index = _judged(epochs, term)
    if not len(index):
        return None
    return (
        _without_gradient(epochs, term, index)
        or _constant(epochs, term, index)
        or never_falls(epochs, term)
        or _plateau(epochs, term)
    )


def _judged(epochs: Epochs, term: str) -> np.ndarray:
    """Returns the last epochs in a row in which the term has a weight and the model learns.

    A weight that is less than half of its largest, now or in its schedule, is not yet to be judged.
    """
    weight = np.abs(epochs.train[term].weight)
    largest = max(np.nanmax(weight, initial=0.0), epochs.planned.get(term, 0.0))
    holds = (weight > 0) & (weight >= largest / 2)
    if epochs.learning_rate is not None:
        holds &= ~(epochs.learning_rate == 0)
    fails = np.flatnonzero(~holds)
    return np.arange(fails[-1] + 1 if len(fails) else 0, len(epochs))


def _without_gradient(epochs: Epochs, term: str, index: np.ndarray) -> Finding | None:
    found = epochs.train[term]
    fails = np.flatnonzero(~(found.norm[index] == 0))
    zero = index[fails[-1] + 1 :] if len(fails) else index
    if len(zero) < 2:
        return None
    losses = found.loss[zero]
    if not np.isfinite(losses).all() or losses[-1] == 0 or _is_constant(losses):
        return None
    return no_gradient(term, None, epochs.when(zero[0]), int(epochs.numbers[zero[0]]))


def _is_constant(losses: np.ndarray) -> bool:
    return bool(np.ptp(losses) <= _ROUNDING * np.max(np.abs(losses)))


def _constant(epochs: Epochs, term: str, index: np.ndarray) -> Finding | None:
    losses = epochs.train[term].loss[index]
    backwards = losses[::-1]
    with np.errstate(invalid="ignore"):
        range_ = np.maximum.accumulate(backwards) - np.minimum.accumulate(backwards)
        is_one = range_ <= _ROUNDING * np.maximum.accumulate(np.abs(backwards))
    start = len(losses) - int(np.argmin(np.append(is_one, False)))
    # Three epochs that are equal by chance alone would need losses without any scatter.
    if len(losses) - start < 3:
        return None
    at = index[start]
    return constant_loss(term, losses[-1], epochs.when(at), int(epochs.numbers[at]), False)


def never_falls(epochs: Epochs, term: str) -> Finding | None:
    """Returns a term whose loss has not fallen since the start, while another one falls."""
    index = _to_fall(epochs, term)
    if len(index) < FEWEST:
        return None
    losses = epochs.train[term].loss[index]
    if term in epochs.may_be_constant:
        return None
    whole = trend(losses)
    # Also while its weight was small.
    before = epochs.train[term].loss[: index[-1] + 1]
    spread = np.nanmax(before, where=np.isfinite(before), initial=-np.inf) - losses.min()
    if whole.verdict != "flat" or spread > max(6 * scatter(losses), 0.02 * whole.level):
        return None
    others = _falling(epochs, term, index)
    if not others:
        return None
    return Finding(
        term,
        "stands_still",
        int(epochs.numbers[index[0]]),
        f"The loss of the term {term!r} has not fallen since {epochs.when(index[0])}: it was "
        f"{losses[0]:.4g} there and is {losses[-1]:.4g} now, within its scatter, while that of "
        f"{', '.join(map(repr, others))} falls.",
        "Its targets may have nothing to do with the inputs, or not be those of the same items; "
        "its weight may be too small beside the others; it may be detached from what is trained, "
        "or have been learned before. Train it alone: if it then falls, raise its weight.",
        # A training that was resumed may have learned it.
        is_fault=epochs.is_from_start,
    )


def _to_fall(epochs: Epochs, term: str) -> np.ndarray:
    """Returns the epochs to judge, in which the loss is known; none if validation falls."""
    index = _judged(epochs, term)
    index = index[np.isfinite(epochs.train[term].loss[index])]
    return index[:0] if _falls_held_out(epochs, term, index) else index


def _falls_held_out(epochs: Epochs, term: str, index: np.ndarray) -> bool:
    if term not in epochs.validation:
        return False
    losses = epochs.validation[term].loss[index]
    return trend(losses[np.isfinite(losses)]).verdict == "falls"


def _falling(epochs: Epochs, term: str, index: np.ndarray) -> list[str]:
    """Returns the other terms whose loss falls by a tenth in these epochs."""
    trends = {
        name: trend(x.loss[index])
        for name, x in epochs.train.items()
        if name != term
        and x.loss[index[-1]] < x.loss[index[0]]
        and np.isfinite(x.loss[index]).all()
    }
    return [
        x for x, found in trends.items() if found.verdict == "falls" and -found.relative > _FALL
    ]


def _plateau(epochs: Epochs, term: str) -> Finding | None:
    """Returns a term that has fallen and no longer does, for six epochs and a third of all."""
    index = _to_fall(epochs, term)
    losses = epochs.train[term].loss[index]
    count = len(losses)
    last = count - max(FEWEST, -(-count // 3))
    if last < 1:
        return None
    longest = next(
        (
            start
            for start in np.unique(np.linspace(0, last, _STARTS).round().astype("int64"))
            if trend(losses[start:]).verdict == "flat"
            and np.ptp(losses[start:]) <= max(6 * scatter(losses[start:]), 0.02 * abs(losses[-1]))
        ),
        None,
    )
    if not longest:
        return None
    flat = index[longest:]
    others = _falling(epochs, term, flat)
    if not others:
        return None
    return Finding(
        term,
        "stands_still",
        int(epochs.numbers[flat[0]]),
        f"The loss of the term {term!r} has stayed at {np.median(losses[longest:]):.4g} since "
        f"{epochs.when(flat[0])}, while that of {', '.join(map(repr, others))} still falls.",
        "It may be learned. If it is not good enough, raise its weight, by a schedule if it was "
        "good enough at first.",
        is_fault=False,
    )
