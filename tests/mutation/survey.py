"""Which tests run which lines of the package, and how long they take."""

import collections
import functools
import hashlib
import json
import re

import coverage
import pytest

from tests.mutation.children import run_all, run_pytest
from tests.processes import ROOT

# What the rows of these lines of the table in `docs/contributing.md` name is run for each mutant.
_ROWS = (
    *("aggregators", "schedules.py", "terms", "losses", "weighting"),
    *("layers", "layers/gradients", "joint", "callbacks", "all together"),
)


class _Contexts:
    """A plugin of pytest that tells coverage which test runs, and sums the seconds of each."""

    def __init__(self, measured):
        self.measured = measured
        self.seconds = collections.Counter()
        self.failed = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.measured.switch_context(item.nodeid)
        result = yield
        self.measured.switch_context("")
        return result

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.add(report.nodeid)


# Arguments of all parts, and their defaults, which are read without running a line.
_ARGUMENTS, _DEFAULTS = "tests/test_arguments.py", "tests/test_defaults.py"


def rows():
    """Returns the files of tests for each part of the package, from `docs/contributing.md`."""
    text = (ROOT / "docs" / "contributing.md").read_text("utf-8")
    table = text[text.index("| source | tests") :].split("\n\n")[0]
    found = {}
    for source, names in re.findall(r"^\| (.+?) \| (.+?) \|$", table, re.MULTILINE)[2:]:
        for part in re.findall(r"[\w./]+(?: together)?", source.replace("`", "")):
            found[part.removesuffix("/")] = [f"tests/test_{name}.py" for name in names.split(", ")]
    return found


def _measure(file, path):
    measured = coverage.Coverage(
        data_file=None, include=[str(ROOT / "keras_jointloss" / "*")], config_file=False
    )
    contexts = _Contexts(measured)
    measured.start()
    run_pytest([file], [contexts])
    measured.stop()
    data, lines = measured.get_data(), {}
    for source in data.measured_files():
        name = str(source).removeprefix(f"{ROOT}/")
        lines[name] = data.contexts_by_lineno(source)
    found = {"seconds": contexts.seconds, "failed": sorted(contexts.failed), "lines": lines}
    path.write_text(json.dumps(found))
    return 0


def survey(folder, workers):
    """Returns the lines that each file of tests runs, measured if it or the package is new."""
    package = b"".join(
        path.read_bytes() for path in sorted((ROOT / "keras_jointloss").rglob("*.py"))
    )
    found = rows()
    files = sorted({_ARGUMENTS, _DEFAULTS, *(file for row in _ROWS for file in found[row])})
    paths, jobs = {}, collections.deque()
    for file in files:
        version = hashlib.sha256(package + (ROOT / file).read_bytes()).hexdigest()[:16]
        paths[file] = folder / f"{file.split('/')[1]}.{version}.json"
        if not paths[file].exists():
            job = functools.partial(_measure, file, paths[file])
            jobs.append((file, job, folder / f"{file.split('/')[1]}.log", 1200))
    for file, status in run_all(jobs, workers):
        print(f"measured {file}: {status}", flush=True)
    return {file: json.loads(path.read_text()) for file, path in paths.items()}


def tests_of(mutant, lines, measured):
    """Returns the names of the tests that run any of some lines of the file of a mutant, by file.

    What runs when a module is imported belongs to all tests that run any line of its file.
    """
    chosen, is_imported = {}, False
    for file, one in measured.items():
        by_line = one["lines"].get(mutant.file, {})
        names = {name for line in lines for name in by_line.get(str(line), [])}
        is_imported = is_imported or "" in names
        chosen[file] = names - {""}
    if not any(chosen.values()) and is_imported:
        for file, one in measured.items():
            by_line = one["lines"].get(mutant.file, {})
            chosen[file] = {name for names in by_line.values() for name in names} - {""}
    if any(chosen.values()):
        chosen[_DEFAULTS] = set(measured[_DEFAULTS]["seconds"])
    found = {}
    for file, names in chosen.items():
        names -= set(measured[file]["failed"])
        if names:
            found[file] = sorted(names, key=measured[file]["seconds"].get)
    return found
