"""Mutates saved models: config, metadata, members of the archive and arrays of the weights file."""

import io
import json
import random
import zipfile
from collections.abc import Callable

from tests.fuzzing.config_mutations import OF_CONFIG, replace_value
from tests.fuzzing.mutation import Mutation
from tests.fuzzing.weights_mutations import mutated_weights


def _damaged(generator: random.Random, data: bytes):
    """Returns a damaged archive: cut off, or with wrong bytes."""
    data = bytearray(data)
    if generator.random() < 0.5:
        del data[generator.randrange(len(data)) :]
        return bytes(data), Mutation("archive", (), note="cut off")
    for _ in range(generator.choice([1, 10, 100])):
        data[generator.randrange(len(data))] = generator.randrange(256)
    return bytes(data), Mutation("archive", (), note="wrong bytes")


def _archive(members: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, value in members.items():
            archive.writestr(name, value)
    return content.getvalue()


def _member(generator: random.Random, members: dict[str, bytes]) -> Mutation:
    name = generator.choice(sorted(members))
    what = generator.choice(["missing", "empty", "half", "moved out", "text"])
    value = members.pop(name)
    if what == "moved out":
        members[f"../{name}"] = value
    elif what != "missing":
        members[name] = {"empty": b"", "half": value[: len(value) // 2], "text": b"[" * 10**5}[what]
    return Mutation("member", (name,), note=what)


def mutated(data: bytes, seed: int, own: Callable[[str], str]) -> tuple[bytes, Mutation]:
    """Returns a saved model with one change.

    Args:
        data: The `.keras` file.
        seed: The seed of all random choices.
        own: Returns the class of this package that an array of the weights file belongs to, or
            `""`.
    """
    generator = random.Random(seed)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    what = generator.random()
    if what < 0.03:
        return _damaged(generator, data)
    if what < 0.06:
        mutation = _member(generator, members)
        return _archive(members), mutation
    if what < 0.35:
        name = "model.weights.h5"
        members[name], mutation = mutated_weights(generator, members[name], own)
    else:
        config = json.loads(members["config.json"])
        if what < 0.37:
            metadata = json.loads(members["metadata.json"])
            mutation = replace_value(generator, metadata)._replace(kind="metadata")
            members["metadata.json"] = json.dumps(metadata).encode()
        else:
            mutation = generator.choice(OF_CONFIG)(generator, config)
            members["config.json"] = json.dumps(config).encode()
    return _archive(members), mutation
