"""The judgement of a training from what it logged."""

import html
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_jointloss.joint.find_terms import find_terms
from keras_jointloss.tensorboard.judgement.epochs import epochs_of
from keras_jointloss.tensorboard.judgement.finding import Finding, guide_file
from keras_jointloss.tensorboard.judgement.judge import judge
from keras_jointloss.tensorboard.judgement.trends import FEWEST
from keras_jointloss.tensorboard.plot import collect
from keras_jointloss.tensorboard.runs import Run, Series
from keras_jointloss.tensorboard.runs import find_terms as term_names
from keras_jointloss.terms.clock import optimizer_step
from keras_jointloss.terms.weight import TermWeight


class Diagnosis:
    """What was found in a training, or in several.

    `str` and `print` show it as text, notebooks as HTML.

    Args:
        by_run: The findings by the name of the run, faults first.
        lengths: The number of epochs (or of parts of the logs) by the name of the run.
    """

    def __init__(self, by_run: Mapping[str, Sequence[Finding]], lengths: Mapping[str, int]):
        #: The findings by the name of the run, faults first.
        self.by_run = {name: list(found) for name, found in by_run.items()}
        self._lengths = dict(lengths)

    @property
    def findings(self) -> list[Finding]:
        """All findings, those of a run one after the other."""
        return [x for found in self.by_run.values() for x in found]

    @property
    def faults(self) -> list[Finding]:
        """The findings of what is probably wrong."""
        return [x for x in self.findings if x.is_fault]

    @property
    def by_term(self) -> dict[str | None, list[Finding]]:
        """The findings by the name of the term; `None` for those of the training as a whole."""
        found: dict[str | None, list[Finding]] = {}
        for finding in self.findings:
            found.setdefault(finding.term, []).append(finding)
        return found

    def _sections(self) -> list[tuple[str, list[Finding], str]]:
        """Returns the name, the findings and the last sentence of each run."""
        return [(name, found, self._end(name)) for name, found in self.by_run.items()]

    def _end(self, name: str) -> str:
        """Returns a sentence on what was not found, or could not be judged."""
        length = self._lengths[name]
        faults = sum(x.is_fault for x in self.by_run[name])
        few = f"Whether losses still fall or validation turns shows after {FEWEST} epochs only."
        if length < FEWEST:
            return few if faults else f"No fault is found in {length} epochs. {few}"
        return "" if faults else f"No fault is found in {length} epochs."

    def __str__(self) -> str:
        lines = []
        for name, found, end in self._sections():
            if len(self.by_run) > 1:
                lines.append(f"{name}:")
            for finding in found:
                mark = "! " if finding.is_fault else "- "
                lines += textwrap.wrap(
                    finding.sentence, 100, initial_indent=mark, subsequent_indent="  "
                )
                advice = f"{finding.advice} (Guide: {guide_file(finding.guide)})"
                lines += textwrap.wrap(advice, 100, initial_indent="  > ", subsequent_indent="    ")
            lines += [end] if end else []
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def to_html(self) -> str:
        """Returns the findings as HTML."""
        parts = []
        for name, found, end in self._sections():
            if len(self.by_run) > 1:
                parts.append(f"<h4>{html.escape(name)}</h4>")
            items = "".join(
                f"<li>{_strong(x)}<br>{html.escape(x.advice)} "
                f"(Guide: <em>{html.escape(guide_file(x.guide))}</em>)</li>"
                for x in found
            )
            parts += [f"<ul>{items}</ul>"] if found else []
            parts += [f"<p>{html.escape(end)}</p>"] if end else []
        return "".join(parts)

    def _repr_html_(self) -> str:
        return self.to_html()


def _strong(finding: Finding) -> str:
    text = html.escape(finding.sentence)
    return f"<strong>{text}</strong>" if finding.is_fault else text


def diagnose(source: Any) -> Diagnosis:
    """Judges a training, after it or while it runs, from what it logged.

    For each term it finds

    - `"drives"`: which one has the largest share of the weighted losses, and since when,
    - `"stands_still"`: which one does not change or fall although it has a weight, since when,
    - `"overfitted"`: the validation of which one rises, since when, while its training falls,
    - `"weight_ran_away"`: whose weight has grown 1,000-fold against the others and takes all,
    - `"weight_never_moved"`: whose weight stays although its schedule or a rule should move it,
    - `"nearly_off"`: which one has less than 1 % of the weighted losses for long,
    - `"conflict"`: which gradients pull against each other, and whether more than at the start,
    - `"not_finite"`: whose loss was the first that was not finite,

    and what to try next. The same rules give the warnings of `JointLossCallback` and the marks in
    TensorBoard's tab. A loss falls, rises or turns if that is three times as much as its scatter
    explains. Six epochs are needed for that, so that after fewer nothing is said. Epochs count from
    1, as in the progress bar.

    From what `fit` returned, it also sees the schedules, the rule and, without a
    `JointLossCallback`, that nothing moved them.

    Args:
        source: What `fit` returned, its `history` dict, a `log_dir` with one run or many, or a list
            of these. A dict of these by name is a list with names.

    Returns:
        A `Diagnosis` with `findings`, `faults`, `by_term` and `by_run`, lists of `Finding`.

    Raises:
        ValueError: If `source` is anything else, or has no values of a joint loss.

    Example:

    >>> history = {
    ...     "loss": [2.0, 1.5],
    ...     "label_loss": [1.5, 1.0], "label_weight": [1.0, 1.0], "label_share": [0.75, 0.6],
    ...     "pair_loss": [5.0, 6.0], "pair_weight": [0.1, 0.1], "pair_share": [0.25, 0.4],
    ... }
    >>> diagnosis = diagnose(history)
    >>> [(finding.term, finding.kind) for finding in diagnosis.findings]
    [('label', 'drives')]
    >>> diagnosis.faults
    []
    """
    pairs = collect(_completed(source))
    found, lengths = {}, {}
    for run, part in pairs:
        plan = _plan_of(part, run)
        epochs = epochs_of(plan.run, plan.may_be_constant)
        found[run.name], lengths[run.name] = judge(epochs, plan.rule), len(epochs)
    return Diagnosis(found, lengths)


def _completed(source: Any) -> Any:
    """Returns a source in which histories without a `JointLossCallback` have their shares."""
    if isinstance(source, Sequence) and not isinstance(source, str | bytes):
        return [_completed(x) for x in source]
    logs = getattr(source, "history", source)
    if not isinstance(logs, Mapping):
        return source
    parts = (str, os.PathLike, Mapping)
    if logs is source and all(isinstance(getattr(x, "history", x), parts) for x in logs.values()):
        return {name: _completed(x) for name, x in logs.items()}
    keys = [key.removesuffix("_weight") for key in logs if key.endswith("_weight")]
    names = [x for x in keys if f"{x}_loss" in logs and f"{x}_share" not in logs]
    if not names or "loss" not in logs or any(key.endswith("_share") for key in logs):
        return source
    total = np.array(logs["loss"], "float64")
    shares = {}
    for name in names:
        own, weight = (np.array(logs[f"{name}_{x}"], "float64") for x in ("loss", "weight"))
        prefix = "val_" if name.startswith("val_") and name.removeprefix("val_") in keys else ""
        of = np.array(logs["val_loss"], "float64") if prefix else total
        with np.errstate(all="ignore"):
            shares[f"{name}_share"] = (own * weight / of).tolist()
    facts = {key: getattr(source, key, None) for key in ("epoch", "params", "model")}
    return SimpleNamespace(history={**logs, **shares}, **facts)


class _Plan(NamedTuple):
    """What the model of a history was to do."""

    run: Run  # With the schedules
    may_be_constant: frozenset[str] = frozenset()
    rule: str | None = None


def _plan_of(part: Any, run: Run) -> _Plan:
    """Returns a run with the schedules of the model that a history belongs to, and its rule."""
    terms = _terms_of(getattr(part, "model", None))
    if not terms or run.epochs is None or not {*term_names([run])} <= {*terms}:
        return _Plan(run)
    constant = frozenset(name for name, x in terms.items() if x.may_be_constant)
    rule = next((x for x in (getattr(w, "weighting", None) for w in terms.values()) if x), None)
    if rule is not None:
        is_due = run.epochs.steps[-1] > rule.warmup_steps + rule.update_every
        return _Plan(run, constant, type(rule).__name__ if is_due else None)
    schedules = {
        name: _followed(weight, run, run.epochs.steps, name, optimizer_step(part.model))
        for name, weight in terms.items()
        if weight.given.moves and not weight.is_off
    }
    return _Plan(replace(run, schedules=schedules), constant)


def _followed(weight: TermWeight, run: Run, ends: np.ndarray, name: str, end: int) -> Series:
    """Returns the schedule of a term over the steps of a run, whose epochs end at `ends`.

    The optimizer has made `end` steps: before the run, of which the history does not count these,
    or also after it. Of the two, what is nearer to the logged weight.
    """
    steps = np.concatenate([[0], ends])
    starts = {0, max(0, end - int(steps[-1]))}
    planned = [np.array(weight.given.values((steps + x).tolist())) for x in sorted(starts)]
    logged = run.train.get(f"joint_loss/{name}/weight")
    last = planned[0][-1] if logged is None else logged.values[-1]
    values = min(planned, key=lambda x: abs(x[-1] - last))
    return Series(steps, np.full(len(steps), np.nan), values)


def _terms_of(model: Any) -> dict[str, TermWeight]:
    """Returns the terms of a model; empty if there is none, or it is compiled otherwise."""
    if not isinstance(model, keras.Model) or getattr(model, "loss", None) is None:
        return {}
    try:
        return find_terms(model)
    except ValueError:
        return {}
