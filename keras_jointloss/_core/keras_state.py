"""What the package assumes of state, in training and in files, which Keras does not document.

As in `_core/keras.py`, each function has a check of its name in `tests/test_keras.py`.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

_seeds: Any = inspect.getmodule(keras.random.SeedGenerator)
_SEED = "global_seed_generator"
#: The attributes of a model that `fit` sets: its compiled steps, and what callbacks leave.
_SET_BY_FIT = (
    *("train_function", "test_function", "predict_function"),
    *("history", "stop_training"),
)


def build_for_training(model: keras.Model, batch: tuple) -> None:
    """Creates the variables of optimizer, losses and metrics for a batch, as `fit` does."""
    model._symbolic_build(data_batch=batch)


@contextlib.contextmanager
def kept_global_seed() -> Iterator[None]:
    """Puts back the state from which layers without a seed draw at the end."""
    generator = _seeds.global_state.get_global_attribute(_SEED)
    kept = None if generator is None else np.array(keras.ops.convert_to_numpy(generator.state))
    try:
        yield
    finally:
        _seeds.global_state.set_global_attribute(_SEED, generator)
        if generator is not None:
            generator.state.assign(kept)


@contextlib.contextmanager
def kept_compilation(model: keras.Model) -> Iterator[None]:
    """Lets `fit` compile steps anew, and puts back what the model has of them at the end.

    Losses and metrics that no step has built yet stay so: `fit` takes a batch of its data to build
    them.
    """
    kept = {name: vars(model)[name] for name in _SET_BY_FIT if name in vars(model)}
    changed: dict[str, Any] = {"train_function": None, "test_function": None}
    loss, metrics = model._compile_loss, model._compile_metrics
    names = getattr(model, "output_names", None)
    if loss is not None and not loss.built:
        given = loss._user_loss, loss._user_loss_weights
        changed["_compile_loss"] = type(loss)(*given, output_names=names)
    if metrics is not None and not metrics.built:
        given = metrics._user_metrics, metrics._user_weighted_metrics
        changed["_compile_metrics"] = type(metrics)(*given, output_names=names)
    kept |= {name: vars(model)[name] for name in changed if name in vars(model)}
    vars(model).update(changed)
    try:
        yield
    finally:
        for name in (*_SET_BY_FIT, *changed):
            vars(model).pop(name, None)
        vars(model).update(kept)


def saved_variables(store: Any) -> dict[str, Any]:
    """Returns what Keras itself saves of a layer: it uses numbers as keys."""
    return {key: store[key] for key in list(store.keys()) if key.isdigit()}


def saved_shape(store: Any, key: str) -> tuple[int, ...] | None:
    """Returns the shape of an array in a weights file, or `None` if that is to be found in it.

    The store reads an array as a whole when it is asked for it, however large the file says it is.
    """
    group: Any = getattr(store, "_h5_entry_group", None) or {}
    is_plain = key in group and group.get(key, getclass=True, getlink=True).__name__ == "HardLink"
    shape = getattr(group[key], "shape", None) if is_plain else None
    return None if shape is None else tuple(shape)
