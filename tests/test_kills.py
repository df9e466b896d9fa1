"""Trainings that are killed end with the same bits as those that are not."""

import json

import keras
import pytest

from tests.processes import run_python

# A process that must not fork after it has computed starts slowly.
KILLS = {"torch": 10, "tensorflow": 2, "jax": 2}


@pytest.mark.slow
def test_killed_trainings_end_as_if_they_had_not_been(tmp_path):
    kills = KILLS[keras.backend.backend()]
    code = "import sys; from tests.kills import main; sys.exit(main())"
    options = ["--kills", kills, "--epochs", 4]
    ended = run_python(
        code, *options, check=False, timeout=900, OMP_NUM_THREADS="1", TMPDIR=str(tmp_path)
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout.splitlines()[-1])
    assert found["kills"] == kills
    assert found["equal"] == found["trainings"] > 0
