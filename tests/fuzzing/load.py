"""Loads mutated models, in a process with limited memory, and trains each for one step.

Usage: `python -m tests.fuzzing.load FOLDER SUBJECTS FIRST LAST`. Saves the subjects, named with
commas in between, in the folder, unless they are there. Prints a line with the seed before each
mutation, and one with its outcome, both as JSON.
"""

import functools
import json
import re
import resource
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_jointloss as kj
from keras_jointloss.terms import LossAcross
from tests.fuzzing.mutation import Mutation
from tests.fuzzing.mutations import mutated
from tests.subjects import BATCH, DATA, SUBJECTS

ROOT = str(Path(kj.__file__).parent)
KERAS = str(Path(keras.__file__).parent)
#: How much more memory than before a process may map.
MEMORY = 2**30
#: Errors of Python itself that name class and argument.
NAMES_ARGUMENT = r"unexpected keyword argument|missing \d+ required|multiple values for argument"
#: The errors of this package; the last is that of a rule about losses that it cannot use.
CLEAR = ValueError | TypeError | RuntimeError | FloatingPointError
#: What messages of this package say. Keras collects those about a weights file in one of its own.
OWN_MESSAGE = r"Invalid value for|Invalid saved state of|Expected|expects|is the weighting of"
OWN_MESSAGE += "|cannot use a loss"
#: What no process does that only loads a file.
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"}
FORBIDDEN |= {"socket.connect", "socket.bind", "pickle.find_class"}

_events: list[str] = []
sys.addaudithook(
    lambda event, arguments: _events.append(f"{event}{arguments}") if event in FORBIDDEN else None
)


@functools.cache
def _class_names() -> dict[str, str]:
    """Returns the classes of this package by their names in a weights file."""
    names = [x.__name__ for x in kj.custom_objects().values() if isinstance(x, type)]
    in_file = {re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower(): name for name in names}
    return {**in_file, "weight": "LossWeight", "weighting": "weighting"}


def own_class(array: str) -> str:
    """Returns the class of this package that an array of a weights file belongs to, or `""`."""
    owner = array.split("/vars/")[0].rpartition("/")[2]
    return _class_names().get(re.sub(r"_\d+$", "", owner), "")


def arguments_of(subject: str, targets: dict[str, str], output: Any) -> dict[str, Any]:
    """Returns one batch for `fit`; the targets are the names of data by those of losses."""
    x = [DATA[name][:BATCH] for name in SUBJECTS[subject].inputs]
    y: Any = {loss: DATA[name][:BATCH] for loss, name in targets.items()}
    if isinstance(output, list):
        y = list(y.values())
    elif output is not None and not isinstance(output, dict):
        (y,) = y.values()
    return {"x": x if len(x) > 1 else x[0], "y": y, "batch_size": BATCH, "verbose": 0}


def train(model: Any, arguments: dict[str, Any]) -> list[float]:
    """Returns the logs of one step."""
    callback = kj.callbacks.JointLossCallback()
    history = model.fit(**arguments, callbacks=[callback]).history
    return [float(values[0]) for values in history.values()]


def save_subject(folder: Path, name: str) -> None:
    """Saves a model after one step, and the names of its targets."""
    if (folder / f"{name}.json").exists():
        return
    model, joint, targets = SUBJECTS[name].make()
    model.compile(keras.optimizers.SGD(0.01), **joint, run_eagerly=True)
    losses = [x for x, loss in model.loss.items() if not isinstance(loss, LossAcross)]
    by_loss = dict(zip(losses, targets, strict=True))
    train(model, arguments_of(name, by_loss, getattr(model, "output", None)))
    model.save(folder / f"{name}.keras")
    (folder / f"{name}.json").write_text(json.dumps(by_loss))


# Outcomes


def _chain(error: BaseException) -> list[BaseException]:
    """Returns an error and those that it was raised from, the first raised last."""
    chain, following = [], error
    while following is not None:
        chain.append(following)
        context = None if following.__suppress_context__ else following.__context__
        following = following.__cause__ or context
    return chain


def _files(error: BaseException) -> list[str]:
    return [frame.filename for frame in traceback.extract_tb(error.__traceback__)]


def _is_own(name: str) -> bool:
    return name.startswith(ROOT)


def _is_raised_by_keras(error: BaseException) -> bool:
    """Returns whether Keras itself raises an error about a value, and not what it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    is_of_value = isinstance(error, ValueError | TypeError)
    last = frames[-1] if frames else None
    if last is None or not is_of_value or not (last.line or "").startswith("raise"):
        return False
    return last.filename.startswith(KERAS)


def _class_of_error(error: BaseException, mutation: Mutation) -> str:
    """Returns `"refused"`, `"refused by Keras"`, `"unnamed"` or `"unclear"`."""
    chain, text = _chain(error), str(error)
    raised_by_us = [
        x for x in chain if isinstance(x, ValueError) and _files(x) and _is_own(_files(x)[-1])
    ]
    # What it collects from a weights file is its own error, too.
    is_collected = "objects could not be loaded" in text
    if _is_raised_by_keras(chain[-1]) and not is_collected:
        return "refused by Keras"
    is_own = raised_by_us or re.search(OWN_MESSAGE, text)
    if is_own and isinstance(error, CLEAR):
        keys = [str(key) for key in mutation.path if not isinstance(key, int)]
        keys += [mutation.note.rpartition(" ")[2]] * (mutation.kind == "class")
        names = {mutation.owner, *keys} - {"", "config", "class_name", "module", "vars", "layers"}
        is_named = not mutation.is_own or any(name in text for name in names)
        return "refused" if is_named else "unnamed"
    if re.search(NAMES_ARGUMENT, text):
        return "refused"
    is_through_us = any(_is_own(name) for x in chain for name in _files(x))
    if isinstance(error, MemoryError) or "allocate memory" in text:
        return "memory" if mutation.is_own else "memory by Keras"
    return "unclear" if is_through_us and mutation.is_own else "refused by Keras"


def outcome(path: Path, subject: str, mutation: Mutation) -> tuple[str, str]:
    """Loads a mutated model and trains it; returns the kind of the outcome and a message."""
    targets = json.loads(path.with_name(f"{subject}.json").read_text())
    try:
        model = keras.models.load_model(path, safe_mode=True)
        values = train(model, arguments_of(subject, targets, getattr(model, "output", None)))
    except Exception as error:
        frames = [
            f"{Path(x.filename).name}:{x.lineno}"
            for e in _chain(error)
            for x in traceback.extract_tb(e.__traceback__)[-2:]
        ]
        message = f"{type(error).__name__}: {error}"
        if len(message) > 1500:
            message = f"{message[:500]} ... {message[-1000:]}"
        return _class_of_error(error, mutation), f"{message} [{' '.join(frames)}]"
    if not np.isfinite(values).all():
        if "missing" in mutation.path:  # Targets of NaN, which the file no longer calls missing.
            return "not finite by the targets", str(values)
        return ("not finite" if mutation.is_own else "not finite by Keras"), str(values)
    return ("swallowed" if mutation.is_own and mutation.is_wrong_type else "trains"), ""


def main(folder: Path, subjects: list[str], first: int, last: int) -> None:
    warnings.simplefilter("ignore")
    for name in subjects:
        save_subject(folder, name)
    sources = {name: (folder / f"{name}.keras").read_bytes() for name in subjects}
    for name in subjects:  # What is loaded late, and the caches of the backend, count as before.
        kind, message = outcome(folder / f"{name}.keras", name, Mutation("none", ()))
        assert kind == "trains", message
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    path = folder / f"mutated_{first}.keras"
    for seed in range(first, last):
        subject = subjects[seed % len(subjects)]
        print(json.dumps({"begin": seed}), flush=True)
        data, mutation = mutated(sources[subject], seed, own_class)
        path.write_bytes(data)
        _events.clear()
        begin = time.perf_counter()
        kind, message = outcome(path, subject, mutation)
        if _events:
            kind, message = "runs code", f"{_events} {message}"
        found = {
            **{"seed": seed, "subject": subject, "kind": kind, "message": message},
            **{"seconds": round(time.perf_counter() - begin, 2), "mutation": mutation._asdict()},
        }
        print(json.dumps(found, default=str), flush=True)
        keras.utils.clear_session()


if __name__ == "__main__":
    names = list(SUBJECTS) if sys.argv[2] == "all" else sys.argv[2].split(",")
    main(Path(sys.argv[1]), names, *map(int, sys.argv[3:]))
