"""Which candidates of a search are right for which queries."""

from typing import Any, NamedTuple

import keras
import numpy as np

from keras_jointloss._core.validation import invalid


class Relevance(NamedTuple):
    """The right candidates of each query, listed as pairs in the order of the queries."""

    queries: int  # The number of queries
    candidates: int | None  # The number of candidates; `None` if not known yet
    rows: np.ndarray  # `(pairs,)`, int: the query of each pair, ascending
    columns: np.ndarray  # `(pairs,)`, int: the candidate of each pair

    def block(self, start: int, stop: int) -> np.ndarray:
        """Returns whether each candidate is right: `(stop - start, candidates)`, bool."""
        right = np.zeros((stop - start, self.candidates or 0), "bool")
        pairs = slice(*np.searchsorted(self.rows, [start, stop]))
        right[self.rows[pairs] - start, self.columns[pairs]] = True
        return right

    def transposed(self) -> "Relevance":
        """Returns the right queries of each candidate."""
        order = np.argsort(self.columns, kind="stable")
        return Relevance(self.candidates or 0, self.queries, self.columns[order], self.rows[order])

    def validated(self, queries: int | None, candidates: int | None) -> "Relevance":
        """Returns the relevance between sets of these sizes; `None` for a size not known yet."""
        if queries is not None and queries != self.queries:
            raise _invalid(f"right candidates of each of the {queries} queries", self.queries)
        if candidates is None:
            return self
        if self.candidates is not None and self.candidates != candidates:
            raise _invalid(f"a column for each of the {candidates} candidates", self.candidates)
        if self.columns.max() >= candidates:
            raise _invalid(f"indices below {candidates} (the candidates)", self.columns.max())
        return Relevance(self.queries, candidates, self.rows, self.columns)


class LabelRelevance(NamedTuple):
    """Relevance of pairs: the other item of the pair and those with its label are right."""

    labels: np.ndarray

    def block(self, start: int, stop: int) -> np.ndarray:
        """Returns whether each candidate is right: `(stop - start, items)`, bool."""
        right = self.labels[start:stop, None] == self.labels[None, :]
        items = np.arange(start, stop)
        right[items - start, items] = True  # A label that is NaN is not equal to itself.
        return right

    def transposed(self) -> "LabelRelevance":
        """Returns the right queries of each candidate."""
        return self


def validate_sets(data, queries, candidates, relevant) -> Relevance | None:
    """Returns the relevance between queries and candidates; `None` if there is `data` instead."""
    sets = {"queries": queries, "candidates": candidates, "relevant": relevant}
    if data is not None:
        expect_none(sets, "`data` is given")
        return None
    if all(value is None for value in sets.values()):
        raise invalid(
            "data", "inputs, or in its place `queries`, `candidates` and `relevant`", None
        )
    for name, value in sets.items():
        if value is None:
            expected = "all of `queries`, `candidates` and `relevant`, since `data` is not given"
            raise invalid(name, expected, None)
    return parse_relevant(relevant).validated(_number(queries), _number(candidates))


def expect_none(arguments: dict[str, Any], reason: str) -> None:
    """Raises `ValueError` for the first of the arguments that is given."""
    for name, value in arguments.items():
        if value is not None:
            received = f"{name} of type {type(value).__name__}"
            raise invalid(name, f"None, since {reason}", received=received)


def _number(inputs) -> int | None:
    """Returns the number of items, or `None` if the inputs are not arrays."""
    arrays = keras.tree.flatten(inputs)
    if not arrays or not all(isinstance(x, np.ndarray) and x.ndim > 0 for x in arrays):
        return None
    return len(arrays[0])


def parse_relevant(relevant: Any) -> Relevance:
    """Returns the relevance that the argument `relevant` describes."""
    try:
        array = np.asarray(relevant)
    except ValueError:  # The rows have different lengths.
        array = np.empty(0, "object")
    candidates = None
    if array.dtype == bool and array.ndim == 2:
        queries, candidates = array.shape
        rows, columns = np.nonzero(array)
    else:
        if array.dtype.kind in "iu" and array.ndim in (1, 2):
            lists = list(array[:, None] if array.ndim == 1 else array)
        elif isinstance(relevant, list | tuple) or array.dtype == object:
            lists = [_indices(row) for row in relevant]
        else:
            raise _unknown(f"an array of shape {array.shape} and dtype {array.dtype}")
        queries = len(lists)
        rows = np.repeat(np.arange(queries), [len(row) for row in lists])
        columns = np.concatenate(lists).astype("int64") if lists else np.empty(0, "int64")
        order = np.lexsort((columns, rows))
        rows, columns = rows[order], columns[order]
    if not columns.size:
        raise _invalid("at least one right candidate", "none")
    if columns.min() < 0:
        raise _invalid("indices >= 0", columns.min())
    again = np.flatnonzero((np.diff(rows) == 0) & (np.diff(columns) == 0))
    if again.size:
        query, candidate = rows[again[0]], columns[again[0]]
        raise _invalid(
            "each right candidate once", f"candidate {candidate} twice for query {query}"
        )
    return Relevance(queries, candidates, rows, columns)


def _indices(row) -> np.ndarray:
    """Returns the indices of the right candidates of one query."""
    try:
        array = np.asarray(row)
    except ValueError:
        array = np.empty(())
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise _unknown(f"{row!r} for one of the queries")
    return array.astype("int64")


def _unknown(received):
    return _invalid(
        "for each query the index of its right candidate, a list of such indices, or a row of "
        "booleans, one for each candidate",
        received,
    )


def _invalid(expected, received):
    return invalid("relevant", expected, received=received)
