"""Puts a model, its optimizer and all random numbers back to what they were."""

import contextlib
import random
from collections.abc import Iterable, Iterator

import keras
import numpy as np

from keras_jointloss._core import keras as _keras
from keras_jointloss._core.backend import native_values
from keras_jointloss._core.keras_state import kept_compilation, kept_global_seed
from keras_jointloss._core.math import to_numpy
from keras_jointloss.terms.weight import TermWeight


@contextlib.contextmanager
def kept_surroundings(model: keras.Model) -> Iterator[None]:
    """Puts back what a model has beside variables of Keras, and the random numbers.

    That is what `fit` compiles, variables of layers that are not of Keras, and the random numbers
    of Python, NumPy, Keras and the backend.
    """
    python, numpy = random.getstate(), np.random.get_state()
    restore = native_values(list(_keras.flatten_layers(model)))
    try:
        with kept_global_seed(), kept_compilation(model):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        restore()


@contextlib.contextmanager
def kept_variables(model: keras.Model, terms: Iterable[TermWeight]) -> Iterator[None]:
    """Puts all variables of a model and its layers, metrics, terms and optimizer back."""
    found = [*model.variables, *model.metrics_variables, *model.optimizer.variables]
    for layer in _keras.flatten_layers(model):
        found += [*layer.variables, *layer.metrics_variables]
    for term in terms:
        # An output's weight tracks the variables of a rule.
        found += [*term.state, *getattr(term, "variables", [])]
    kept = [(x, np.array(to_numpy(x))) for x in {id(x): x for x in found}.values()]
    try:
        yield
    finally:
        for variable, value in kept:
            variable.assign(value)
