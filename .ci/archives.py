"""Compares the archives of a release with what is committed: nothing is missing or added.

Usage: `archives.py FOLDER`, in the root of the repository. The folder holds a wheel and a source
archive.
"""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = "keras_jointloss"
#: What setuptools adds.
TO_SOURCE = {"MANIFEST.in", "PKG-INFO", "setup.cfg"}
TO_WHEEL = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}


def files_of(archive: Path) -> set[str]:
    """Returns the files of a source archive, without its folder, or of a wheel."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return {x for x in wheel.namelist() if not x.endswith("/")}
    with tarfile.open(archive) as source:
        return {x.name.partition("/")[2] for x in source if x.isfile()}


def compare(archive: Path, found: set[str], expected: set[str]) -> None:
    """Ends the process if an archive does not hold what it should."""
    if found != expected:
        sys.exit(
            f"{archive.name} lacks {sorted(expected - found)} "
            f"and should not hold {sorted(found - expected)}."
        )
    print(f"{archive.name}: {len(found)} files, {archive.stat().st_size / 1e6:.1f} MB")


folder = Path(sys.argv[1])
listed = subprocess.check_output(["git", "ls-tree", "-r", "--name-only", "-z", "HEAD"], text=True)
committed = {x for x in listed.split("\0") if x}
(source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
in_source = {x for x in files_of(source) if ".egg-info/" not in x}
compare(source, in_source, committed | TO_SOURCE)
version = source.name.removesuffix(".tar.gz").partition("-")[2]
info = {f"{PACKAGE}-{version}.dist-info/{x}" for x in TO_WHEEL}
compare(wheel, files_of(wheel), {x for x in committed if x.startswith(f"{PACKAGE}/")} | info)
