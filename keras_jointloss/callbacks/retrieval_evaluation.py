"""The callback that evaluates retrieval over a whole data set at the end of an epoch."""

import os
from collections.abc import Iterable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_jointloss._validation import validate_count
from keras_jointloss.layers import ContrastiveTerm
from keras_jointloss.tensorboard import SummaryWriter, write_projector
from keras_jointloss.tensorboard.projector import validate_thumbnails
from keras_jointloss.terms.clock import optimizer_step


class RetrievalEvaluation(keras.callbacks.Callback):
    """Measures at the end of an epoch how well the pairs of a whole data set retrieve each other.

    The callback predicts the embeddings `a` and `b` of all items. Each `a` is a query for its `b`
    among the `b` of all items, by cosine, and vice versa. The rank of the right candidate is

        1 + number of wrong candidates that are at least as similar

    so that ties, including those within rounding, count against the model. The `logs` of the epoch,
    and thus `History` and every later callback in the list, get

    - `<name>_a_to_b_recall_at_<k>`: the share of queries with a rank of at most `k`,
    - `<name>_a_to_b_mean_reciprocal_rank`: the mean of one over the rank,
    - `<name>_a_to_b_median_rank`: the median of the ranks,

    the same three with `b_to_a`, and, without either, the mean of both directions:
    `<name>_recall_at_<k>`, `<name>_mean_reciprocal_rank`, `<name>_median_rank`.

    To monitor one of them with `keras.callbacks.EarlyStopping` or `ModelCheckpoint`, put this
    callback before that one, and measure after every epoch. The similarities are computed in tiles
    of rows: for `n` items memory holds a few times `n * dim` and `tile_size * n` numbers, never
    `n * n`.

    With a `log_dir` the callback writes `retrieval/<name>/a_to_b_recall_at_<k>` and so on to the
    TensorBoard run `validation` over the training step. With `projector=True` it also writes the
    embeddings of the last evaluation for TensorBoard's projector when training ends.

    Args:
        data: Inputs as accepted by `model.predict`.
        k: One or several whole numbers >= 1.
        every: The number of epochs from one measurement to the next.
        embeddings: The embeddings to use: the name of an output of stacked views `(batch, 2, dim)`
            or of a `keras_jointloss.layers.ContrastiveTerm` in a Functional model (not inside a
            nested model), or two names of outputs `(batch, dim)`. `None` for the only stacked
            output or `ContrastiveTerm`.
        labels: `(items,)`, in the order of the data. Candidates with the query's label are also
            right, and the best of them determines the rank, so that duplicates are not errors.
        name: Prefix of the keys, by default the name of the embeddings.
        batch_size: Batch size of the prediction, as in `model.predict`.
        tile_size: The number of queries to compare with all candidates at once.
        log_dir: The folder for TensorBoard, or `None` to write nothing.
        projector: Whether to write the embeddings for TensorBoard's projector.
        thumbnails: `(items, height, width, 3)`, uint8: a picture of each item for the projector.

    Raises:
        ValueError: If an argument is invalid; at the start of `fit` (at the first evaluation for a
            model that is not Functional), if the embeddings are not found or are ambiguous; at an
            evaluation, if the number of labels or thumbnails differs from that of the items.
        OSError: At the start of `fit`, if `log_dir` cannot be written.

    Example:

    >>> import numpy as np
    >>> import keras
    >>> x = keras.Input((3,))
    >>> model = keras.Model(x, {"pair": keras.ops.stack([x, -x], axis=1)})
    >>> callback = RetrievalEvaluation(np.eye(3), k=(1, 2), embeddings="pair")
    >>> result = callback.evaluate(model)
    >>> result["pair_recall_at_1"], result["pair_median_rank"]
    (0.0, 3.0)
    """

    def __init__(
        self,
        data: Any,
        k: int | Iterable[int] = (1, 5, 10),
        every: int = 1,
        embeddings: str | Iterable[str] | None = None,
        labels: Any = None,
        name: str | None = None,
        batch_size: int | None = None,
        tile_size: int = 1024,
        log_dir: str | os.PathLike | None = None,
        projector: bool = False,
        thumbnails: np.ndarray | None = None,
    ):
        super().__init__()
        self.data = data
        self.k = tuple(validate_count(n, "k") for n in (k if isinstance(k, Iterable) else [k]))
        self.every = validate_count(every, "every")
        self.embeddings = _validate_embeddings(embeddings)
        self.labels = None if labels is None else np.reshape(np.asarray(labels), (-1,))
        self.name = name
        self.batch_size = batch_size
        self.tile_size = validate_count(tile_size, "tile_size")
        self.log_dir = None if log_dir is None else os.fspath(log_dir)
        for argument, value in (("projector", projector), ("thumbnails", thumbnails)):
            if value is not None and value is not False and log_dir is None:
                raise ValueError(
                    f"Invalid value for argument `log_dir`. Expected a folder, since `{argument}` "
                    "is given. Received: log_dir=None"
                )
        if thumbnails is not None:
            validate_thumbnails(thumbnails, copies=2)
        self.projector = projector or thumbnails is not None
        self.thumbnails = thumbnails
        self._found: _Found | None = None
        self._writer: SummaryWriter | None = None
        self._latest: tuple[str, np.ndarray, np.ndarray] | None = None

    def set_model(self, model):
        super().set_model(model)
        self._found = _find_in_graph(model, self.embeddings) if _is_functional(model) else None

    def on_train_begin(self, logs=None):
        self._latest = None
        if self.log_dir is not None:
            self._writer = SummaryWriter(os.path.join(self.log_dir, "validation"))

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every:
            return
        name, results = self._measure()
        logs.update({f"{name}_{key}": value for key, value in results.items()})
        if self._writer is not None:
            tags = {f"retrieval/{name}/{key}": value for key, value in results.items()}
            self._writer.scalars(tags, optimizer_step(self.model))
            self._writer.flush()

    def on_train_end(self, logs=None):
        if self._writer is None:
            return
        if self.projector and self._latest is not None:
            self._write_projector(self._writer.log_dir, *self._latest)
        self._writer.close()
        self._writer = self._latest = None

    def evaluate(self, model: keras.Model | None = None) -> dict[str, float]:
        """Measures now.

        Args:
            model: The model, or `None` for the model that `fit` trained with this callback.

        Returns:
            The values that the callback would add to the logs.
        """
        if model is not None:
            self.set_model(model)
        name, results = self._measure()
        return {f"{name}_{key}": value for key, value in results.items()}

    def _measure(self):
        """Returns the name of the embeddings, and the results by key without this prefix."""
        name, a, b = self._embed()
        self._latest = (name, a, b) if self.projector else None
        for what, values in (("labels", self.labels), ("thumbnails", self.thumbnails)):
            if values is not None and len(values) != len(a):
                raise ValueError(
                    f"Invalid value for argument `{what}`. Expected one for each of the {len(a)} "
                    f"items of the data. Received: {len(values)} {what}"
                )
        results: dict[str, float] = {}
        a, b = _unit(a), _unit(b)
        for way, queries, candidates in (("a_to_b", a, b), ("b_to_a", b, a)):
            ranks = _ranks(queries, candidates, self.labels, self.tile_size)
            for k in self.k:
                results[f"{way}_recall_at_{k}"] = float(np.mean(ranks <= k))
            results[f"{way}_mean_reciprocal_rank"] = float(np.mean(1 / ranks))
            results[f"{way}_median_rank"] = float(np.median(ranks))
        for key in [key.removeprefix("a_to_b_") for key in results if key.startswith("a_to_b_")]:
            results[key] = (results[f"a_to_b_{key}"] + results[f"b_to_a_{key}"]) / 2
        return name, results

    def _embed(self):
        """Returns the name of the embeddings and the two of each item, `(items, dim)`."""
        model = self.model  # On JAX this copies the state of the step into the variables.
        if self._found is not None:
            model = self._found.model
        outputs = model.predict(self.data, batch_size=self.batch_size, verbose=0)
        if self._found is not None:
            name = self._found.name
            pair = outputs if isinstance(outputs, list | tuple) else [outputs]
        else:
            name, pair = _select(_by_name(outputs), {}, self.embeddings)
        a, b = (pair[0][:, 0], pair[0][:, 1]) if len(pair) == 1 else pair
        return self.name or name, np.asarray(a, "float32"), np.asarray(b, "float32")

    def _write_projector(self, run, name, a, b):
        items = len(a)
        metadata = {"view": ["a"] * items + ["b"] * items, "item": [*range(items)] * 2}
        if self.labels is not None:
            metadata["label"] = [*self.labels] * 2
        thumbnails = None if self.thumbnails is None else np.concatenate([self.thumbnails] * 2)
        write_projector(run, name, np.concatenate([a, b]), metadata, thumbnails)


class _Found(NamedTuple):
    """Embeddings of a Functional model: their name, and the model that computes them."""

    name: str
    model: keras.Model


def _validate_embeddings(embeddings):
    if embeddings is None or isinstance(embeddings, str):
        return embeddings
    names = list(embeddings) if isinstance(embeddings, Iterable) else []
    if len(names) != 2 or not all(isinstance(name, str) for name in names):
        raise ValueError(
            "Invalid value for argument `embeddings`. Expected None, a name or two names. "
            f"Received: embeddings={embeddings!r}"
        )
    return names


def _is_functional(model) -> bool:
    return hasattr(model, "output_names")


def _find_in_graph(model, embeddings) -> _Found:
    """Returns the embeddings of a Functional model."""
    terms = [layer for layer in model.layers if isinstance(layer, ContrastiveTerm)]
    pairs = {term.name: term.input[:2] for term in terms}
    outputs = _by_name(model.output, model.output_names)
    name, tensors = _select(outputs, pairs, embeddings)
    return _Found(name, keras.Model(model.input, list(tensors)))


def _by_name(outputs, names=()) -> dict[str, Any]:
    """Returns the outputs of a model by name, or by number if they have none."""
    if isinstance(outputs, dict):
        return outputs
    outputs = outputs if isinstance(outputs, list | tuple) else [outputs]
    names = names or [f"output_{i}" for i in range(len(outputs))]
    return dict(zip(names, outputs, strict=True))


def _select(outputs, pairs, embeddings):
    """Returns the name of the embeddings, and one stacked tensor or two separate ones."""
    if isinstance(embeddings, list):
        single = {name: x for name, x in outputs.items() if len(x.shape) == 2}
        if not set(embeddings) <= set(single):
            raise ValueError(
                "Invalid value for argument `embeddings`. Expected two names of the model's "
                f"outputs (batch, dim), which are {sorted(single)}. "
                f"Received: embeddings={embeddings!r}"
            )
        a, b = (single[name] for name in embeddings)
        if a.shape[1] != b.shape[1]:
            raise ValueError(
                "Invalid value for argument `embeddings`. Expected two outputs of the same dim. "
                f"Received: embeddings={embeddings!r} of shapes {tuple(a.shape)}, {tuple(b.shape)}"
            )
        return "_".join(embeddings), [a, b]
    found = {**pairs, **{name: [x] for name, x in outputs.items() if _is_stacked(x)}}
    if embeddings is None and len(found) == 1:
        return next(iter(found.items()))
    if embeddings in found:
        return embeddings, found[embeddings]
    raise ValueError(
        "Invalid value for argument `embeddings`. Expected the name of one of the model's stacked "
        "outputs (batch, 2, dim) and ContrastiveTerms (or None, if there is only one), which are "
        f"{sorted(found)}. Received: embeddings={embeddings!r}"
    )


def _is_stacked(x) -> bool:
    return len(x.shape) == 3 and x.shape[1] == 2


def _unit(x):
    """Scales the vectors to length 1; a zero vector stays zero."""
    with np.errstate(invalid="ignore", over="ignore"):  # Infinite values become NaN.
        length = np.linalg.norm(x, axis=1, keepdims=True)
        return x / np.where(length == 0, 1, length)


def _ranks(queries, candidates, labels, tile_size):
    """Returns the rank of the best right candidate of each query: `(items,)`, int."""
    items = len(queries)
    labels = np.arange(items) if labels is None else labels
    # Similarities of equal unit vectors differed by up to 2.5 roundings at dim 4,096.
    rounding = 8 * np.finfo("float32").eps
    ranks = np.empty(items, "int64")
    for start in range(0, items, tile_size):
        rows = slice(start, start + tile_size)
        similarity = queries[rows] @ candidates.T  # (tile, items)
        is_right = labels[rows, None] == labels[None, :]
        best = np.max(np.where(is_right, similarity, -np.inf), axis=1, keepdims=True)
        # NaN does not count as behind, so that a model that has diverged finds nothing.
        is_behind = similarity < best - rounding
        ranks[rows] = 1 + np.count_nonzero(~is_behind & ~is_right, axis=1)
    return ranks
