"""Tests of what is refused with a `ValueError`, each a table of cases and messages."""

import pytest


def refuses(make, *cases):
    """Returns a test that `make(**arguments)` raises an error with a message.

    Args:
        make: A class or function.
        *cases: Pairs of the arguments and the pattern of the message.
    """

    @pytest.mark.parametrize(("arguments", "message"), cases)
    def test(arguments, message):
        with pytest.raises(ValueError, match=message):
            make(**arguments)

    return test


def refuses_calls(*cases):
    """Returns a test of calls without arguments, in pairs with the pattern of the message."""
    return refuses(lambda call: call(), *(({"call": call}, message) for call, message in cases))
