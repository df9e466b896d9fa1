"""Loads many mutated models in child processes, and prints a table of the outcomes."""

import collections
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from tests.processes import ENVIRONMENT, ROOT

#: Outcomes that are right: an error that names the place, one of Keras about what is its own, and a
#: model that trains, or whose targets are NaN.
RIGHT = ("refused", "trains", "not finite by the targets")
RIGHT += ("refused by Keras", "not finite by Keras", "memory by Keras")
#: Seconds that one mutation may take, and the start of a process.
TIMEOUT = 300


def run(subjects: str, first: int, last: int) -> Iterator[dict[str, Any]]:
    """Yields the outcomes of the mutations with the seeds from `first` to before `last`.

    The models of the shared suite are named with commas in between; `"all"` for all of them. A
    process that crashes or takes too long is an outcome, too; a new one goes on.
    """
    with tempfile.TemporaryDirectory(prefix="fuzzing_") as folder:
        while first < last:
            for found in _child(folder, subjects, first, last):
                if "kind" in found:
                    yield found
                    first = found["seed"] + 1
            if first < last:
                yield {"seed": first, "kind": "crash or hang", "message": "", "mutation": {}}
                first += 1


def _child(folder: str, subjects: str, first: int, last: int) -> Iterator[dict[str, Any]]:
    """Yields what a child process prints until it ends; ends one that prints nothing."""
    command = [sys.executable, "-m", "tests.fuzzing.load", folder, subjects]
    environment = {**ENVIRONMENT, "MALLOC_ARENA_MAX": "2", "TF_CPP_MIN_LOG_LEVEL": "3"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    numbers = map(str, (first, last))
    with subprocess.Popen([*command, *numbers], cwd=ROOT, env=environment, **streams) as child:
        lines: queue.Queue[str | None] = queue.Queue()

        def read():
            for line in child.stdout:
                lines.put(line)
            lines.put(None)

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        has_begun = False
        try:
            while (line := lines.get(timeout=TIMEOUT)) is not None:
                has_begun = True
                yield json.loads(line)
        except queue.Empty:
            pass
        finally:
            child.kill()
            reader.join()
    if not has_begun:
        raise RuntimeError(f"No model was saved to mutate: run {[*command, first, last]}")


def table(outcomes: list[dict[str, Any]]) -> str:
    """Returns the number of outcomes of each kind, and each that is not right with its seed."""
    counts = collections.Counter(found["kind"] for found in outcomes)
    lines = [f"{count:6d}  {kind}" for kind, count in counts.most_common()]
    for found in outcomes:
        if found["kind"] not in RIGHT:
            mutation = found["mutation"]
            place = "/".join(map(str, mutation.get("path", ())))
            lines.append(
                f"\nseed {found['seed']}, {found.get('subject')}: {found['kind']}\n"
                f"  {mutation.get('kind')} of {mutation.get('owner')} at {place}: "
                f"{mutation.get('note')}\n  {found['message'][-600:]}"
            )
    return "\n".join(lines)


def wrong(outcomes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [found for found in outcomes if found["kind"] not in RIGHT]


if os.environ.get("KERAS_BACKEND") is None:
    os.environ["KERAS_BACKEND"] = "torch"
