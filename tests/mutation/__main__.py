"""Changes the package in random places, one at a time: its tests have to notice.

Each mutant runs the tests that run its lines, in a process that imports the changed text in place
of the file. Results are kept, and only what is new is run. `docs/mutants.md` lists what survives.

Run: KERAS_BACKEND=torch python -m tests.mutation --count 400
"""

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import collections
import functools
import json
import sys
from pathlib import Path

from tests.mutation import children, places
from tests.mutation.survey import rows, survey, tests_of
from tests.processes import ROOT

FAMILIES = ["losses", "aggregators", "schedules", "weighting", "terms"]


# By the status of pytest: tests passed, failed or could not be collected, or there were none.
OUTCOMES = {0: "survived", 1: "killed", 2: "killed", 5: "survived", None: "timeout"}
KILLS = {"killed", "timeout", "crashed"}


def test(mutant, files, names, unchanged):
    """Returns the status of pytest with a mutant, or without it."""
    if not unchanged:
        children.use_mutant(mutant.file, mutant.source)
    return children.run_pytest(files, [children.Chosen(names)], "-x")


def rounds(mutant, measured, seconds):
    """Returns tests to run one after the other, each as files, names of tests and seconds.

    The file most likely to notice comes first. Tests of the same part of the package all run, and
    the shortest ones of other parts for some seconds together.
    """
    own = next(files for part, files in rows().items() if part.removesuffix(".py") == mutant.family)
    chosen = tests_of(mutant, places.lines(mutant), measured)
    stem = Path(mutant.file).stem

    def took(file):
        return sum(measured[file]["seconds"][name] for name in chosen[file])

    def order(file):
        return stem not in file, file not in own, took(file)

    found = []
    for file in sorted(chosen, key=order):
        while file not in own and took(file) > seconds:
            chosen[file] = chosen[file][: len(chosen[file]) // 2]
        seconds -= 0 if file in own else took(file)
        if chosen[file]:
            found.append(file)
    return [
        (files, [name for file in files for name in chosen[file]], sum(map(took, files)))
        for files in (found[:1], found[1:])
        if files
    ]


def run(mutants, measured, folder, options):
    """Yields each mutant with its outcome, and the files of tests that it comes from."""
    left = {mutant: rounds(mutant, measured, options.seconds) for mutant in mutants}

    def job(mutant):
        files, names, took = left[mutant].pop(0)
        function = functools.partial(test, mutant, files, names, options.unchanged)
        log = folder / f"{mutant.key.split()[1]}.log"
        return (mutant, files), function, log, 30 + 10 * took

    yield from ((mutant, "unreached", []) for mutant, found in left.items() if not found)
    jobs = collections.deque(job(mutant) for mutant, found in left.items() if found)
    for (mutant, files), status in children.run_all(jobs, options.workers):
        outcome = OUTCOMES.get(status, "crashed")
        if outcome == "survived" and left[mutant]:
            jobs.appendleft(job(mutant))
        else:
            yield mutant, outcome, files


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=FAMILIES, metavar="family")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the tests of other parts")
    parser.add_argument("--again", action="store_true", help="run again what has survived")
    parser.add_argument(
        "--unchanged", action="store_true", help="run without mutants: all have to survive"
    )
    options = parser.parse_args()

    folder = ROOT / "build" / "mutants"
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    children.imports_what_tests_need()
    measured = survey(folder, options.workers)
    failed = sorted(name for one in measured.values() for name in one["failed"])
    if failed:
        print("Not used, since they fail without a mutant:", *failed, sep="\n  ")

    path, known = folder / "results.jsonl", {}
    if path.exists():
        for line in path.read_text().splitlines():
            result = json.loads(line)
            known[result["key"]] = result["outcome"]
    mutants = places.sample(options.families, options.count, options.seed)
    if options.unchanged:
        outcomes = collections.Counter(x for _, x, _ in run(mutants, measured, folder, options))
        print(f"Without mutants: {dict(outcomes)}")
        return int(not KILLS.isdisjoint(outcomes))
    is_new = {"survived", "unreached"} if options.again else set()
    todo = [mutant for mutant in mutants if known.get(mutant.key) in {None, *is_new}]
    print(f"{len(mutants)} mutants, {len(todo)} to run", flush=True)
    with path.open("a") as results:
        for mutant, outcome, files in run(todo, measured, folder, options):
            known[mutant.key] = outcome
            result = {"key": mutant.key, "outcome": outcome, "by": files, "change": mutant.change}
            print(json.dumps(result), file=results, flush=True)
    return report(mutants, known)


def report(mutants, known):
    """Prints what has survived and the share of what was killed; returns 1 if that is too small."""
    counts = collections.defaultdict(collections.Counter)
    for mutant in mutants:
        outcome = known[mutant.key]
        counts[mutant.family][outcome] += 1
        if outcome not in KILLS:
            print(f"{outcome}: {mutant.file}:{mutant.line}", *mutant.change, sep="\n  ")
    counts["all"] = sum(counts.values(), collections.Counter())
    for family, count in counts.items():
        killed, reached = (
            sum(map(count.get, KILLS & count.keys())),
            count.total() - count["unreached"],
        )
        share = killed / max(1, reached)
        print(f"{family}: {killed} of {reached} killed ({share:.1%}), {dict(count)}")
    return int(share < 0.85)


if __name__ == "__main__":
    sys.exit(main())
