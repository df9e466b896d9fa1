"""A part of `make fuzz`: files from strangers, bad arguments and bad batches end clearly."""

import pytest

from tests.backends import values_only
from tests.fuzzing import files, inputs


@pytest.mark.slow
@values_only
def test_mutated_model_files_are_refused_clearly_or_train():
    outcomes = list(files.run("pairs,adapted,targets", 0, 50))
    assert len(outcomes) == 50
    assert not files.wrong(outcomes), files.table(outcomes)


@pytest.mark.slow
@values_only
def test_bad_arguments_are_refused_by_name():
    search = inputs.drawn_constructors(1000)
    assert not search.problems, str(search)


@pytest.mark.slow
def test_bad_batches_are_refused_by_name_or_have_a_value():
    search = inputs.drawn_calls(150)
    assert not search.problems, str(search)
