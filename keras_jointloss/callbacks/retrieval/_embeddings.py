"""Finds the embeddings of a model and computes them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_jointloss._core.backend import predict
from keras_jointloss._core.keras import stacked_tensors
from keras_jointloss._core.keras_models import output_names
from keras_jointloss._core.validation import invalid
from keras_jointloss.layers import ContrastiveTerm


class Found(NamedTuple):
    """Embeddings of a Functional model: their name and the models that compute them."""

    name: str
    #: One model for pairs; one for the queries and one for the candidates.
    models: tuple[keras.Model, ...]


def validate_embeddings(embeddings):
    """Returns `None`, a name or a list of two names, or raises `ValueError`."""
    if embeddings is None or isinstance(embeddings, str):
        return embeddings
    is_list = isinstance(embeddings, Iterable) and getattr(embeddings, "shape", None) != ()
    names = list(embeddings) if is_list else []
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise invalid("embeddings", "None, a name or two names", embeddings)
    return names


def find_pairs(model, embeddings) -> Found | None:
    """Returns the embeddings of pairs, or `None` if only a prediction shows them.

    Raises `ValueError` if they are not found or are ambiguous.
    """
    names = output_names(model)
    if names is None:
        return None
    outputs = _by_name(model.output, names)
    name, tensors = _select(outputs, _terms(model), embeddings)
    return Found(name, (keras.Model(model.input, list(tensors)),))


def embed_pairs(model, found, embeddings, data, batch_size):
    """Returns the name of the embeddings and the two of each item, `(items, dim)`."""
    if found is not None:
        model = found.models[0]
    outputs = predict(model, data, batch_size)
    if found is not None:
        name, pair = found.name, outputs if isinstance(outputs, list | tuple) else [outputs]
    else:
        name, pair = _select(_by_name(outputs), {}, embeddings)
    a, b = (pair[0][:, 0], pair[0][:, 1]) if len(pair) == 1 else pair
    return name, np.asarray(a, "float32"), np.asarray(b, "float32")


def find_sides(model, embeddings) -> Found | None:
    """Returns the embeddings of queries and candidates, or `None` if only a prediction shows them.

    Each side is a nested model or the part of the graph that computes the embedding, with the
    inputs that this part needs. Raises `ValueError` if they are not found or are ambiguous.
    """
    outputs, pairs = {}, {}
    names = output_names(model)
    if names is not None:
        outputs = _by_name(model.output, names)
        stacked = {name: x for name, x in outputs.items() if _is_stacked(x)}
        pairs = {**_terms(model), **{name: _halves(x) for name, x in stacked.items()}}
    nested = {layer.name: layer for layer in model.layers if isinstance(layer, keras.Model)}
    if not outputs and not set(_names(embeddings)) <= set(nested):
        return None
    name, sides = _select_sides(outputs, nested, pairs, embeddings)
    return Found(name, tuple(_part(model, side) for side in sides))


def find_single(model, name) -> Found | None:
    """Returns the embeddings with a name, of each item one, or `None` if only a prediction does.

    They are an output `(batch, dim)` or a nested model. Raises `ValueError` if they are not found
    or are ambiguous.
    """
    outputs = {}
    names = output_names(model)
    if names is not None:
        outputs = _by_name(model.output, names)
    nested = {layer.name: layer for layer in model.layers if isinstance(layer, keras.Model)}
    if not outputs and name not in nested:
        return None
    name, x = _select_single(outputs, nested, name)
    return Found(name, (_part(model, x),))


def embed_single(model, found, name, data, batch_size):
    """Returns the name of the embeddings and that of each item, `(items, dim)`."""
    if found is not None:
        return found.name, np.asarray(predict(found.models[0], data, batch_size), "float32")
    name, x = _select_single(_by_name(predict(model, data, batch_size)), {}, name)
    return name, np.asarray(x, "float32")


def embed_sides(model, found, embeddings, data, batch_size):
    """Returns the name of the embeddings and those of queries and candidates, `(items, dim)`."""
    sides = []
    for i, items in enumerate(data):
        part = model if found is None else found.models[i]
        prediction = predict(part, items, batch_size)
        if found is not None:
            name = found.name
        else:
            outputs = _by_name(prediction)
            pairs = {key: (x[:, 0], x[:, 1]) for key, x in outputs.items() if _is_stacked(x)}
            name, pair = _select_sides(outputs, {}, pairs, embeddings)
            prediction = pair[i]
        sides.append(np.asarray(prediction, "float32"))
    a, b = sides
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise invalid(
            "embeddings",
            "embeddings (items, dim) of the same dim",
            embeddings,
            f" of shapes {a.shape}, {b.shape}",
        )
    return name, a, b


def _terms(model):
    """Returns the two embeddings of each `ContrastiveTerm` by its name.

    A term of one embedding and labels has none.
    """
    found = {term.name: embeddings[:2] for term, embeddings in _inputs_of_terms(model)}
    return {name: list(pair) for name, pair in found.items() if len(pair) == 2}


def _inputs_of_terms(model):
    """Returns each `ContrastiveTerm` with its embeddings, which it returns unchanged.

    Its other inputs, labels and sample weights, follow them.
    """
    terms = (layer for layer in model.layers if isinstance(layer, ContrastiveTerm))
    return [(term, keras.tree.flatten(term.input)[: len(_outputs_of(term))]) for term in terms]


def _outputs_of(term) -> list:
    return keras.tree.flatten(term.output)


def _before_terms(model, x):
    """Returns the tensor that comes out of `ContrastiveTerm`s as `x`.

    It depends on one side only, whereas each output of a term depends on all of its inputs.
    """
    for term, embeddings in reversed(_inputs_of_terms(model)):
        for given, returned in zip(embeddings, _outputs_of(term), strict=True):
            x = given if returned is x else x
    return x


def _halves(x):
    """Returns the two tensors `(batch, dim)` of a stacked one.

    Those that `keras.ops.stack` puts together may depend on different inputs.
    """
    return stacked_tensors(x) or (x[:, 0], x[:, 1])


def _part(model, embedding) -> keras.Model:
    """Returns the model of one side, which takes only the inputs that the embedding needs."""
    if isinstance(embedding, keras.Model):
        return embedding
    embedding = _before_terms(model, embedding)
    needed = [x for x in model.inputs if not _computes(model.inputs, x, embedding)]
    if isinstance(model.input, dict):
        names = [key for key, x in model.input.items() if any(x is y for y in needed)]
        return keras.Model({key: model.input[key] for key in names}, embedding)
    return keras.Model(needed if len(needed) > 1 else needed[0], embedding)


def _computes(inputs, left_out, embedding) -> bool:
    """Whether the embedding can be computed without one of the inputs."""
    rest = [x for x in inputs if x is not left_out]
    if not rest:
        return False
    try:
        keras.Model(rest, embedding)
    except ValueError:
        return False
    return True


def _by_name(outputs, names=()) -> dict[str, Any]:
    """Returns the outputs of a model by name, or by number if they have none.

    Several outputs of one layer, as of a `ContrastiveTerm`, have its name: `term[0]`, `term[1]`.
    """
    if isinstance(outputs, dict):
        return outputs
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    names = list(names) or [f"output_{i}" for i in range(len(outputs))]
    numbered = [
        f"{name}[{names[:i].count(name)}]" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]
    return dict(zip(numbered, outputs, strict=True))


def _select(outputs, pairs, embeddings):
    """Returns the name of the embeddings, and one stacked tensor or two separate ones."""
    if isinstance(embeddings, list):
        single = {name: x for name, x in outputs.items() if len(x.shape) == 2}
        if not set(embeddings) <= set(single):
            raise invalid(
                "embeddings",
                f"two names of the model's outputs (batch, dim), which are {sorted(single)}",
                embeddings,
            )
        a, b = (single[name] for name in embeddings)
        if a.shape[1] != b.shape[1]:
            raise invalid(
                "embeddings",
                "two outputs of the same dim",
                embeddings,
                f" of shapes {tuple(a.shape)}, {tuple(b.shape)}",
            )
        return "_".join(embeddings), [a, b]
    found = {**pairs, **{name: [x] for name, x in outputs.items() if _is_stacked(x)}}
    if embeddings is None and len(found) == 1:
        return next(iter(found.items()))
    if embeddings in found:
        return embeddings, found[embeddings]
    raise invalid(
        "embeddings",
        "the name of one of the model's stacked outputs (batch, 2, dim) and ContrastiveTerms (or "
        f"None, if there is only one), which are {sorted(found)}",
        embeddings,
    )


def _select_sides(outputs, nested, pairs, embeddings):
    """Returns the name of the embeddings, and that of the queries and that of the candidates.

    Outputs, nested models and pairs of embeddings are given by name.
    """
    single = {name: x for name, x in outputs.items() if len(x.shape) == 2}
    options = pairs or (single if len(outputs) == 1 else {})
    single = {**nested, **single}
    if isinstance(embeddings, list):
        if set(embeddings) <= set(single):
            return "_".join(embeddings), [single[name] for name in embeddings]
    elif embeddings is None:
        if len(options) == 1:
            name = next(iter(options))
            return name, pairs.get(name) or [single[name]] * 2
    elif embeddings in pairs:
        return embeddings, pairs[embeddings]
    elif embeddings in single:
        return embeddings, [single[embeddings]] * 2
    raise invalid(
        "embeddings",
        "the name of a stacked output (batch, 2, dim) or a ContrastiveTerm, which are "
        f"{sorted(pairs)}, or one or two names of outputs (batch, dim) and nested models, which "
        f"are {sorted(single)}",
        embeddings,
    )


def _select_single(outputs, nested, name):
    """Returns a name and what it stands for: an output `(batch, dim)` or a nested model."""
    single = {key: x for key, x in outputs.items() if len(x.shape) == 2}
    found = {**nested, **single}
    if name in found:
        return name, found[name]
    if name is None and len(single) == 1:
        return next(iter(single.items()))
    raise invalid(
        "embeddings",
        "the name of an output (batch, dim) or of a nested model (or None, if there is only one "
        f"such output), which are {sorted(found)}",
        name,
    )


def _names(embeddings) -> list:
    return embeddings if isinstance(embeddings, list) else [embeddings]


def _is_stacked(x) -> bool:
    return len(x.shape) == 3 and x.shape[1] == 2
