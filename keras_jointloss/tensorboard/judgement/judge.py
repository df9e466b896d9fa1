"""All rules at once, on the epochs of a training."""

from collections.abc import Iterator

import numpy as np

from keras_jointloss.tensorboard.judgement import losses, standstill, weights
from keras_jointloss.tensorboard.judgement.epochs import Epochs
from keras_jointloss.tensorboard.judgement.finding import Finding
from keras_jointloss.tensorboard.judgement.gradients import conflict


def judge(epochs: Epochs, rule: str | None = None) -> list[Finding]:
    """Returns what is found in a training, faults first.

    Args:
        epochs: Its values.
        rule: The name of the rule that moves its weights, if it is known.
    """
    with np.errstate(all="ignore"):  # Logs may hold any numbers.
        found = [x for x in _found(epochs, rule) if x is not None] if len(epochs) else []
    return sorted(found, key=lambda x: not x.is_fault)


def _found(epochs: Epochs, rule: str | None) -> Iterator[Finding | None]:
    broken = losses.not_finite(epochs)
    yield from broken
    yield losses.drives(epochs)
    yield None if rule is None else weights.rule_never_moved(epochs, rule)
    for term in epochs.train:
        yield weights.never_moved(epochs, term)
        yield weights.ran_away(epochs, term)
        if not broken:
            yield standstill.stands_still(epochs, term)
            yield losses.overfitted(epochs, term)
            yield losses.nearly_off(epochs, term)
    for pair in epochs.pairs:
        yield conflict(epochs, pair)
