"""What the callbacks log for the "Joint loss" dashboard itself: when epochs end, and schedules."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: The name of the plugin, of its data and in the address of its tab.
PLUGIN = "joint_loss"
#: The tag of the number of finished epochs.
EPOCHS_TAG = "joint_loss/epochs"
#: The tag of the facts about a training.
TRAINING_TAG = "joint_loss/training"


def format_training(
    schedules: Mapping[str, tuple[Sequence[int], Sequence[float]]], end: int
) -> str:
    """Returns the facts about a training as text.

    Args:
        schedules: By term, the steps and the weights of its schedule.
        end: The step at which training is to end.
    """
    points = {term: [[*x], [*y]] for term, (x, y) in schedules.items()}
    return json.dumps({"end": end, "schedules": points})


def parse_training(text: str | bytes) -> dict[str, Any]:
    """Returns the facts about a training, without what is not valid."""
    try:
        facts = json.loads(text)
        return {
            "end": int(facts["end"]),
            "schedules": {
                str(term): ([int(x) for x in steps], [float(y) for y in weights])
                for term, (steps, weights) in facts["schedules"].items()
                if len(steps) == len(weights)
            },
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}
