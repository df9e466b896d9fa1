"""Rules on losses: what drives, what is not finite, and what is learned too much."""

import numpy as np

from keras_jointloss.tensorboard.judgement.epochs import Epochs
from keras_jointloss.tensorboard.judgement.finding import Finding
from keras_jointloss.tensorboard.judgement.trends import scatter, smoothed, trend, turn


def drives(epochs: Epochs) -> Finding | None:
    """Returns the term with the largest share of the total, and since when; no fault.

    `None` for a single term.
    """
    shares = epochs.shares
    known = [i for i in range(len(epochs)) if any(np.isfinite(x[i]) for x in shares.values())]
    if len(shares) < 2 or not known:
        return None
    leaders = [
        max((x for x in shares if np.isfinite(shares[x][i])), key=lambda name: shares[name][i])
        for i in known
    ]
    term, last = leaders[-1], known[-1]
    start = next(i for i in range(len(known)) if set(leaders[i:]) == {term})
    sentence = f"The term {term!r} drives: it is {shares[term][last]:.0%} of the weighted losses"
    sentence += f" in {epochs.when(last)}"
    if start:
        sentence += f"; before {epochs.when(known[start])} it was {leaders[start - 1]!r}"
    elif len(known) > 1:
        sentence += f", and {shares[term][known[0]]:.0%} in {epochs.when(known[0])}"
    sentence += "."
    norms = {name: x.norm[last] for name, x in epochs.train.items()}
    if all(np.isfinite(x) and x > 0 for x in norms.values()):
        longest = max(norms, key=lambda name: norms[name])
        shortest = min(norms, key=lambda name: norms[name])
        sentence += (
            f" The gradient of {longest!r} is the longest, {norms[longest] / norms[shortest]:.3g} "
            f"times as long as that of {shortest!r}."
        )
    advice = (
        "If another term matters more, raise its weight, or ask for shares with "
        "`kj.weighting.Shares`."
    )
    return Finding(term, "drives", int(epochs.numbers[known[start]]), sentence, advice, False)


def loss_is_not_finite(
    name: str | None, loss: float, where: str, since: int, what: str = "term"
) -> Finding:
    """Returns the finding of a loss that is not finite, of a term, a layer or the model."""
    subject = "the model" if name is None else f"{what} {name!r}"
    return Finding(
        name,
        "not_finite",
        since,
        f"The loss of {subject} is {loss} ({where}).",
        "Look for a logarithm or a division of 0, a learning rate that is too large, or targets "
        "that are not finite; `global_clipnorm=1.0` of the optimizer often helps.",
    )


def not_finite(epochs: Epochs) -> list[Finding]:
    """Returns the terms that were the first whose loss was not finite.

    A loss that is NaN while the total is finite is that of an epoch without items of the term.
    """
    total, is_bad = epochs.total, epochs.is_broken
    for i in range(len(epochs)):
        bad = [
            name
            for name, x in epochs.train.items()
            if np.isinf(x.loss[i]) or (is_bad[i] and np.isnan(x.loss[i]))
        ]
        if bad or is_bad[i]:
            values = {name: epochs.train[name].loss[i] for name in bad}
            number, when = int(epochs.numbers[i]), epochs.when(i)
            return [loss_is_not_finite(x, loss, when, number) for x, loss in values.items()] or [
                loss_is_not_finite(None, total[i], when, number)
            ]
    return []


def overfitted(epochs: Epochs, term: str) -> Finding | None:
    """Returns since when the validation of a term rises while its training does not.

    It needs six epochs with validation, the last three of them above the best.
    """
    if term not in epochs.validation or term not in epochs.train:
        return None
    train, held_out = epochs.train[term].loss, epochs.validation[term].loss
    known = np.flatnonzero(np.isfinite(train) & np.isfinite(held_out))
    found = turn(held_out[known])
    if found is None:
        return None
    at, _ = found
    own, best = train[known], held_out[known][at]
    rise_of_train = float(np.median(own[-3:]) - smoothed(own)[at])
    if rise_of_train > max(3 * scatter(own), 0.01 * abs(own[at])):
        return None  # It diverges.
    others = [x for x in epochs.validation if x != term and _still_improves(epochs, x, known[at])]
    while_others = ""
    if others:
        names = ", ".join(map(repr, others))
        while_others = f", while that of {names} still {'falls' if len(others) == 1 else 'fall'}"
    sentence = (
        f"The term {term!r} is overfitted since {epochs.when(known[at])}: its validation loss was "
        f"{best:.4g} there and is {np.median(held_out[known][-3:]):.4g} now{while_others}. Its "
        f"training loss went from {own[at]:.4g} to {np.median(own[-3:]):.4g}."
    )
    advice = (
        f"Stop this term alone with `kj.callbacks.TermStopping({{{term!r}: 'val_{term}_loss'}})`, "
        "or lower its weight by a schedule; more data, dropout or weight decay in its head help, "
        "too."
        if others
        else "Stop earlier with `keras.callbacks.EarlyStopping`, or add data, dropout or weight "
        "decay."
    )
    return Finding(term, "overfitted", int(epochs.numbers[known[at]]), sentence, advice)


def _still_improves(epochs: Epochs, term: str, since: int) -> bool:
    """Returns whether the validation of a term falls from an epoch to the end."""
    values = epochs.validation[term].loss[since:]
    values = values[np.isfinite(values)]
    if trend(values).verdict == "falls":
        return True
    # Too few points for a trend.
    return len(values) > 3 and bool(np.all(values[-3:] < values[0])) and values.argmin() > 1


#: A term with a smaller share of the weighted losses is hardly trained.
_SMALL_SHARE = 0.01


def nearly_off(epochs: Epochs, term: str) -> Finding | None:
    """Returns since when a term has less than 1 % of the weighted losses.

    It has to be for the last three epochs and half of the training, and the gradient of the term
    has to be as short, where all lengths are known. A term whose loss has fallen to a tenth may be
    learned, and one whose schedule fades out is meant to be.
    """
    found, shares = epochs.train[term], epochs.shares
    if len(shares) < 2 or len(epochs) < 3:
        return None
    is_small = (shares[term] < _SMALL_SHARE) & (found.weighted != 0)
    if not is_small[-1]:
        return None
    norms = np.stack([x.norm for x in epochs.train.values()])
    if np.isfinite(norms).all():
        is_small &= found.norm < _SMALL_SHARE * norms.sum(axis=0)
    start = _start_of_last_run(is_small)
    if len(epochs) - start < max(3, len(epochs) / 2):
        return None
    weight = found.weight[np.isfinite(found.weight)]
    has_faded = len(weight) > 0 and weight[-1] <= 0.1 * weight.max()
    if has_faded and term in epochs.schedules:
        return None
    losses = np.abs(found.loss[np.isfinite(found.loss)])
    if start > 0 and not has_faded and losses[-1] <= 0.1 * losses[0]:
        return None
    share, largest = shares[term][-1], max(shares, key=lambda name: shares[name][-1])
    sentence = (
        f"The term {term!r} has been less than 1 % of the weighted losses since "
        f"{epochs.when(start)}, {share:.2g} of them now at a weight of {weight[-1]:.3g}: it is "
        f"hardly trained beside {largest!r}."
    )
    if has_faded:
        sentence += f" Its weight has fallen from {weight.max():.3g}."
    advice = (
        "Raise its weight, or take a rule that makes up for the size of losses, such as "
        "`kj.weighting.Uncertainty`; leave it out if it is not needed."
    )
    return Finding(
        term, "nearly_off", int(epochs.numbers[start]), sentence, advice, is_fault=not has_faded
    )


def _start_of_last_run(holds: np.ndarray) -> int:
    """Returns the index since which a condition holds until the end."""
    fails = np.flatnonzero(~holds)
    return int(fails[-1]) + 1 if len(fails) else 0
