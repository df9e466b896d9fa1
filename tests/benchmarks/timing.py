"""Compares how long two ways to do the same take, on a machine that has other work as well."""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple


class Ratio(NamedTuple):
    """How long something takes in units of what it is held against."""

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
    """Returns the ratios of the times of `run` and of `baseline` right after it.

    Each runs once unmeasured, to compile what is to be compiled. Whatever slows the machine down
    for a while then meets both.

    Args:
        run: What is measured.
        baseline: What it is held against.
        pairs: How many pairs to measure, 5 or more.
    """
    if pairs < 5:
        raise ValueError(f"Expected 5 pairs or more. Received: pairs={pairs}")
    run()
    baseline()
    ratios = [seconds(run) / seconds(baseline) for _ in range(pairs)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))
