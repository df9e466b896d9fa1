"""Histories with planted faults, and without any, for tests of the rules that judge a training."""

import numpy as np

from keras_jointloss.tensorboard.history import from_history
from keras_jointloss.tensorboard.judgement.epochs import epochs_of
from keras_jointloss.tensorboard.judgement.judge import judge


def falling(epochs, seed=0, noise=0.005, floor=0.3, size=1.0, time=4.0):
    """Returns a loss that falls to a floor, with noise."""
    curve = floor + size * np.exp(-np.arange(epochs) / time)
    return curve * (1 + noise * np.random.default_rng(seed).normal(size=epochs))


def flat(epochs, seed=9, noise=0.005, level=2.3):
    """Returns a loss that is noise around a level."""
    return level * (1 + noise * np.random.default_rng(seed).normal(size=epochs))


def turning(epochs, at, seed=5, noise=0.005):
    """Returns a loss of validation that rises from an epoch on, counted from 0."""
    late = np.maximum(0, np.arange(epochs) - at)
    return falling(epochs, seed, noise) + 0.03 * late


def logs_of(train, validation=None, weights=None, **others):
    """Returns the history of losses by term, with weights of 1 by default."""
    length = len(next(iter(train.values())))
    weights = {name: np.ones(length) for name in train} | (weights or {})
    logs = dict(others)
    for prefix, losses in (("", train), ("val_", validation or {})):
        parts = {name: weights[name] * np.asarray(loss) for name, loss in losses.items()}
        if not parts:
            continue
        logs[f"{prefix}loss"] = total = sum(parts.values())
        for name, loss in losses.items():
            logs |= {f"{prefix}{name}_loss": loss, f"{prefix}{name}_weight": weights[name]}
            with np.errstate(invalid="ignore"):
                logs[f"{prefix}{name}_share"] = parts[name] / total
    return {key: [float(x) for x in values] for key, values in logs.items()}


def found(logs, **options):
    """Returns what the rules find in a history."""
    return judge(epochs_of(from_history(logs, "run")), **options)


def kinds(logs, **options):
    """Returns the term, kind and first epoch of each finding, except of what drives."""
    return [(x.term, x.kind, x.since) for x in found(logs, **options) if x.kind != "drives"]
