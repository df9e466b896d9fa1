"""The rule on a term that contributes practically nothing under a weighting."""

from typing import NamedTuple

from keras_jointloss.tensorboard.judgement.finding import Finding


class Part(NamedTuple):
    """What a term contributed to an epoch of training, as absolute values of means."""

    name: str
    loss: float
    factor: float  # The weight that the rule gives it at the end of the epoch
    of_rule: float  # Its loss times the weight that the rule gives it
    #: The length of its weighted gradient where a layer reports it, or else its weighted loss: with
    #: the weight that the user gives it, too.
    contribution: float

    def exceeds(self, other: "Part", ratio: float) -> bool:
        """Returns whether a term contributes more than `ratio` times as much as another.

        With the weights of the rule alone as well, since the user may choose other ones.
        """
        is_contribution = self.contribution > ratio * other.contribution
        return is_contribution and self.of_rule > ratio * other.of_rule


def hardly_trained(
    rule: str, part: Part, most: Part, of_gradient: bool, remedy: str, epoch: int = 0
) -> Finding:
    """Returns the finding of a term beside the one that contributes most, to loss or gradient."""
    what = "the length of the gradient" if of_gradient else "the loss"
    return Finding(
        part.name,
        "nearly_off",
        epoch + 1,
        f"{rule} weights the term {most.name!r} with {most.factor:.3g} at a loss of "
        f"{most.loss:.3g} and the term {part.name!r} with {part.factor:.3g} at a loss of "
        f"{part.loss:.3g}: {part.name!r} is hardly trained any more. It contributes "
        f"{part.contribution / most.contribution:.1g} times as much to {what} as {most.name!r}.",
        remedy,
    )
