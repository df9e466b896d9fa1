"""Test runs in forked processes, which import a mutated package but none of what it depends on."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pytest

from tests.processes import ROOT

_MEMORY = 8 * 2**30  # What a child may use on top of what its parent has.


def imports_what_tests_need():
    """Imports what takes long, except for the package and its tests."""
    for name in ("hypothesis", "keras", "tensorflow", "torch", "xdist"):
        importlib.import_module(name)


class _Mutated(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Imports one module from a text in place of its file."""

    def __init__(self, file, source):
        parts = Path(file).with_suffix("").parts
        self.module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        super().__init__(self.module, str(ROOT / file))
        self.source = source

    def find_spec(self, name, path=None, target=None):
        if name == self.module:
            return importlib.util.spec_from_file_location(name, self.path, loader=self)
        return None

    def get_code(self, name):
        return compile(self.source, self.path, "exec")


def use_mutant(file, source):
    """Makes a later import of the module read another source."""
    assert "keras_jointloss" not in sys.modules
    sys.meta_path.insert(0, _Mutated(file, source))


class Chosen:
    """A plugin of pytest that runs some of the tests, in their order."""

    def __init__(self, names):
        self.names = names

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        by_name = {item.nodeid: item for item in items}
        items[:] = [by_name[name] for name in self.names if name in by_name]


def run_pytest(files, plugins, *options):
    """Runs tests in this process, and returns the status that pytest would exit with."""
    folder = f"--basetemp={tempfile.gettempdir()}/pytest"
    quiet = ["-q", "--assert=plain", "--tb=short", "-p", "no:cacheprovider", folder]
    return int(pytest.main([*quiet, *options, *files], plugins=plugins))


def _start(function, log, folder):
    """Forks a process that calls a function and exits with the status that it returns."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.setsid()
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY,) * 2)
        status = function()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run_all(jobs, workers):
    """Runs jobs, some at a time, each in a process of its own; yields what was done and how.

    A job is a tuple of a name, a function, the path of a log and a number of seconds. It is
    yielded as its name and the status that the function returned, or None if it took longer. Who
    gets it may append to the deque of jobs.
    """
    running = {}
    while jobs or running:
        while jobs and len(running) < workers:
            name, function, log, limit = jobs.popleft()
            folder = tempfile.mkdtemp(prefix="mutant_")
            child = _start(function, log, folder)
            running[child] = name, time.monotonic() + limit, folder
        time.sleep(0.05)
        for child, (name, deadline, folder) in list(running.items()):
            ended, status = os.waitpid(child, os.WNOHANG)
            is_late = not ended and time.monotonic() > deadline
            if not ended and not is_late:
                continue
            # What its tests have started ends with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            if is_late:
                os.waitpid(child, 0)
            shutil.rmtree(folder, ignore_errors=True)
            del running[child]
            yield name, None if is_late else os.waitstatus_to_exitcode(status)
