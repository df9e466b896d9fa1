"""The callback that evaluates retrieval over a whole data set at the end of an epoch."""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_jointloss._core.relevance import (
    LabelRelevance,
    Relevance,
    expect_none,
    validate_sets,
)
from keras_jointloss._core.types import Labels, Logs, Nested
from keras_jointloss._core.validation import (
    invalid,
    validate_bool,
    validate_counts,
    validate_name,
)
from keras_jointloss.callbacks._summaries import OnLog
from keras_jointloss.callbacks.retrieval._embeddings import (
    Found,
    embed_pairs,
    embed_sides,
    find_pairs,
    find_sides,
    validate_embeddings,
)
from keras_jointloss.callbacks.retrieval._evaluation import RUN, Evaluation
from keras_jointloss.callbacks.retrieval._figures import retrieval_figures
from keras_jointloss.tensorboard import write_projector
from keras_jointloss.tensorboard.projector import validate_thumbnails


class RetrievalEvaluation(Evaluation):
    """Measures at the end of an epoch how well a search of a whole data set finds what is right.

    The callback searches with each `a` among all `b`, by cosine, and vice versa. With `data`, `a`
    and `b` are the two embeddings of each item, right for each other. With `queries`, `candidates`
    and `relevant` they are two sets of any sizes, as with five captions an image: `a` embeds the
    queries, `b` the candidates, and `relevant` tells which belong together.

    The position of a right candidate is its number among the right ones, the nearest first,

        j + number of wrong candidates that are at least as similar as the j-th right candidate

    so that ties, including those within rounding, count against the model. The rank of a query is
    the position of its nearest right candidate. The `logs` of the epoch, and thus `History` and
    every later callback in the list, get

    - `<name>_a_to_b_recall_at_<k>`: the share of queries with a rank of at most `k`,
    - `<name>_a_to_b_mean_reciprocal_rank`: the mean of one over the rank,
    - `<name>_a_to_b_median_rank`: the median of the ranks,

    and, with `labels` or `relevant`, for a query with `R` right candidates at the positions `p_j`

    - `<name>_a_to_b_ndcg_at_<k>`: the normalized discounted cumulative gain, the mean of
      `sum_{p_j <= k} 1 / log2(1 + p_j)`, divided by its value if the right candidates came first,
    - `<name>_a_to_b_mean_average_precision`: the mean of `1/R sum_j j / p_j`.

    The same follow with `b_to_a`, and, without either, the mean of both directions, such as
    `<name>_recall_at_<k>`. A query without a right candidate counts in none of the means, but a
    candidate that is right for no query counts as wrong for all. If an embedding holds NaN or
    infinity, all figures are NaN.

    `recall_at_<k>` is R@k as reported for CLIP: a query with several right candidates is a hit if
    any of them is among the first `k`. (The share of the right ones that are found is lower.) With
    images as `queries` and captions as `candidates`, `a_to_b` is text retrieval and `b_to_a` image
    retrieval.

    To monitor one of them with `keras.callbacks.EarlyStopping` or `ModelCheckpoint`, put this
    callback before that one, and measure after every epoch. The similarities are computed in tiles
    of rows: memory holds the embeddings and a few times `tile_size * n` numbers for `n` candidates,
    never all similarities.

    With a `log_dir` the callback writes `retrieval/<name>/a_to_b_recall_at_<k>` and so on to the
    TensorBoard run `validation` over the training step. With `projector=True` it also writes the
    embeddings of the last evaluation for TensorBoard's projector when training ends.

    Args:
        data: Inputs as accepted by `model.predict`, or `None` with `queries`.
        k: One or several whole numbers >= 1.
        every: The number of epochs from one measurement to the next.
        embeddings: The embeddings to use: the name of an output of stacked views `(batch, 2, dim)`
            or of a `keras_jointloss.layers.ContrastiveTerm` in a Functional model (not inside a
            nested model), or two names of outputs `(batch, dim)`; if two outputs have the name
            `term` of their layer, `("term[0]", "term[1]")`. `None` for the only stacked output or
            `ContrastiveTerm`. With `queries` also one or two names of nested models
            (towers), or of one output `(batch, dim)` for both; `None` is also an only output.
        labels: `(items,)`, in the order of the data. Candidates with the query's label are also
            right, and the best of them determines the rank, so that duplicates are not errors.
            Only with `data`.
        name: Prefix of the keys, by default the name of the embeddings.
        batch_size: Batch size of the prediction, as in `model.predict`.
        tile_size: The number of queries to compare with all candidates at once.
        log_dir: The folder for TensorBoard, or `None` to write nothing.
        projector: Whether to write the embeddings for TensorBoard's projector.
        thumbnails: `(items, height, width, 3)`, uint8: a picture of each item for the projector.
            Only with `data`.
        queries: Inputs as accepted by `predict` of what computes their embeddings: of a nested
            model; of a Functional model those inputs on which the embedding depends (a dict, if
            the model takes one); of another model all inputs.
        candidates: The same for the candidates.
        relevant: For each query the index of its right candidate, `(queries,)`, or the indices of
            its right candidates, a list of lists of any lengths or `(queries, number)`; or
            `(queries, candidates)`, bool.
        on_log: Called as `on_log("validation", {tag: value}, step)` with the scalars above, with or
            without a `log_dir`; for other trackers. Of several processes, all measure, and only the
            chief writes and calls.

    Raises:
        ValueError: If an argument is invalid; at the start of `fit` (at the first evaluation for a
            model that is not Functional), if the embeddings are not found or are ambiguous; at an
            evaluation, if the number of labels or thumbnails differs from that of the items, or
            `relevant` does not fit the numbers of queries and candidates. If these are arrays, the
            constructor raises.
        OSError: At the start of `fit`, if `log_dir` cannot be written. Later, and if `on_log`
            fails, training goes on as with `JointLossCallback`.

    References:
        - Radford et al., 2021, Learning Transferable Visual Models From Natural Language
          Supervision (CLIP); R@k as in `zeroshot_retrieval.py` of
          https://github.com/LAION-AI/CLIP_benchmark
        - Järvelin & Kekäläinen, 2002, Cumulated Gain-Based Evaluation of IR Techniques

    Example:

    >>> import numpy as np
    >>> import keras
    >>> x = keras.Input((3,))
    >>> model = keras.Model(x, {"pair": keras.ops.stack([x, -x], axis=1)})
    >>> callback = RetrievalEvaluation(np.eye(3), k=(1, 2), embeddings="pair")
    >>> result = callback.evaluate(model)
    >>> result["pair_recall_at_1"], result["pair_median_rank"]
    (0.0, 3.0)

    Two images, the first with two captions, the second with one:

    >>> image, text = keras.Input((2,)), keras.Input((2,))
    >>> model = keras.Model([image, text], keras.ops.stack([image, text], axis=1))
    >>> captions = np.array([[1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    >>> callback = RetrievalEvaluation(
    ...     queries=np.eye(2), candidates=captions, relevant=[[0, 1], [2]], k=1, name="images"
    ... )
    >>> result = callback.evaluate(model)
    >>> result["images_a_to_b_recall_at_1"], round(result["images_b_to_a_recall_at_1"], 4)
    (0.5, 0.6667)
    """

    _group = "retrieval"

    def __init__(
        self,
        data: Nested = None,
        k: int | Iterable[int] = (1, 5, 10),
        every: int = 1,
        embeddings: str | Iterable[str] | None = None,
        labels: Labels = None,
        name: str | None = None,
        batch_size: int | None = None,
        tile_size: int = 1024,
        log_dir: str | os.PathLike[str] | None = None,
        projector: bool = False,
        thumbnails: np.ndarray | None = None,
        queries: Nested = None,
        candidates: Nested = None,
        relevant: np.ndarray | Sequence[Any] | None = None,
        on_log: OnLog | None = None,
    ):
        super().__init__(every, batch_size, tile_size, log_dir, on_log)
        self.data = data
        self.k = validate_counts(k, "k")
        self.embeddings = validate_embeddings(embeddings)
        self.labels = None if labels is None else np.reshape(np.asarray(labels), (-1,))
        self.name = validate_name(name)
        for argument, value in (("projector", projector), ("thumbnails", thumbnails)):
            if value is not None and value is not False and log_dir is None:
                raise invalid("log_dir", f"a folder, since `{argument}` is given", None)
        if thumbnails is not None:
            validate_thumbnails(thumbnails, copies=2)
        self.projector = validate_bool(projector, "projector") or thumbnails is not None
        self.thumbnails = thumbnails
        self.queries, self.candidates = queries, candidates
        self._relevance = validate_sets(data, queries, candidates, relevant)
        if self._relevance is not None:
            expect_none({"labels": labels, "thumbnails": thumbnails}, "`queries` is given")
        self._found: Found | None = None
        self._latest: tuple[str, np.ndarray, np.ndarray] | None = None

    def _find(self, model: keras.Model) -> None:
        find = find_pairs if self._relevance is None else find_sides
        self._found = find(model, self.embeddings)

    def on_train_begin(self, logs: Logs = None) -> None:
        self._latest = None
        super().on_train_begin(logs)

    def on_train_end(self, logs: Logs = None) -> None:
        log_dir = self._summaries.log_dir
        if log_dir is not None and self.projector and self._latest is not None:
            with self._summaries.writing():
                self._write_projector(os.path.join(log_dir, RUN), *self._latest)
        super().on_train_end(logs)
        self._latest = None

    def _measure(self) -> tuple[str, dict[str, float]]:
        name, a, b = self._embed()
        self._latest = (name, a, b) if self.projector else None
        for what, values in (("labels", self.labels), ("thumbnails", self.thumbnails)):
            if values is not None and len(values) != len(a):
                expected = f"one for each of the {len(a)} items of the data"
                raise invalid(what, expected, received=f"{len(values)} {what}")
        relevance: Relevance | LabelRelevance
        if self._relevance is None:
            labels = np.arange(len(a)) if self.labels is None else self.labels
            relevance = LabelRelevance(labels)
        else:
            relevance = self._relevance.validated(len(a), len(b))
        has_several = self._relevance is not None or self.labels is not None
        return name, retrieval_figures(a, b, relevance, self.k, self.tile_size, has_several)

    def _embed(self):
        """Returns the name of the embeddings and the two sets of them, `(items, dim)`."""
        model = self.model  # On JAX this copies the state of the step into the variables.
        arguments = (model, self._found, self.embeddings)
        if self._relevance is None:
            name, a, b = embed_pairs(*arguments, self.data, self.batch_size)
        else:
            sets = (self.queries, self.candidates)
            name, a, b = embed_sides(*arguments, sets, self.batch_size)
        return self.name or name, a, b

    def _write_projector(self, run, name, a, b):
        metadata = {
            "view": ["a"] * len(a) + ["b"] * len(b),
            "item": [*range(len(a)), *range(len(b))],
        }
        if self.labels is not None:
            metadata["label"] = [*self.labels] * 2
        thumbnails = None if self.thumbnails is None else np.concatenate([self.thumbnails] * 2)
        write_projector(run, name, np.concatenate([a, b]), metadata, thumbnails)
