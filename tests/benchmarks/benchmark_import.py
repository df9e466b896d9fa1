"""Measures the import time of `keras_jointloss` on top of `import keras`, in milliseconds.

Run: python -m tests.benchmarks.benchmark_import
"""

import statistics

from tests.processes import run_python

TARGET = 50
# Otherwise Python collects the garbage of `import keras` at an arbitrary moment: on JAX, during the
# import of the package.
CODE = """
import gc, time, keras
gc.disable()
start = time.thread_time()
import keras_jointloss
print(1000 * (time.thread_time() - start))
"""


def milliseconds() -> float:
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": ""}
    return float(run_python(CODE, **environment).stdout)


def main():
    milliseconds()  # Compiles to bytecode, as installing the package does.
    costs = [milliseconds() for _ in range(5)]
    print(
        f"import: {statistics.median(costs):.1f} ms ({min(costs):.1f} to {max(costs):.1f}), "
        f"target {TARGET} ms"
    )


if __name__ == "__main__":
    main()
