"""Measures the import time of `keras_jointloss` on top of `import keras`, in milliseconds.

Run: python -m tests.benchmarks.benchmark_import
"""

import os
import statistics
import subprocess
import sys

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
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONDONTWRITEBYTECODE": ""}
    command = [sys.executable, "-c", CODE]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(output.stdout)


def main():
    milliseconds()  # Compiles to bytecode, as installing the package does.
    costs = [milliseconds() for _ in range(5)]
    print(
        f"import: {statistics.median(costs):.1f} ms ({min(costs):.1f} to {max(costs):.1f}), "
        f"target {TARGET} ms"
    )


if __name__ == "__main__":
    main()
