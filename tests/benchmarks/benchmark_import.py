"""Measures what `import keras_jointloss` costs beyond `import keras`, in milliseconds.

Run: python -m tests.benchmarks.benchmark_import
"""

import os
import statistics
import subprocess
import sys

TARGET = 50
# Garbage that `import keras` has left would otherwise be collected at a moment of its own choice,
# on JAX within the import of the package.
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
    milliseconds()  # Compiles to bytecode, as the installation of a package does.
    costs = [milliseconds() for _ in range(5)]
    print(
        f"import: {statistics.median(costs):.1f} ms ({min(costs):.1f} to {max(costs):.1f}), "
        f"target {TARGET} ms"
    )


if __name__ == "__main__":
    main()
