"""Trains a way to weigh the terms of a set-up, many times with one compilation.

A step of these models takes less than a millisecond on JAX, and its compilation seconds. So a
compiled model is used again for other seeds, constants and learning rates: all of its variables,
those of the optimizer and of a rule included, get the values of a new model.
"""

import functools
import math
import time
import warnings

import keras
import numpy as np

import keras_jointloss as kj
from keras_jointloss._core.keras import is_overwritten_with_gradient
from keras_jointloss._core.keras_state import build_for_training
from tests.study.base import SCHEDULES
from tests.study.setups import SETUPS, load
from tests.study.ways import RATES, WAYS, Trial, drawn_weights, stages

#: How often a training is scored, at equal distances. The best on validation data counts.
CHECKS = 8


class Scores(keras.callbacks.Callback):
    """Scores a model on validation data some times in a training, and the best one on test data.

    Attributes:
        score: The best one on validation data, by which trials are compared. `None` without one.
        epoch: The number of epochs until then.
        tested: The scores on test data, by name.
        seconds: Of the processor for a training, without compilation and scoring.
    """

    def __init__(self, trial):
        super().__init__()
        self.setup, self.epochs = trial.setup, trial.epochs
        self.parts = load(trial.setup, trial.seed)[1:]
        self.times = {math.ceil(trial.epochs * (i + 1) / CHECKS) for i in range(CHECKS)}
        self.score, self.epoch, self.tested = None, 0, None
        self.seconds = 0.0

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.process_time()

    def on_epoch_end(self, epoch, logs=None):
        if epoch > 0 or self.epochs == 1:  # The first epoch compiles.
            self.seconds += time.process_time() - self.start
        if epoch + 1 == self.epochs:
            self.seconds *= self.epochs / max(1, self.epochs - 1)
        if epoch + 1 not in self.times:
            return
        score = SETUPS[self.setup].score(self._scores(0))
        if self.tested is None or (
            score is not None and (self.score is None or score > self.score)
        ):
            self.score, self.epoch, self.tested = score, epoch + 1, self._scores(1)

    def _scores(self, part):
        model, scored = scorer(self.setup)
        for variable, new in zip(parameters(model), parameters(self.model), strict=True):
            variable.assign(keras.ops.convert_to_numpy(new))
        return rounded(SETUPS[self.setup].scores(scored, *self.parts[part]))


def rounded(values):
    """Returns numbers by name as JSON has them: short, and `None` if not finite."""
    return {x: float(f"{y:.5g}") if np.isfinite(y) else None for x, y in values.items()}


def made(trial, weights):
    """Returns the model of a trial, which is compiled and has all of its variables.

    Returns:
        The model, and the one that is scored.
    """
    setup, way = SETUPS[trial.setup], WAYS[trial.way]
    training = load(trial.setup, trial.seed)[0]
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(trial.seed)
    rule, aggregator = (make and make(setup.weights) for make in (way.weighting, way.aggregator))
    optimizer = setup.optimizer(trial.optimizer, trial.rate)
    model, scored = setup.compiled(*training, weights, rule, aggregator, optimizer)
    batch = keras.tree.map_structure(lambda x: x[: setup.batch_size], training)
    build_for_training(model, keras.tree.map_structure(keras.ops.convert_to_tensor, batch))
    kj.callbacks.JointLossCallback().set_model(model)  # Binds the rule to the terms.
    return model, scored


def parameters(model):
    """Returns what the optimizer trains: on JAX, layers keep records of gradients beside it."""
    return [x for x in model.trainable_variables if not is_overwritten_with_gradient(x)]


def variables(model):
    """Returns all that a training changes."""
    state = model.non_trainable_variables + model.optimizer.variables + model.metrics_variables
    return model.trainable_variables + state


@functools.cache
def scorer(setup):
    """Returns a model of a set-up as `made` does, which computes the scores of all ways."""
    optimizer = next(iter(SETUPS[setup].rates))
    return made(Trial(setup, optimizer, "equal", 0, RATES[0], 0, 1), SETUPS[setup].weights)


# The way whose model is compiled, with the model and its variables.
_compiled = {}


def compiled(trial, weights):
    """Returns the model of a trial, one that is compiled if there is one."""
    # Constants are variables, too.
    way = trial.way if WAYS[trial.way].group in ("rule", "aggregator") else "constants"
    key = *trial[:2], way
    model, _ = made(trial, weights)
    if key not in _compiled:
        _compiled.clear()
        _compiled[key] = model, variables(model)
        return model
    used, state = _compiled[key]
    for variable, new in zip(state, variables(model), strict=True):
        variable.assign(new)
    return used


@functools.lru_cache(maxsize=8)
def probed(setup, optimizer, seed):
    """Returns a probe of a set-up with equal weights, and the seconds of the processor."""
    start = time.process_time()
    trial = Trial(setup, optimizer, "equal", seed, RATES[0], 0, 1)
    model, _ = made(trial, SETUPS[setup].weights)
    options = {"batch_size": SETUPS[setup].batch_size, "seed": seed, "verbose": 0}
    probe = kj.probe(model, *load(setup, seed)[0], **options)
    return probe, time.process_time() - start


def train(trial):
    """Trains a model; returns the line of the results.

    `score` is that by which trials are compared, on validation data, and `scores` are those on test
    data at the same time: after `epoch` epochs. `weights` are those at the end, or the constants.
    `seconds` are of the processor, without compilation and scoring, and without a probe, of which
    `probe` has the seconds with compilation.
    """
    setup, way = SETUPS[trial.setup], WAYS[trial.way]
    weights, cost = drawn_weights(setup.weights, trial.draw), {}
    if way.proposal:
        probe, seconds = probed(trial.setup, trial.optimizer, trial.seed)
        weights = {term: float(x) for term, x in probe.weights(way.proposal).items()}
        cost = {"probe": round(seconds, 2)}
    scorer(trial.setup)  # Not between the seeds and the training.
    model, scores = compiled(trial, weights), Scores(trial)
    schedule = SCHEDULES.get(trial.optimizer, lambda rate, epochs: [])
    keras.utils.set_random_seed(trial.seed)
    history = model.fit(
        *load(trial.setup, trial.seed)[0],
        batch_size=setup.batch_size,
        epochs=trial.epochs,
        verbose=0,
        callbacks=[
            kj.callbacks.JointLossCallback(),
            *schedule(setup.rates[trial.optimizer] * trial.rate, trial.epochs),
            scores,
        ],
    ).history
    return {
        "score": None if scores.score is None else float(f"{scores.score:.5g}"),
        "scores": scores.tested,
        "epoch": scores.epoch,
        "weights": rounded({term: history[f"{term}_weight"][-1] for term in setup.weights}),
        "seconds": round(scores.seconds, 3),
        **cost,
    }


def attempt(trial):
    """Trains a model; an error is a result, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = train(trial)
        except Exception as error:
            _compiled.clear()
            message = str(error).partition("\n")[0][:300]
            result = {"score": None, "error": f"{type(error).__name__}: {message}"}
    return {**trial._asdict(), **result}


def train_way(first, seeds, rates, results):
    """Trains what a way lacks; returns the lines of the results.

    Args:
        first: The first trial of the way.
        seeds: How many.
        rates: The factors of the learning rate.
        results: Those that there are, by trial.
    """
    results, lines = dict(results), []
    for stage in stages(first, seeds, results, rates):
        for trial in stage:
            if trial not in results:
                results[trial] = attempt(trial)
                lines.append(results[trial])
    return lines
