"""The callback that classifies embeddings by their nearest neighbours at the end of an epoch."""

import math
import os
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_jointloss._core.types import Labels, Nested
from keras_jointloss._core.validation import (
    invalid,
    validate_count,
    validate_counts,
    validate_number,
)
from keras_jointloss.callbacks._summaries import OnLog
from keras_jointloss.callbacks.retrieval._embeddings import Found, embed_single, find_single
from keras_jointloss.callbacks.retrieval._evaluation import Evaluation
from keras_jointloss.callbacks.retrieval._figures import unit


class KNNEvaluation(Evaluation):
    """Measures at the end of an epoch how well nearest neighbours classify embeddings.

    This tells whether embeddings that were learned without labels hold the classes, without a
    classifier to train, for data of one modality. The embedding of each item of `data` is compared
    with those of a labelled *bank*, usually of the training data. Its `k` most similar items of the
    bank vote for their classes, with the cosine `s_j` of each:

        score_c = sum_{j in N_k} exp(s_j / temperature) * [label_j = c]

    The `logs` of the epoch, and thus `History` and every later callback in the list, get

    - `<name>_accuracy`, the share of items whose class has the highest score, and
    - `<name>_top_<n>_accuracy` for each `n` > 1 of `top`, the share of those whose class is among
      the `n` with the highest scores.

    A class without a vote does not count as found, and ties count against the model. If an
    embedding holds NaN or infinity, the figures are NaN.

    To monitor the accuracy with `keras.callbacks.EarlyStopping` or `ModelCheckpoint`, put this
    callback before that one, and measure after every epoch. The similarities are computed in tiles
    of rows: memory holds the embeddings and a few times `tile_size * n` numbers for `n` items of
    the bank. With a `log_dir` the callback writes `knn/<name>/accuracy` and so on to the
    TensorBoard run `validation` over the training step.

    Args:
        bank: Inputs as accepted by `predict` of what computes the embeddings: of a nested model; of
            a Functional model those inputs on which the embedding depends (a dict, if the model
            takes one); of another model all inputs.
        bank_labels: The classes of the bank, `(items,)`, numbers or strings.
        data: The inputs to classify, likewise.
        labels: Their classes.
        k: The number of neighbours that vote, >= 1; all, if the bank has fewer.
        temperature: A number > 0. Large ones give each neighbour the same vote.
        top: One or several whole numbers >= 1: the numbers of classes to consider.
        every: The number of epochs from one measurement to the next.
        embeddings: The name of an output `(batch, dim)` or of a nested model (a tower), or `None`
            for the only such output.
        name: Prefix of the keys.
        batch_size: Batch size of the prediction, as in `model.predict`.
        tile_size: The number of items to compare with the bank at once.
        log_dir: The folder for TensorBoard, or `None` to write nothing.
        on_log: Called as `on_log("validation", {tag: value}, step)` with the scalars above, with or
            without a `log_dir`. Of several processes, only the chief writes and calls.

    Raises:
        ValueError: If an argument is invalid; at the start of `fit` (at the first evaluation for a
            model that is not Functional), if the embeddings are not found or are ambiguous; at an
            evaluation, if the number of labels differs from that of the items.
        OSError: At the start of `fit`, if `log_dir` cannot be written. Later, and if `on_log`
            fails, training goes on as with `JointLossCallback`.

    References:
        - Wu et al., 2018, Unsupervised Feature Learning via Non-Parametric Instance Discrimination
          (k = 200, temperature = 0.07)

    Example:

    >>> import numpy as np
    >>> import keras
    >>> x = keras.Input((2,))
    >>> model = keras.Model(x, keras.layers.Identity()(x))
    >>> bank = np.array([[1.0, 0.0], [1.0, 0.2], [0.0, 1.0]])
    >>> data = np.array([[2.0, 0.0], [0.1, 1.0]])
    >>> KNNEvaluation(bank, ["a", "a", "b"], data, ["a", "a"], k=2).evaluate(model)
    {'val_knn_accuracy': 0.5}
    """

    _group = "knn"

    def __init__(
        self,
        bank: Nested,
        bank_labels: Labels,
        data: Nested,
        labels: Labels,
        k: int = 200,
        temperature: float = 0.07,
        top: int | Iterable[int] = 1,
        every: int = 1,
        embeddings: str | None = None,
        name: str = "val_knn",
        batch_size: int | None = None,
        tile_size: int = 1024,
        log_dir: str | os.PathLike[str] | None = None,
        on_log: OnLog | None = None,
    ):
        super().__init__(every, batch_size, tile_size, log_dir, on_log)
        self.bank, self.data = bank, data
        classes, self._bank_classes = np.unique(
            _flat(bank_labels, "bank_labels"), return_inverse=True
        )
        labels = _flat(labels, "labels")
        # Classes that the bank does not have are found by nobody.
        known = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
        self._classes = np.where(classes[known] == labels, known, -1)
        self.k = validate_count(k, "k")
        self.temperature = validate_number(temperature, "temperature", 0, exclusive=True)
        self.top = validate_counts(top, "top")
        if embeddings is not None and not isinstance(embeddings, str):
            raise invalid("embeddings", "None or a name", embeddings)
        self.embeddings = embeddings
        if not isinstance(name, str):
            raise invalid("name", "a string", name)
        self.name = name
        self._found: Found | None = None

    def _find(self, model: keras.Model) -> None:
        self._found = find_single(model, self.embeddings)

    def _measure(self) -> tuple[str, dict[str, float]]:
        bank = self._embed("bank_labels", self.bank, self._bank_classes)
        data = self._embed("labels", self.data, self._classes)
        factor = 1.0 if np.isfinite(bank).all() and np.isfinite(data).all() else math.nan
        bank, data = unit(bank), unit(data)
        ranks = np.concatenate(
            [
                self._ranks(data[start : start + self.tile_size], bank, start)
                for start in range(0, len(data), self.tile_size)
            ]
        )
        keys = {n: "accuracy" if n == 1 else f"top_{n}_accuracy" for n in self.top}
        return self.name, {key: factor * float(np.mean(ranks <= n)) for n, key in keys.items()}

    def _embed(self, argument: str, items: Any, classes: np.ndarray) -> np.ndarray:
        # On JAX reading the model copies the state of the step into the variables.
        model = self.model
        _, x = embed_single(model, self._found, self.embeddings, items, self.batch_size)
        if len(x) != len(classes):
            expected = f"one for each of the {len(x)} items"
            raise invalid(argument, expected, received=f"{len(classes)} labels")
        return x

    def _ranks(self, data: np.ndarray, bank: np.ndarray, start: int) -> np.ndarray:
        """Returns the rank of the class of each item, infinity without a vote: `(items,)`."""
        count = 1 + int(self._bank_classes.max())
        similarity = data @ bank.T
        k = min(self.k, len(bank))
        nearest = np.argpartition(similarity, -k, axis=1)[:, -k:]
        closeness = np.take_along_axis(similarity, nearest, axis=1).astype("float64")
        votes = np.exp((closeness - closeness.max(axis=1, keepdims=True)) / self.temperature)
        rows = np.arange(len(data))
        places = self._bank_classes[nearest] + count * rows[:, None]
        scores = np.bincount(places.ravel(), votes.ravel(), count * len(data))
        scores = scores.reshape(-1, count)
        own = self._classes[start : start + len(data)]
        score = np.where(own < 0, 0.0, scores[rows, own])
        # The class itself has its own score.
        rank = np.sum(scores >= score[:, None], axis=1)
        return np.where(score > 0, rank, np.inf)


def _flat(labels: Labels, name: str) -> np.ndarray:
    """Returns labels, one or more, as a vector."""
    try:
        flat = np.reshape(np.asarray(labels), (-1,))
    except ValueError:  # Rows of different lengths
        flat = np.zeros(0)
    if not flat.size or flat.dtype.kind not in "biufSU":
        raise invalid(name, "numbers or strings, one for each item", labels)
    return flat
