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
#: Which axes have the same range: those of a run in a row of its own, or those of all runs.
RANGES = ("run", "shared")
SCALES = ("linear", "log")
THEMES = ("light", "dark")


@dataclass(frozen=True)
class View:
    """The options of a figure."""

    terms: Sequence[str] | None = None  # The names of the terms to show, or `None` for all
    #: `"rows"` for each run in a row of its own, `"overlay"` for all in the same axes.
    compare: str = "rows"
    #: For runs in rows of their own: `"run"` for axes that suit each run, so that the lines of one
    #: with small values are not flat, or `"shared"` for the same y axes, to compare them.
    ranges: str = "run"
    events: bool = True  # Whether events are marked: ends of schedules, terms switched off, faults
    x: str = "step"  # `"step"`, `"epoch"` or `"time"` (minutes)
    #: The factor of an exponential moving average, at least 0 and less than 1.
    smoothing: float = 0.0
    share: bool = False  # Whether the weighted losses are shown as shares of the total
    splits: Sequence[str] = SPLITS  # `"train"`, `"validation"` or both
    scale: str | None = None  # `"linear"` or `"log"`, or `None` for what suits the kind
    theme: str = "light"  # `"light"` or `"dark"`
    a: str | None = None  # For `"pareto"`, a term, or the name of any logged value
    b: str | None = None  # The same for the other axis
    #: The names of all terms that may get a color, or `None` for those of the runs: a term has the
    #: same color in all figures with the same palette.
    palette: Sequence[str] | None = None
    points: int = 1000  # The number of points to draw of a line, about
    columns: int = 3  # The number of axes side by side, at most

    def __post_init__(self):
        validate_choice(self.compare, "compare", COMPARISONS)
        validate_choice(self.ranges, "ranges", RANGES)
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

    def group(self, name: str, run: Run) -> str:
        """Returns which axes have the same range of y: the name of a group of them."""
        is_own = self.ranges == "run" and self.compare == "rows"
        return f"{name} of {run.name}" if is_own else name

    def has_gradient(self, name: str) -> bool:
        """Returns whether a gradient, named by its term, perhaps after its layer, is of a term."""
        ends = self.terms
        return ends is None or any(name == x or name.endswith((f"/{x}", f"_{x}")) for x in ends)

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
