"""Rules on gradients: terms that pull against each other."""

import numpy as np

from keras_jointloss.tensorboard.judgement.epochs import Epochs
from keras_jointloss.tensorboard.judgement.finding import Finding

#: Gradients in many dimensions are nearly orthogonal: a mean cosine above this is chance.
_COSINE = -0.1


def conflict(epochs: Epochs, pair: tuple[str, str]) -> Finding | None:
    """Returns that two gradients pull against each other, over the last third of the training.

    At least three epochs, in which the mean cosine is below -0.1 by three standard errors over
    epochs, and more than half of the steps are in conflict, by three standard errors of chance.
    """
    cosine, share = epochs.pairs[pair]
    known = np.flatnonzero(np.isfinite(cosine) & np.isfinite(share))
    size = max(3, len(known) // 3)
    if len(known) < 3:
        return None
    late = known[-size:]
    mean, error = cosine[late].mean(), cosine[late].std(ddof=1) / np.sqrt(size)
    now = np.average(share[late], weights=epochs.sizes[late])
    steps = epochs.sizes[late].sum()
    # A history without the number of its steps has one in each epoch.
    chance = 0.5 + (3 * 0.5 / np.sqrt(steps) if steps > size else 0.0)
    if mean + 3 * error > _COSINE or now <= chance:
        return None
    holds = np.flatnonzero(~(cosine[known] < _COSINE))
    start = known[holds[-1] + 1] if len(holds) else known[0]
    a, b = pair
    words = ""
    if len(known) >= 2 * size:
        early = np.average(share[known[:size]], weights=epochs.sizes[known[:size]])
        change = now - early
        how = "as at the start" if abs(change) < 0.1 else f"{'up' if change > 0 else 'down'} from"
        words = f", {how}{'' if abs(change) < 0.1 else f' {early:.0%} at the start'}"
    return Finding(
        None,
        "conflict",
        int(epochs.numbers[start]),
        f"The gradients of {a!r} and {b!r} conflict in {now:.0%} of the steps{words}, with a mean "
        f"cosine of {mean:.2f}.",
        "If one of them learns less than alone, compare an aggregator such as `PCGrad` in a "
        "`GradientBalancer`, or give the two more layers of their own.",
        is_fault=False,
    )
