"""Runs the study: trains every way to weigh the terms in every set-up, and keeps the results.

Each training is a line of the results, so that a study that was stopped goes on where it was. What
is useful first runs first: constants and proposals before rules and aggregators, all set-ups with
one seed before the others.

Run: KERAS_BACKEND=jax python -m tests.study.run
"""

import argparse
import itertools
import json
import os
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path

import keras

from tests.study.base import OPTIMIZERS
from tests.study.setups import SETUPS
from tests.study.training import train_way
from tests.study.ways import RATES, WAYS, Trial, count, stages

ROOT = Path(__file__).parents[2]
#: The results that the repository has, and those of this machine.
KEPT = ROOT / "docs" / "study" / "results.jsonl"
RESULTS = ROOT / "study" / "results.jsonl"
#: Of a process that trains: small models train fastest on one thread, and what is compiled is kept.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / "study" / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}


def read(*paths):
    """Returns the results in files, by trial. A line that was cut off is left out."""
    results = {}
    for path in paths:
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                values = json.loads(line)
            except json.JSONDecodeError:
                continue
            results |= results_of([values])
    return results


def results_of(lines):
    """Returns the results in lines, by trial."""
    lines = [dict(values) for values in lines]
    return {Trial(*(values.pop(name) for name in Trial._fields)): values for values in lines}


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


def jobs_of(first_trials, seeds, rates, results):
    """Yields the ways that lack results, what is useful first first.

    Constants and proposals have all seeds before rules and aggregators begin. Those have the first
    seed with the first optimizer, one set-up after the other, then with the second, then the other
    seeds.

    Yields:
        The first trial, the number of seeds, and the results of the way.
    """
    constants = [x for x in first_trials if WAYS[x.way].group in ("constants", "probe")]
    others = [x for x in first_trials if x not in constants]
    setups = [*SETUPS]
    others.sort(key=lambda x: ([*SETUPS[x.setup].rates].index(x.optimizer), setups.index(x.setup)))
    for firsts_of_group, wanted in itertools.product((constants, others), sorted({1, seeds})):
        for first in firsts_of_group:
            own = {trial: x for trial, x in results.items() if trial[:3] == first[:3]}
            if any(trial not in own for x in stages(first, wanted, own, rates) for trial in x):
                yield first, wanted, own


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
            wanted = {
                trial
                for first in first_trials
                for stage in stages(first, seeds, results, rates)
                for trial in stage
            }
            bar.update(sum(trial in results for trial in wanted))
            for first, needed, own in jobs_of(first_trials, seeds, rates, results):
                if len(running) == jobs:
                    break
                if first not in running.values():
                    running[pool.submit(train_way, first, needed, rates, own)] = first
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                for line in future.result():
                    print(json.dumps(line), file=file, flush=True)
                    results |= results_of([line])


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
    os.environ.update(ENVIRONMENT)
    # A new process now and then, since JAX keeps all that it has compiled.
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=24) as pool:
        run(first_trials, arguments.seeds, rates, path, results, pool, jobs)


if __name__ == "__main__":
    main()
