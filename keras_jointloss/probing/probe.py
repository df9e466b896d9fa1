"""Measures the terms of a model before it trains."""

import contextlib
import math
import os
from collections.abc import Mapping
from typing import Any

import keras

from keras_jointloss._core.backend import current_replicas, variable_scope
from keras_jointloss._core.keras_state import build_for_training
from keras_jointloss._core.validation import invalid, validate_count, validate_seed
from keras_jointloss.joint.find_terms import find_combinations, find_terms
from keras_jointloss.joint.other_losses import layers_of_variables
from keras_jointloss.probing.batches import Batches
from keras_jointloss.probing.facts import facts_of
from keras_jointloss.probing.kept_state import kept_surroundings, kept_variables
from keras_jointloss.probing.measurement import Measured, Meter
from keras_jointloss.probing.result import Probe
from keras_jointloss.probing.statistics import State
from keras_jointloss.probing.summaries import write
from keras_jointloss.terms.weight import TermWeight


def probe(
    model: keras.Model,
    x: Any,
    y: Any = None,
    sample_weight: Any = None,
    batch_size: int = 32,
    batches: int = 16,
    seed: int = 0,
    *,
    warmup_epochs: int = 1,
    log_dir: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> Probe:
    """Measures the terms of a model over some batches, and proposes weights for them.

    For each term it measures the loss, its gradient with respect to the parameters, over all and
    over those that terms share, and how much the gradient differs from batch to batch; for each
    pair of terms the angle between their gradients. The model is measured twice, as it is, and
    after a warm-up: ratios and angles often change much within the first epoch. The warm-up is a
    `fit` with constant weights that make the gradients of the untrained model equally long, and
    without the callback, schedules and the weighting.

    Nothing changes: at the end the model, its optimizer and metrics, the memories of its layers and
    all random numbers are bit for bit what they were. Only a data set keeps its own state, such as
    the order in which a `tf.data.Dataset` shuffles, and an optimizer that has not trained yet gets
    its variables: compile the model again after a change of `trainable`.

    Dropout and batch normalization work as in training. Layers that combine gradients pass on the
    sum: cosines are those without them. With mixed precision the gradients are those of the losses
    without a scale, in float32. The losses are those that `compute_loss` of the model computes; a
    custom `train_step` takes part in the warm-up only.

    A measured batch takes one forward pass and a backward pass for each term, and the measurement
    the memory of two gradients for each term.

    Args:
        model: A model that is built, and compiled with `joint_loss` or with layer terms.
        x: The inputs, as for `fit`: arrays in any structure, a `tf.data.Dataset`, a
            `keras.utils.PyDataset` or anything else that yields batches each time it is iterated
            over.
        y: The targets, if `x` are arrays.
        sample_weight: The sample weights, if `x` are arrays.
        batch_size: The number of items of a batch, if `x` are arrays. It should be that of the
            training: gradients of small batches are noisier.
        batches: How many batches to measure. With fewer data there are fewer.
        seed: Determines which items of arrays, or batches of a `PyDataset`, are measured, and the
            order of arrays in the warm-up.
        warmup_epochs: How many epochs the warm-up has; 0 for none.
        log_dir: A folder for TensorBoard, where the statistics of the untrained model become the
            values of step 0 of `train`, or `None`.
        verbose: 1 for progress bars, 0 for none.

    Returns:
        An object that `print` shows as text, a notebook as HTML and `keras_jointloss.plot` as a
        figure. Its statistics are those after the warm-up; `untrained` has those before.

        By the name of a term: `loss` and `loss_deviation`, over batches; `norm`, the mean length of
        the gradient of the loss without a weight; `shared_norm`, that with respect to the
        parameters that all terms share, or else that the term shares with another; `share`, that of
        the term in the sum of these lengths times the weights; `noise`, the standard deviation of
        the gradient over batches, divided by the length of its mean; `signal`, by how many standard
        errors the gradients of batches agree; `layers`, the names of those that it reaches, and
        `shared_layers`, of those that it shares with each other term. `terms` are the names.

        For a pair of terms: `cosine[a, b]`, the mean over batches, with its standard error
        `cosine_error[a, b]`; `conflict[a, b]`, the share of batches in which the cosine was
        negative. `conflicts` lists the pairs whose mean is negative beyond two standard errors.

        `faults` have a `term`, a `kind` and a `text`; `advice` has a `text` and the name of a
        `guide`. `weights("gradient")` returns constants that make the lengths of the weighted
        gradients equal, `weights("loss")` those for losses; with `shares={"a": 0.8, "b": 0.2}`
        they have these ratios.

    Raises:
        ValueError: If an argument is invalid, the model has no term, is not built, or is
            distributed over several devices.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> import keras_jointloss as kj
    >>> inputs = keras.Input((3,))
    >>> hidden = keras.layers.Dense(4, activation="relu")(inputs)
    >>> outputs = {name: keras.layers.Dense(1, name=name)(hidden) for name in ("a", "b")}
    >>> model = keras.Model(inputs, outputs)
    >>> model.compile("adam", **kj.joint_loss({"a": "mse", "b": "mse"}))
    >>> x = np.random.default_rng(0).normal(size=(64, 3))
    >>> y = {"a": x[:, :1], "b": 100 * x[:, 1:2]}
    >>> found = kj.probe(model, x, y, batch_size=8, verbose=0)
    >>> found.norm["b"] > 10 * found.norm["a"]
    True
    >>> weights = found.weights("gradient")
    >>> weights["a"] > 10 * weights["b"]
    True
    """
    count = validate_count(batches, "batches")
    epochs = validate_count(warmup_epochs, "warmup_epochs", minimum=0)
    size = validate_count(batch_size, "batch_size")
    if log_dir is not None and not isinstance(log_dir, str | os.PathLike):
        raise invalid("log_dir", "a path, or None", log_dir)
    terms = _validated_terms(model)
    data = Batches(x, y, sample_weight, size, validate_seed(seed))
    facts = facts_of(model, terms, size)
    names = layers_of_variables(model)
    meter = Meter(model, terms)
    layers = [names.get(id(x), x.path) for x in meter.variables]
    with contextlib.ExitStack() as stack:
        stack.enter_context(kept_surroundings(model))
        for name, weight in terms.items():
            stack.enter_context(weight.constant(meter.observer(name)))
        chosen = [_as_tensors(batch) for batch in data(count)]
        if not chosen:
            raise invalid("x", "at least one batch", received="data without a batch")
        build_for_training(model, chosen[0])
        stack.enter_context(kept_variables(model, terms.values()))

        def measure(title: str) -> State:
            measured = _measure(model, meter, chosen, title, verbose)
            return State(measured, list(terms), facts.weights, layers)

        untrained, trained = measure("untrained"), None
        if epochs:
            equal = _equal_lengths(facts.weights, untrained.lengths())
            _warm_up(model, terms, equal, data, epochs, verbose)
            trained = measure(f"after {epochs} epoch{'s' * (epochs > 1)}")
    result = Probe(untrained, trained, facts, epochs)
    if log_dir is not None:
        write(result, os.fspath(log_dir))
    return result


def _validated_terms(model: Any) -> dict[str, TermWeight]:
    """Returns the terms of a model, or raises `ValueError` if it cannot be measured."""
    if not isinstance(model, keras.Model):
        raise invalid("model", "a `keras.Model`", model)
    if not model.compiled or not (found := find_terms(model)):
        raise invalid(
            "model",
            "a model with a term: compiled with what `keras_jointloss.joint_loss` returns, or with "
            "a layer such as `ContrastiveTerm`",
            received=f"{'a' if model.compiled else 'an uncompiled'} model {model.name!r}",
        )
    if not model.built or not model.trainable_variables:
        expected = "a model that is built and has parameters to train"
        raise invalid("model", expected, received=f"the model {model.name!r} without any")
    with variable_scope(model):
        replicas = current_replicas()
    if replicas.count > 1 or replicas.loss_divisor > 1:
        expected = "a model on one device, such as one created outside of the strategy's scope"
        raise invalid("model", expected, received="a model of several replicas")
    return found


def _as_tensors(batch: tuple) -> tuple:
    def convert(x):
        return x if x is None or keras.ops.is_tensor(x) else keras.ops.convert_to_tensor(x)

    return keras.tree.map_structure(convert, batch)


def _measure(
    model: keras.Model, meter: Meter, batches: list[tuple], title: str, verbose: int
) -> Measured:
    """Returns what was measured over batches, with a progress bar."""
    bar = keras.utils.Progbar(len(batches), verbose=verbose) if verbose else None
    if verbose:
        print(f"Measuring the terms: {title}")
    with contextlib.ExitStack() as stack:
        for layer in find_combinations(model):
            stack.enter_context(layer.bypassed())
        return meter.measure(batches, lambda: bar and bar.add(1))


def _equal_lengths(weights: Mapping[str, float], lengths: Mapping[str, float]) -> dict[str, float]:
    """Returns weights with which gradients are equally long, of the sum of the given ones.

    A weight of 0 stays, and so does that of a term without a finite gradient.
    """
    usable = [x for x in weights if weights[x] > 0 and 0 < lengths[x] < math.inf]
    inverse = {x: 1 / lengths[x] for x in usable}
    factor = sum(weights[x] for x in usable) / sum(inverse.values()) if usable else 0.0
    return {x: factor * inverse[x] if x in inverse else weights[x] for x in weights}


def _warm_up(
    model: keras.Model,
    terms: Mapping[str, TermWeight],
    weights: Mapping[str, float],
    data: Batches,
    epochs: int,
    verbose: int,
) -> None:
    """Trains a model with constant weights."""
    with contextlib.ExitStack() as stack:
        for name, weight in terms.items():
            stack.enter_context(weight.constant())
            weight.assign(weights[name])
        model.fit(data.for_fit(), epochs=epochs, shuffle=False, verbose=verbose)
