"""Searches for bad input that does not end in a clear error, and prints what was found.

Usage: `python -m tests.fuzzing`: 1,000 mutations of model files, then bad arguments and batches.
`python -m tests.fuzzing FIRST LAST`: the mutations with these seeds alone, to repeat some.
"""

import sys

from tests.fuzzing import files


def main(first: int = 0, last: int = 1000) -> bool:
    """Returns whether all input ended right."""
    outcomes = []
    for found in files.run("all", first, last):
        outcomes.append(found)
        if found["kind"] not in files.RIGHT:
            print(f"seed {found['seed']}: {found['kind']}", flush=True)
    print(f"Mutated model files\n{files.table(outcomes)}\n", flush=True)
    is_right = not files.wrong(outcomes)
    if len(sys.argv) > 1:
        return is_right
    from tests.fuzzing import inputs

    searches = {
        "Every bad value as every argument": inputs.every_argument,
        "Arguments at random": lambda: inputs.drawn_constructors(5000),
        "Every bad array in every call": inputs.every_array,
        "Batches at random": lambda: inputs.drawn_calls(5000),
    }
    for name, search in searches.items():
        result = search()
        print(f"{name}\n{result}\n", flush=True)
        is_right = is_right and not result.problems
    return is_right


if __name__ == "__main__":
    sys.exit(not main(*map(int, sys.argv[1:])))
