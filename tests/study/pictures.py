"""The pictures of the study: what each way reaches in two tasks, beside the trials of constants."""

import itertools

import numpy as np

from tests.benchmarks.benchmark_weights import import_example
from tests.study.ways import WAYS, Trial

COLORS = {"constants": "black", "probe": "C3", "rule": "C0", "aggregator": "C2"}
#: Of the letters, and the width of one, in points.
SIZE, WIDTH = 7, 4


def points_of_constants(first, tasks, results):
    """Returns the test scores of the constants tried with the middle learning rate."""
    tried = [first._replace(way="tuned", draw=draw) for draw in range(WAYS["tuned"].draws)]
    lines = [results[trial] for trial in tried if "scores" in results.get(trial, {})]
    points = np.array([[line["scores"][task] for task in tasks] for line in lines], float)
    return points[np.isfinite(points).all(axis=1)] if len(points) else np.zeros((0, 2))


def limits(values, shown, above=0.08):
    """Returns the ends of an axis. Ways far worse than most are left out, but for those `shown`."""
    top, middle = np.max(values), np.median(values)
    bottom = max(np.min(values), min([middle - 4 * (top - middle), *shown]))
    size = top - bottom or 0.1
    return bottom - 0.08 * size, top + above * size


def draw_panel(axes, rows, tasks, results):
    """Draws the ways of a set-up with one optimizer by two of their scores.

    Returns:
        The ways to name, with their points.
    """
    constants = points_of_constants(Trial(*rows[0].first), tasks, results)
    if len(constants):
        front = import_example("weighting").pareto_front(constants)
        axes.plot(*constants[front].T, color="0.7", linewidth=1)
        axes.plot(*constants.T, "o", color="0.7", markersize=4)
    found = {
        row.first.way: [row.scores[task].mean() for task in tasks] for row in rows if row.scores
    }
    found = {way: point for way, point in found.items() if np.isfinite(point).all()}
    points = np.reshape(list(found.values()), (-1, 2))
    front = import_example("weighting").pareto_front(points) if len(points) else ()
    best = {way for i, way in enumerate(found) if i in {*front}}
    for way, point in found.items():
        axes.plot(*point, "s", color=COLORS[WAYS[way].group], markersize=4)
    values = np.concatenate([constants, points])
    if len(values):
        shown = [found[x] for x in ("equal", "tuned", "probe, gradient") if x in found]
        x, y = np.reshape(shown, (-1, 2)).T
        axes.set(xlim=limits(values[:, 0], x, above=0.3), ylim=limits(values[:, 1], y))
    axes.set(xlabel=tasks[0], ylabel=tasks[1])
    # More would lie on each other.
    named = best | {way for way in found if WAYS[way].group in ("constants", "probe")}
    return {way: point for way, point in found.items() if way in named}


def name_points(axes, named):
    """Writes the names of ways beside their points, each above those that it would lie on.

    Args:
        axes: The panel, whose size and limits are final.
        named: The points by way.
    """
    places = {
        way: axes.transData.transform(point) * 72 / axes.figure.dpi for way, point in named.items()
    }
    placed = []
    for way, (x, y) in sorted(places.items(), key=lambda place: place[1][1]):
        end, height = x + WIDTH * len(way), y
        for left, right, other in placed:  # From below.
            if left < end and x < right and abs(other - height) < SIZE:
                height = other + SIZE
        placed = sorted([*placed, (x, end, height)], key=lambda label: label[2])
        axes.annotate(
            way,
            named[way],
            (4, 2 + height - y),
            textcoords="offset points",
            color=COLORS[WAYS[way].group],
            fontsize=SIZE,
            arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.5, "shrinkB": 2}
            if height > y
            else None,
        )


def draw(cases, results, path):
    """Draws a panel for each optimizer and each pair of the first task with another.

    Args:
        cases: The rows of the tables by set-up and optimizer.
        results: By trial.
        path: The file of the picture.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = {case: rows for case, rows in cases.items() if any(row.scores for row in rows)}
    tasks = next(list(row.scores) for rows in cases.values() for row in rows if row.scores)
    panels = list(itertools.product(cases, [(tasks[0], other) for other in tasks[1:]]))
    figure, axes = pyplot.subplots(
        1, len(panels), figsize=(5.5 * len(panels), 4.5), squeeze=False, layout="constrained"
    )
    named = []
    for (case, pair), panel in zip(panels, axes[0], strict=True):
        named.append(draw_panel(panel, cases[case], pair, results))
        panel.set_title(case[1])
    handles = [pyplot.Line2D([], [], color=x, marker="s", linestyle="") for x in COLORS.values()]
    axes[0, 0].legend(handles, COLORS, fontsize=SIZE, loc="lower left")
    figure.draw_without_rendering()  # The layout gives the panels their size.
    for panel, ways in zip(axes[0], named, strict=True):
        name_points(panel, ways)
    # Without the time or the version in the file, an equal picture is an equal file.
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)
