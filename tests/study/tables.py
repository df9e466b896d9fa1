"""Writes docs/study.md, its pictures and the results it rests on, from the results of the study.

Run: python -m tests.study.tables
"""

import argparse
import json
from pathlib import Path

import numpy as np

from tests.study.pictures import draw
from tests.study.run import KEPT, RESULTS, ROOT, firsts, read
from tests.study.setups import SETUPS
from tests.study.ways import WAYS, chosen, count

PAGE = ROOT / "docs" / "study.md"
TEXT = Path(__file__).with_name("study.md")
SEEDS = 3
#: How a way did beside tuned constants.
VERDICTS = ("better", "within one deviation", "worse")


class Row:
    """What became of a way in a set-up, with one optimizer.

    Attributes:
        first: The first trial of the way.
        ran: How many of its trials have run.
        trials: The trials that the row shows, one for each seed.
        scores: The scores on test data by task, `(seeds,)` each. NaN if not finite.
        values: What trials are compared by, of the test data, `(seeds,)`. NaN if one failed.
        epoch: After how many epochs the model was best on validation data, the mean.
        seconds: Of the processor, the mean.
        error: What one of the trials failed with.
    """

    def __init__(self, first, results):
        self.first = first
        self.trials = chosen(first, results)
        self.ran = sum(trial[:3] == first[:3] and trial.epochs == first.epochs for trial in results)
        lines = [results[trial] for trial in self.trials]
        self.error = next((line["error"] for line in lines if "error" in line), None)
        #: That of the first seed on validation data.
        self.score = lines[0]["score"] if lines else None
        score = SETUPS[first.setup].score
        values = [None if "error" in line else score(line["scores"]) for line in lines]
        self.values = np.array(values, float)
        lines = [line for line in lines if "error" not in line]
        names = list(lines[0]["scores"]) if lines else []
        self.scores = {
            name: np.array([line["scores"][name] for line in lines], float) for name in names
        }
        self.seconds = np.mean([line["seconds"] for line in lines]) if lines else np.nan
        self.epoch = np.mean([line["epoch"] for line in lines]) if lines else np.nan

    @property
    def is_whole(self):
        return self.ran >= count(self.first.way, SEEDS)


def deviation(*rows):
    """Returns the deviation over the seeds, pooled over the rows that have several."""
    found = [row.values.std(ddof=1) for row in rows if len(row.values) > 1]
    return np.sqrt(np.mean(np.square(found)))


def distance(row, tuned):
    """Returns by how many deviations a way is above tuned constants, on the seeds that it has.

    `None` if that cannot be said yet; minus infinity if a training failed.
    """
    if len(tuned.values) < SEEDS or not len(row.values) or not np.isfinite(tuned.values).all():
        return None
    if not np.isfinite(row.values).all():
        return -np.inf
    # A way with one seed has the first one.
    gap = np.mean(row.values - tuned.values[: len(row.values)])
    return gap / deviation(row, tuned)


def verdict(row, tuned):
    """Returns how a way did beside tuned constants; `None` if that cannot be said yet."""
    found = distance(row, tuned)
    if found is None:
        return None
    return VERDICTS[1] if abs(found) <= 1 else VERDICTS[0 if found > 0 else 2]


def cell(values, digits=3):
    """Returns the mean, and the deviation if there are several values."""
    if not np.isfinite(values).all():
        return f"not finite ({np.sum(~np.isfinite(values))} of {len(values)})"
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def markdown(head, lines):
    """Returns the lines of a table."""
    return [f"| {' | '.join(map(str, line))} |" for line in (head, ["---"] * len(head), *lines)]


def named(way):
    """Returns a way as the page names it: classes as code."""
    return f"`{way}`" if WAYS[way].group in ("rule", "aggregator") else way


def table(rows):
    """Returns the table of a set-up with one optimizer."""
    by_way = {row.first.way: row for row in rows}
    tuned, equal = by_way["tuned"], by_way["equal"]
    tasks = next((list(row.scores) for row in rows if row.scores), [])
    lines = []
    for row in rows:
        ran = f"{row.ran} of {count(row.first.way, SEEDS)}"
        if row.scores:
            cells = [
                *(cell(row.scores[task]) for task in tasks),
                cell(row.values),
                "" if row is tuned else verdict(row, tuned) or "",
                f"{row.trials[0].rate:.2g}",
                f"{row.epoch:.0f} of {row.first.epochs}",
                f"{row.seconds / equal.seconds:.2f}",
            ]
        else:
            cells = [row.error, *[""] * (len(tasks) + 4)]
        if row.ran:
            lines.append([named(row.first.way), *cells, ran])
    head = ["way", *tasks, "score", "beside tuned", "rate", "best epoch", "time", "trainings"]
    return markdown(head, lines)


def summary(rows_by_case):
    """Returns the table of how each way did beside tuned constants, over the cases."""
    counts, seeds = {}, {}
    for rows in rows_by_case.values():
        by_way = {row.first.way: row for row in rows}
        for way, row in by_way.items():
            kind = verdict(row, by_way["tuned"])
            if kind and way != "tuned":
                counts.setdefault(way, dict.fromkeys(VERDICTS, 0))[kind] += 1
                seeds[way] = seeds.get(way, 0) + (len(row.values) == SEEDS)
    if not counts:
        return ["Nothing can be said yet: nowhere have tuned constants three seeds."]
    worse = VERDICTS[2]
    totals = {way: sum(found.values()) for way, found in counts.items()}
    ranked = sorted(counts, key=lambda way: (counts[way][worse] / totals[way], -totals[way]))
    lines = [[named(way), *counts[way].values(), totals[way], seeds[way]] for way in ranked]
    return markdown(["way", *VERDICTS, "of", "of these with three seeds"], lines)


def signed(value):
    """Returns a number of deviations."""
    return "" if value is None else f"{value:+.1f}" if np.isfinite(value) else "not finite"


def proposals(rows_by_case):
    """Returns the table of the probe's proposals, beside equal weights and the best other way."""
    names = ["equal", "probe, gradient", "probe, loss"]
    lines, within = [], {name: [] for name in [*names, "best"]}
    for (setup, optimizer), rows in rows_by_case.items():
        by_way = {row.first.way: row for row in rows}
        tuned = by_way["tuned"]
        others = [x for x in rows if WAYS[x.first.way].group in ("rule", "aggregator")]
        others = [x for x in others if x.score is not None and distance(x, tuned) is not None]
        found = [distance(by_way[name], tuned) for name in names]
        best = max(others, key=lambda x: x.score, default=None)
        found.append(best and distance(best, tuned))
        if all(x is None for x in found):
            continue
        for name, x in zip(within, found, strict=True):
            within[name] += [] if x is None else [x >= -1]
        cells = [signed(x) for x in found]
        if best:
            cells[-1] += f" {named(best.first.way)}, {len(others)} tried, seeds: {len(best.values)}"
        lines.append([setup, f"`{optimizer}`", cell(tuned.values), *cells])
    count = [f"{sum(x)} of {len(x)}" for x in within.values()]
    lines.append(["at most one deviation worse", "", "", *count])
    best = "best rule or aggregator"
    return markdown(["set-up", "optimizer", "tuned", *names, best], lines)


def cost(results):
    """Returns the table of what a training and a probe cost."""
    lines = []
    for name in SETUPS:
        of_setup = {trial: x for trial, x in results.items() if trial.setup == name}
        equal = [x["seconds"] for k, x in of_setup.items() if k.way == "equal" and "seconds" in x]
        # One probe serves all trainings of a seed.
        probes = {(*k[:2], k.seed): x["probe"] for k, x in of_setup.items() if "probe" in x}
        if equal and probes:
            lines.append([name, f"{np.mean(equal):.1f}", f"{np.mean([*probes.values()]):.1f}"])
    return markdown(["set-up", "a training, s", "a probe, s"], lines)


def progress(rows_by_case):
    """Returns the table of what has run."""
    lines = []
    for (setup, optimizer), rows in rows_by_case.items():
        whole = sum(row.is_whole for row in rows)
        begun = sum(row.ran > 0 for row in rows) - whole
        ran, total = sum(x.ran for x in rows), sum(count(x.first.way, SEEDS) for x in rows)
        cells = f"{whole} of {len(rows)}", begun, f"{ran} of {total}"
        lines.append([setup, f"`{optimizer}`", *cells])
    return markdown(["set-up", "optimizer", "whole ways", "begun", "trainings"], lines)


def setups_table():
    """Returns the table of what the set-ups are."""
    lines = []
    for name, setup in SETUPS.items():
        terms = (x if weight == 1 else f"{x} x {weight:g}" for x, weight in setup.weights.items())
        rates = (f"`{optimizer}` {rate:g}" for optimizer, rate in setup.rates.items())
        lines.append([name, ", ".join(terms), ", ".join(rates), setup.epochs, setup.batch_size])
    return markdown(["set-up", "terms", "optimizers, middle rate", "epochs", "batch"], lines)


def page(results, pictures):
    """Returns the text of the page, after drawing its pictures.

    Args:
        results: By trial.
        pictures: The folder for the pictures.
    """
    rows_by_case = {}
    for first in firsts():
        rows_by_case.setdefault(first[:2], []).append(Row(first, results))
    parts = []
    for name in SETUPS:
        cases = {case: rows for case, rows in rows_by_case.items() if case[0] == name}
        if not any(row.ran for rows in cases.values() for row in rows):
            continue
        draw(cases, results, pictures / f"{name}.png")
        parts += [f"## {name.capitalize()}", "", SETUPS[name].__doc__.split("\n\n")[0], ""]
        for (_, optimizer), rows in cases.items():
            if any(row.ran for row in rows):
                parts += [f"With `{optimizer}`:", "", *table(rows), ""]
        title = f"Test scores in {name}: trials of constants in grey with their front, and the ways"
        parts += [f"![{title}](study/{name}.png)", ""]
    inserted = {
        "progress": progress(rows_by_case),
        "proposals": proposals(rows_by_case),
        "cost": cost(results),
        "summary": summary(rows_by_case),
        "tables": parts,
        "set-ups": setups_table(),
    }
    text = TEXT.read_text()
    for name, lines in inserted.items():
        text = text.replace(f"<!-- {name} -->", "\n".join(lines).strip())
    return text


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="of this machine")
    arguments = parser.parse_args(argv)
    results = read(KEPT, arguments.results)
    epochs = {first[:3]: first.epochs for first in firsts()}
    # Those of a look, or of a set-up that has changed, are not kept.
    results = {trial: x for trial, x in results.items() if epochs.get(trial[:3]) == trial.epochs}
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(results, KEPT.parent))
    lines = [json.dumps({**trial._asdict(), **results[trial]}) for trial in sorted(results)]
    KEPT.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
