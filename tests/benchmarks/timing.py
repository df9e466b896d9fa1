"""Compares the run time of two alternatives on a machine with other load, and measures memory."""

import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.processes import run_python


class Ratio(NamedTuple):
    """The time of a run relative to its baseline."""

    median: float
    minimum: float
    maximum: float

    def __str__(self):
        return f"{self.median:.3f} ({self.minimum:.3f} to {self.maximum:.3f})"


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def compare(run: Callable[[], object], baseline: Callable[[], object], pairs: int = 9) -> Ratio:
    """Returns the ratios of the time of `run` to the time of `baseline` directly after it.

    Each function first runs once without measurement, to compile. Because the runs alternate, a
    temporary slowdown of the machine affects both.

    Args:
        run: The function to measure.
        baseline: The function to compare with.
        pairs: The number of pairs to measure, 5 or more.
    """
    if pairs < 5:
        raise ValueError(f"Expected 5 pairs or more. Received: pairs={pairs}")
    run()
    baseline()
    ratios = [seconds(run) / seconds(baseline) for _ in range(pairs)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def peak_mib() -> float:
    """Returns the largest use of memory so far in MiB, of the GPU if there is one."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.config.list_physical_devices("GPU"):
            return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    elif backend == "torch":
        import torch

        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 2**20
    elif backend == "jax":
        import jax

        if stats := jax.local_devices()[0].memory_stats():
            return stats["peak_bytes_in_use"] / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def report(run: Callable[[], object], base: float, repetitions: int):
    """Prints the seconds of the fastest run and the increase of the memory in MiB, as JSON."""
    least = min(seconds(run) for _ in range(repetitions))
    print(json.dumps({"seconds": least, "mib": peak_mib() - base}))


def in_process(module: str, *case, **environment) -> dict[str, float]:
    """Returns what `module.measure(*case)` prints in a process of its own, as JSON.

    Raises:
        RuntimeError: If it fails, e.g. for lack of memory, with the last line of the error.
    """
    code = f"from {module} import measure; measure(*{case!r})"
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    output = run_python(code, check=False, timeout=None, **environment)
    if output.returncode:
        reason = output.stderr.strip().splitlines() or [f"ended with {output.returncode}"]
        raise RuntimeError(reason[-1][:200])
    return json.loads(output.stdout.strip().splitlines()[-1])
