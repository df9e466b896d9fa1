"""The directions in which two views of items are compared, and the loss of all of them."""

from keras import ops

from keras_jointloss._core.validation import invalid, validate_choice
from keras_jointloss.losses._pairs import Roles
from keras_jointloss.losses._softmax import Statistics, statistics

#: The accepted values of `directions` and `partition`.
DIRECTIONS = (None, "both", "first", "within")
PARTITIONS = ("per_direction", "joint")


def validate_directions(directions: str | None, symmetric: bool) -> str | None:
    """Returns the directions, which must not contradict `symmetric=False`."""
    validate_choice(directions, "directions", DIRECTIONS)
    if directions in ("both", "within") and not symmetric:
        raise invalid("directions", "None or 'first', since symmetric=False", directions)
    return directions


def compare(
    a, b, anchors, hard, held, items, directions, same_label, own, options
) -> list[Statistics]:
    """Returns the statistics of the first views as anchors, and of the second ones if they are.

    Args:
        a: The `Samples` of the first views of all items.
        b: Those of the second views.
        anchors: Those of first and of second views that are anchors.
        hard: Negatives of the first views, or `None`.
        held: The remembered `Samples` of first and of second views, or `None`.
        items: The `Items` of the anchors; `None` for all.
        directions: `"both"`, `"first"` or `"within"`.
        same_label: As in `Roles`.
        own: The `OwnPairs` of the items, if they are the positives.
        options: The other arguments of `statistics`.
    """
    held_a, held_b = held or (None, None)
    candidates_of_a, like_a = b.join(hard).join(held_b), a.join(held_a)
    is_square = items is None and candidates_of_a is b and like_a is a
    if directions == "both" and is_square and options["selection"] is None:
        # One matrix serves both directions.
        return statistics(Roles(a, b, same_label), **options, own=own, both_ways=True)

    def in_direction(anchors, candidates, like_anchors):
        roles = Roles(anchors, candidates, same_label)
        if directions == "within":
            first = ops.shape(candidates.items)[0] + (0 if items is None else items.start)
            candidates = candidates.join(like_anchors)
            roles = Roles(anchors, candidates, same_label, without_self=True, first=first)
        return statistics(roles, **options, own=own)

    result = in_direction(anchors[0], candidates_of_a, like_a)
    if directions != "first":
        result += in_direction(anchors[1], like_a, b.join(held_b))
    return result


def loss_of_directions(directions: list[Statistics], label_smoothing, partition: str):
    """Returns the loss of each item, `(batch,)`, from the statistics in each direction.

    The partition is `"per_direction"` or `"joint"`: one sum of exponentials for all directions.
    """
    if partition == "per_direction":
        losses = [direction.losses(label_smoothing) for direction in directions]
        return sum(losses[1:], losses[0]) / len(losses)
    # (directions, batch) each. An item is defined in all directions or in none.
    lse, positive, average, is_defined = (ops.stack(x) for x in zip(*directions, strict=True))
    count = len(directions)
    positive, average = ops.sum(positive, axis=0) / count, ops.sum(average, axis=0) / count
    joint = Statistics(ops.logsumexp(lse, axis=0), positive, average, is_defined[0])
    return joint.losses(label_smoothing)
