"""Measures the time of `kj.probe` in training steps.

The unit is `16 (k + 2)` steps of `fit` for `k` terms, and one compilation: that of the first epoch
of a new model. The probe of 16 batches, without a warm-up, runs on a new model as well.

Run: python -m tests.benchmarks.benchmark_probe [--pairs 5]
"""

import argparse
import statistics

import keras_jointloss as kj
from tests.benchmarks.four_terms import four_terms
from tests.benchmarks.timing import Ratio, seconds

BATCHES, SIZE = 16, 32


def ratio(width: int) -> float:
    """Returns the ratio of the time of a probe to what it may take."""
    x, y, losses, compiled = four_terms(width, steps=BATCHES, batch_size=SIZE)

    def fit(model):
        return seconds(lambda: model.fit(x, y, batch_size=SIZE, verbose=0))

    model = compiled(**kj.joint_loss(losses))
    first, epoch = fit(model), min(fit(model) for _ in range(5))
    model, options = compiled(**kj.joint_loss(losses)), {"warmup_epochs": 0, "verbose": 0}
    probe = seconds(lambda: kj.probe(model, x, y, None, SIZE, BATCHES, **options))
    return probe / (first - epoch + (len(losses) + 2) * epoch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    for width in (256, 2048):
        found = [ratio(width) for _ in range(arguments.pairs)]
        print(f"width {width}: {Ratio(statistics.median(found), min(found), max(found))}")


if __name__ == "__main__":
    main()
