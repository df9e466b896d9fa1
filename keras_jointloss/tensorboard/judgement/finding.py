"""What a rule finds, and how it is said."""

from typing import Literal, NamedTuple, TypeAlias

Kind: TypeAlias = Literal[
    "drives", "stands_still", "overfitted", "weight_ran_away", "weight_never_moved", "conflict",
    "nearly_off", "not_finite",
]  # fmt: skip
#: The guide that explains what to do, by the kind of the finding.
GUIDES: dict[str, str] = {
    "drives": "weighting",
    "stands_still": "pitfalls",
    "overfitted": "weighting",
    "weight_ran_away": "weighting",
    "weight_never_moved": "pitfalls",
    "conflict": "conflicts",
    "nearly_off": "weighting",
    "not_finite": "pitfalls",
}


def guide_file(guide: str) -> str:
    """Returns where a guide lies in the project."""
    return f"examples/guides/{guide}.py"


class Finding(NamedTuple):
    """A judgement of a training.

    Attributes:
        term: The name of the term; `None` for the training as a whole.
        kind: `"drives"`, `"stands_still"`, `"overfitted"`, `"weight_ran_away"`,
            `"weight_never_moved"`, `"conflict"`, `"nearly_off"` or `"not_finite"`.
        since: The epoch since which it holds, counted from 1 as in the progress bar; the training
            step in logs without epochs.
        sentence: What is the case, with the numbers it rests on.
        advice: What to try next.
        is_fault: Whether something is probably wrong. Otherwise it is worth knowing.
    """

    term: str | None
    kind: Kind
    since: int
    sentence: str
    advice: str
    is_fault: bool = True

    @property
    def guide(self) -> str:
        """The name of the guide that explains what to do, such as `"weighting"`."""
        return GUIDES[self.kind]

    @property
    def text(self) -> str:
        """The sentence and the advice."""
        return f"{self.sentence} {self.advice}"
