"""What a figure shows of the runs, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

from keras_jointloss._core.validation import (
    invalid,
    validate_choice,
    validate_count,
    validate_share,
)
from keras_jointloss.tensorboard.runs import AXES, SPLITS, Run, find_terms

#: How several runs are compared: each in a row of its own, or in the same axes.
COMPARISONS = ("rows", "overlay")
SCALES = ("linear", "log")
THEMES = ("light", "dark")


@dataclass(frozen=True)
class View:
    """The options of a figure.

    Attributes:
        terms: The names of the terms to show, or `None` for all.
        compare: `"rows"` for each run in a row of its own, `"overlay"` for all in the same axes.
        x: `"step"`, `"epoch"` or `"time"` (minutes).
        smoothing: The factor of an exponential moving average, at least 0 and less than 1.
        share: Whether the weighted losses are shown as shares of the total.
        splits: `"train"`, `"validation"` or both.
        scale: `"linear"` or `"log"`, or `None` for what suits the kind.
        theme: `"light"` or `"dark"`.
        a: For `"pareto"`, a term, or the name of any logged value.
        b: The same for the other axis.
        palette: The names of all terms that may get a color, or `None` for those of the runs: a
            term has the same color in all figures with the same palette.
        points: The number of points to draw of a line, about.
        columns: The number of axes side by side, at most.
    """

    terms: Sequence[str] | None = None
    compare: str = "rows"
    x: str = "step"
    smoothing: float = 0.0
    share: bool = False
    splits: Sequence[str] = SPLITS
    scale: str | None = None
    theme: str = "light"
    a: str | None = None
    b: str | None = None
    palette: Sequence[str] | None = None
    points: int = 1000
    columns: int = 3

    def __post_init__(self):
        validate_choice(self.compare, "compare", COMPARISONS)
        validate_choice(self.x, "x", AXES)
        validate_choice(self.theme, "theme", THEMES)
        if self.scale is not None:
            validate_choice(self.scale, "scale", SCALES)
        splits = self.splits
        if isinstance(splits, str) or not splits or any(x not in SPLITS for x in splits):
            raise invalid("splits", f"one or several of {SPLITS}", splits)
        validate_count(self.points, "points")
        validate_count(self.columns, "columns")
        validate_share(self.smoothing, "smoothing")

    def shown_terms(self, runs: Sequence[Run]) -> list[str]:
        """Returns the terms to show, in the order of their names."""
        found = find_terms(runs)
        if self.terms is None:
            return found
        unknown = [term for term in self.terms if term not in found]
        if unknown:
            note = f", with the unknown terms {unknown}"
            raise invalid("terms", f"terms of the runs, {found}", list(self.terms), note)
        return [term for term in found if term in self.terms]
