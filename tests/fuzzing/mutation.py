"""What was done to a saved model."""

from typing import NamedTuple


class Mutation(NamedTuple):
    """One change of a saved model.

    Attributes:
        kind: What was done.
        path: The keys that lead to the place.
        owner: The class that the place belongs to, or `""`.
        is_own: Whether this class is one of this package.
        is_wrong_type: Whether a value replaced one of another type.
        note: The value before and after.
    """

    kind: str
    path: tuple
    owner: str = ""
    is_own: bool = False
    is_wrong_type: bool = False
    note: str = ""
