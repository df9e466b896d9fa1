"""Whether a series falls, rises or stands still, as far as its scatter lets us know."""

import math
from typing import Literal, NamedTuple

import numpy as np

#: A scatter is measured from at least four second differences.
FEWEST = 6
#: Changes below this share of the level do not matter, whatever the scatter.
_SMALL = 0.01
#: A series is flat only if a change of this share of its level would have shown.
_VISIBLE = 0.05
#: In standard errors: of 700 series of pure noise, one seems to move.
_ERRORS = 3.0


class Trend(NamedTuple):
    """The straight line through a series.

    Attributes:
        change: The change of the line from the first point to the last.
        level: The size of the values: the absolute median, or the range if that is larger.
        verdict: `"unknown"` if there are too few points or too much scatter.
    """

    change: float
    level: float
    verdict: Literal["falls", "rises", "flat", "unknown"]

    @property
    def relative(self) -> float:
        """The change as a share of the level."""
        return self.change / self.level if self.level else 0.0


def scatter(values: np.ndarray) -> float:
    """Returns the standard deviation of a series around a smooth curve; NaN of too few points.

    It is that of the second differences over `sqrt(6)`, which a straight line does not change and a
    smooth curve hardly does. Computed from the mean absolute value, one outlier counts little.

    Example:

    >>> scatter(np.arange(10.0))
    0.0
    """
    if len(values) < FEWEST:
        return math.nan
    return float(np.mean(np.abs(np.diff(values, 2))) * math.sqrt(math.pi / 2 / 6))


def trend(values: np.ndarray) -> Trend:
    """Returns the trend of a series of finite values, equally far apart.

    It falls or rises if the line changes by three standard errors, given the scatter, and by 1 % of
    the level. It is flat if it does neither, although a change of 5 % would have shown.

    Example:

    >>> trend(np.array([2.0, 1.6, 1.3, 1.1, 0.9, 0.8])).verdict
    'falls'
    """
    count = len(values)
    if count < FEWEST:
        return Trend(math.nan, math.nan, "unknown")
    change = float(np.polyfit(np.arange(count), values, 1)[0] * (count - 1))
    level = max(abs(float(np.median(values))), float(np.ptp(values)))
    error = scatter(values) * math.sqrt(12 * (count - 1) / (count * (count + 1)))
    least = max(_ERRORS * error, _SMALL * level)
    if abs(change) > least:
        return Trend(change, level, "falls" if change < 0 else "rises")
    return Trend(change, level, "flat" if _ERRORS * error <= _VISIBLE * level else "unknown")


def smoothed(values: np.ndarray) -> np.ndarray:
    """Returns the medians of three neighbours; the first and last value stay."""
    if len(values) < 3:
        return values
    middle = np.median(np.stack([values[:-2], values[1:-1], values[2:]]), axis=0)
    return np.concatenate([values[:1], middle, values[-1:]])


def turn(values: np.ndarray) -> tuple[int, float] | None:
    """Returns where a series that has fallen is least, and how far it has risen since.

    `None` unless it has risen for at least three points and a tenth of the series by more than
    four times its scatter, 5 % of the least value and 1 % of its range.

    Example:

    >>> turn(np.array([1.0, 0.7, 0.5, 0.6, 0.7, 0.8, 0.9]))
    (2, 0.2)
    """
    count = len(values)
    if count < FEWEST:
        return None
    curve = smoothed(values)
    # Not a single point that happens to be low at the end.
    at = int(np.argmin(curve[: count - 1]))
    if count - 1 - at < max(3, count / 10):
        return None
    at = max(0, at - 1) + int(np.argmin(values[max(0, at - 1) : at + 2]))
    rise = float(np.median(values[-3:]) - curve[at])
    least = max(4 * scatter(values), 0.05 * abs(curve[at]), 0.01 * float(np.ptp(values)))
    is_turn = rise > least and bool(np.all(values[-3:] > curve[at] + least / 2))
    return (at, round(rise, 12)) if is_turn else None
