"""Runs the study: trains every way to weigh the terms in every set-up, and keeps the results.

Each training is a line of the results, so that a study that was stopped goes on where it was. What
is useful first runs first: constants and proposals before rules and aggregators, all set-ups with
one seed before the others.

Run: KERAS_BACKEND=torch python -m tests.study.run
"""

import argparse
import json
import math
import os
import time
import warnings
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import keras
import numpy as np

import keras_jointloss as kj
from tests.study.base import OPTIMIZERS
from tests.study.setups import SETUPS, load
from tests.study.ways import RATES, WAYS, Trial, count, drawn_weights, stages

ROOT = Path(__file__).parents[2]
#: The results that the repository has, and those of this machine.
KEPT = ROOT / "docs" / "study" / "results.jsonl"
RESULTS = ROOT / "study" / "results.jsonl"
#: How often a training is scored, at equal distances. The best on validation data counts.
CHECKS = 8


class Scores(keras.callbacks.Callback):
    """Scores a model on validation and test data some times in a training.

    Attributes:
        found: `(epochs so far, scores on validation data, scores on test data)`, for each time.
        seconds: Of the processor, how long that took.
    """

    def __init__(self, setup, scored, validation, test, epochs):
        super().__init__()
        self.setup, self.scored, self.parts = setup, scored, (validation, test)
        self.times = {math.ceil(epochs * (i + 1) / CHECKS) for i in range(CHECKS)}
        self.found, self.seconds = [], 0.0

    def on_epoch_end(self, epoch, logs=None):
        if epoch + 1 in self.times:
            start = time.process_time()
            scores = (self.setup.scores(self.scored, *part) for part in self.parts)
            self.found.append((epoch + 1, *map(rounded, scores)))
            self.seconds += time.process_time() - start


def rounded(values):
    """Returns numbers by name as JSON has them: short, and `None` if not finite."""
    return {x: float(f"{y:.5g}") if np.isfinite(y) else None for x, y in values.items()}


def train(trial):
    """Trains a model; returns the line of the results.

    `score` is that by which trials are compared, on validation data, and `scores` are those on test
    data at the same time: after `epoch` epochs. `weights` are those at the end, or the constants.
    `seconds` are of the processor: those of a probe included, those of scoring excluded.
    """
    setup, way = SETUPS[trial.setup], WAYS[trial.way]
    training, validation, test = load(trial.setup, trial.seed)
    start = time.process_time()

    def compiled(weights, weighting=None, aggregator=None):
        keras.utils.clear_session()
        keras.utils.set_random_seed(trial.seed)
        rate = setup.rates[trial.optimizer] * trial.rate
        steps = len(next(iter(training[1].values())))
        optimizer = setup.optimizer(trial.optimizer, rate, trial.epochs, steps)
        return setup.compiled(*training, weights, weighting, aggregator, optimizer)

    weights = drawn_weights(setup.weights, trial.draw)
    if way.proposal:
        model, _ = compiled(weights)
        options = {"batch_size": setup.batch_size, "seed": trial.seed, "verbose": 0}
        probe = kj.probe(model, *training, **options)
        weights = {term: float(x) for term, x in probe.weights(way.proposal).items()}
    rule, aggregator = (make and make(setup.weights) for make in (way.weighting, way.aggregator))
    model, scored = compiled(weights, rule, aggregator)
    scores = Scores(setup, scored, validation, test, trial.epochs)
    history = model.fit(
        *training,
        batch_size=setup.batch_size,
        epochs=trial.epochs,
        verbose=0,
        callbacks=[kj.callbacks.JointLossCallback(), scores],
    ).history
    seconds = time.process_time() - start - scores.seconds
    values = [setup.score(validation) for _, validation, _ in scores.found]
    top = int(np.argmax([-np.inf if value is None else value for value in values]))
    epoch, _, tested = scores.found[top]
    last = rounded({term: history[f"{term}_weight"][-1] for term in setup.weights})
    score = values[top]
    return {
        "score": None if score is None else float(f"{score:.5g}"),
        "scores": tested,
        "end": scores.found[-1][2],
        "epoch": epoch,
        "weights": last,
        "seconds": round(seconds, 2),
    }


def attempt(trial):
    """Trains a model; an error is a result, too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = train(trial)
        except Exception as error:
            message = str(error).partition("\n")[0][:300]
            result = {"score": None, "error": f"{type(error).__name__}: {message}"}
    return {**trial._asdict(), **result}


def read(*paths):
    """Returns the results in files, by trial. A line that was cut off is left out."""
    results = {}
    for path in paths:
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue
            trial = Trial(*(values.pop(name) for name in Trial._fields))
            results[trial] = values
    return results


def firsts(setups=None, optimizers=None, ways=None, fraction=1.0):
    """Returns the first trial of each way in each set-up, what is useful first first.

    Args:
        setups, optimizers, ways: Names; `None` for all.
        fraction: That of the epochs.
    """
    return [
        Trial(name, optimizer, way, 0, RATES[0], 0, max(1, round(setup.epochs * fraction)))
        for way in ways or WAYS
        for name, setup in SETUPS.items()
        if name in (setups or SETUPS)
        for optimizer in setup.rates
        if optimizer in (optimizers or setup.rates)
    ]


def planned(first_trials, seeds, rates, results):
    """Returns the trials that the results so far lead to: those of the first seed first, by way."""
    found = [
        (trial.seed > 0, order, trial)
        for order, first in enumerate(first_trials)
        for stage in stages(first, seeds, results, rates)
        for trial in stage
    ]
    return [trial for *_, trial in sorted(found, key=lambda x: x[:2])]


def run(first_trials, seeds, rates, path, results, pool, jobs=1):
    """Trains what is not yet among the results.

    Args:
        first_trials: From `firsts`.
        seeds: How many.
        rates: The factors of the learning rate.
        path: The file that each result is added to as a line.
        results: Those that are there, by trial; the others are added.
        pool: Runs the trainings, an executor.
        jobs: How many at the same time.
    """
    total = sum(count(first.way, seeds, rates) for first in first_trials)
    bar = keras.utils.Progbar(total, unit_name="training")
    path.parent.mkdir(parents=True, exist_ok=True)
    running = {}
    with path.open("a+") as file:
        file.seek(0)
        if not f"\n{file.read()}".endswith("\n"):  # The last line was cut off.
            print(file=file)
        while True:
            trials = planned(first_trials, seeds, rates, results)
            bar.update(sum(trial in results for trial in trials))
            waiting = [x for x in trials if x not in results and x not in running.values()]
            for trial in waiting[: jobs - len(running)]:
                running[pool.submit(attempt, trial)] = trial
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial, line = running.pop(future), future.result()
                print(json.dumps(line), file=file, flush=True)
                results[trial] = line


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--setups", nargs="+", choices=SETUPS)
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, metavar="WAY")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--rates", type=int, default=len(RATES), help="how many learning rates")
    parser.add_argument("--fast", action="store_true", help="an eighth of the epochs, for a look")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file to go on with")
    arguments = parser.parse_args(argv)
    fraction = 1 / 8 if arguments.fast else 1.0
    first_trials = firsts(arguments.setups, arguments.optimizers, arguments.ways, fraction)
    results = read(KEPT, arguments.results)
    # What failed is tried again: the reason may be gone.
    results = {trial: line for trial, line in results.items() if "error" not in line}
    rates, path, jobs = RATES[: arguments.rates], arguments.results, arguments.jobs
    os.environ["OMP_NUM_THREADS"] = "1"  # Small models train fastest on one thread.
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        run(first_trials, arguments.seeds, rates, path, results, pool, jobs)


if __name__ == "__main__":
    main()
