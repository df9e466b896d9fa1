"""Measures the tab "Joint loss" with large logs: 20 terms, 100,000 steps, 5 runs.

It prints how long TensorBoard itself takes to load the logs, and then for the tab the time to the
first figure (target 3 s) and of each switch (target 1 s), in a browser, and the memory of the
server before and after. `--steps` for smaller logs, `--all` for TensorBoard with all points. And it
prints what the plugin adds to the start of TensorBoard (target 100 ms).

Run: python -m tests.benchmarks.benchmark_dashboard
"""

import argparse
import json
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import keras_jointloss as kj
from tests.benchmarks.benchmark_logging import STEPS, values
from tests.dashboard_page import Page, get, tensorboard, wait_for
from tests.processes import run_python

RUNS = 5
START = """
import sys, time, types
sys.modules["tensorboard.compat.notf"] = types.ModuleType("notf")
import tensorboard.program, tensorboard.default
before = set(sys.modules)
start = time.thread_time()
import keras_jointloss.tensorboard.plugin
print(1000 * (time.thread_time() - start))
loaded = {name.partition(".")[0] for name in set(sys.modules) - before}
assert not {"keras", "tensorflow", "plotly"} & loaded, loaded
"""


def write_run(run):
    """Writes the logs of a run, validation after each 1,000 steps."""
    run, steps = run
    train, validation = (
        kj.tensorboard.SummaryWriter(run / split) for split in ("train", "validation")
    )
    train.training({}, 0, steps)
    for step in range(1, steps + 1):
        train.scalars(values(step), step)
        if step % 1000 == 0:
            validation.scalars(values(step), step)
            train.epochs(step / 1000, step)
    train.close()
    validation.close()


def memory(address):
    """Returns the resident memory in MiB of the process that listens at an address."""
    port = address.rpartition(":")[2]
    total = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
            status = (path.parent / "status").read_text()
        except OSError:
            continue
        if f"--port\0{port}\0".encode() in command:
            total += int(status.partition("VmRSS:")[2].split()[0]) / 1024
    return total


def measure(logs, flags):
    with tensorboard(logs, "--reload_interval", "0", *flags) as address:
        start = time.perf_counter()
        runs = f"{address}/data/plugin/joint_loss/runs"
        tags = f"{address}/data/plugin/scalars/tags"
        last = None

        def is_loaded():
            nonlocal last
            time.sleep(2)
            found = json.loads(get(runs)[1])["runs"], get(tags)[1]
            done = found == last and len(found[0]) == RUNS
            last = found
            return done

        wait_for(is_loaded, seconds=3600)
        print(f"TensorBoard has loaded the logs after {time.perf_counter() - start:.0f} s")
        before = memory(address)
        page = Page(1400)
        try:
            start = time.perf_counter()
            page.driver.get(f"{address}/#scalars")
            wait_for(lambda: page.run("return document.querySelectorAll('mat-tab-header').length"))
            print(f"TensorBoard's own page: {time.perf_counter() - start:.1f} s")
            start = time.perf_counter()
            page.open(address, run=[f"run_{i}" for i in range(RUNS)])
            print(f"first figure, with TensorBoard's page: {time.perf_counter() - start:.1f} s")
            # From when the frame of the tab begins to load.
            drawn = page.run("return Number(document.querySelector('main').dataset.first)")
            print(f"first figure, of the tab: {drawn / 1000:.1f} s")
            for name, act in {
                "losses": lambda: page.click("[data-kind=losses]"),
                "overlay": lambda: page.choose("compare", "overlay"),
                "weights": lambda: page.click("[data-kind=weights]"),
                "epochs": lambda: page.choose("x", "epoch"),
                "smoothing": lambda: page.choose("smoothing", "0.9"),
                "one term less": lambda: page.click("input[data-name=term_07]"),
                "terms": lambda: page.click("[data-kind=terms]"),
                "rows": lambda: page.choose("compare", "rows"),
                "share": lambda: page.choose("share", "true"),
            }.items():
                print(f"switch to {name}: {act():.2f} s", flush=True)
        finally:
            page.close()
        print(f"memory of the server: {before:.0f} MiB, then {memory(address):.0f} MiB")


def start_cost():
    """Returns the milliseconds that importing the plugin adds, as a median."""
    return statistics.median([float(run_python(START).stdout) for _ in range(6)][1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--all", action="store_true", help="all points in TensorBoard")
    arguments = parser.parse_args()
    print(f"start of TensorBoard: {start_cost():.0f} ms more, target 100")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(Path(folder) / f"run_{i}", arguments.steps) for i in range(RUNS)]
        with ProcessPoolExecutor(2) as pool:
            list(pool.map(write_run, jobs))
        flags = ["--samples_per_plugin", "scalars=0"] if arguments.all else []
        measure(folder, flags)


if __name__ == "__main__":
    main()
