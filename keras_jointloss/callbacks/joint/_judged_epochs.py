"""The epochs of a running training, for the rules that judge it."""

import math
from collections.abc import Iterator

import numpy as np

from keras_jointloss.callbacks.joint._term_readings import RUNS, TermReadings
from keras_jointloss.joint.model_terms import ModelTerms
from keras_jointloss.tensorboard.judgement.epochs import Epochs, TermEpochs
from keras_jointloss.tensorboard.judgement.finding import Finding
from keras_jointloss.tensorboard.judgement.standstill import never_falls
from keras_jointloss.tensorboard.judgement.trends import FEWEST
from keras_jointloss.tensorboard.judgement.weights import ran_away

_KEYS = ("loss", "weight", "weighted")


class JudgedEpochs:
    """Keeps the readings of the epochs of a training, and judges them.

    It looks for what warrants a warning while training runs. A term that is overfitted or nearly
    off, and gradients in conflict, may be meant: `keras_jointloss.diagnose` names them.
    """

    def __init__(self, terms: ModelTerms):
        self._terms = terms
        self._rows: dict[str, dict[str, list[list[float]]]] = {
            run: {name: [] for name in terms} for run in RUNS
        }
        self._epochs: list[tuple[int, int, float]] = []
        self._is_from_start = True

    def add(self, epoch: int, step: int, batches: int, readings: TermReadings) -> None:
        """Adds the kept readings of an epoch, counted from 0, of so many batches up to a step."""
        if not self._epochs:
            self._is_from_start = epoch == 0 and step <= batches
        self._epochs.append((epoch, step, readings.totals.get("train", math.nan)))
        for run, of_run in self._rows.items():
            kept = readings.kept.get(run, {})
            for name, rows in of_run.items():
                rows.append([float(kept.get(name, {}).get(key, math.nan)) for key in _KEYS])

    def faults(self) -> Iterator[Finding]:
        """Yields the terms whose loss never falls, and the weights that ran away."""
        if len(self._epochs) < FEWEST or len(self._terms) < 2:
            return
        epochs = self._so_far()
        if epochs.is_broken.any():
            return
        for name, term in self._terms.items():
            found = [None if self._is_rising(name) else never_falls(epochs, name)]
            if self._terms.weighting is not None and not term.given.moves:
                found.append(ran_away(epochs, name))
            yield from (x for x in found if x is not None and x.is_fault)

    def _so_far(self) -> Epochs:
        numbers, steps, totals = (np.array(x) for x in zip(*self._epochs, strict=True))
        train, validation = (
            {name: _columns(rows) for name, rows in self._rows[run].items()} for run in RUNS
        )
        return Epochs(
            numbers,
            "epoch",
            steps,
            np.diff(steps, prepend=0),
            train=train,
            total=totals,
            is_broken=~np.isfinite(totals),
            is_from_start=self._is_from_start,
            validation=validation,
            may_be_constant=frozenset(
                name for name, x in self._terms.items() if x.may_be_constant or x.is_off
            ),
        )

    def _is_rising(self, name: str) -> bool:
        """Returns whether the schedule of a term will give it more weight in as many steps."""
        given = self._terms[name].given
        if not given.moves:
            return False
        step = self._epochs[-1][1]
        return given.number_at(2 * step) > 1.1 * given.number_at(step)


def _columns(rows: list[list[float]]) -> TermEpochs:
    loss, weight, weighted = np.array(rows, "float64").T
    return TermEpochs(loss, weight, weighted, np.full(len(rows), np.nan))
