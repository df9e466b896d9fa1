"""Prints what pip is told, by its files and variables, as commands of a shell that tell uv."""

import re
import shlex
import subprocess
import sys

SETTINGS = {
    "cert": "SSL_CERT_FILE",
    "constraint": "UV_CONSTRAINT",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "index-url": "UV_DEFAULT_INDEX",
}

command = [sys.executable, "-m", "pip", "config", "list"]
listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
found = re.findall(r"^(\S+)\.([\w-]+)='(.*)'$", listed, re.MULTILINE)
# The last counts: a variable rather than a file.
for _, name, value in sorted(found, key=lambda setting: setting[0] == ":env:"):
    if name in SETTINGS:
        separator = "," if name == "find-links" else " "
        values = separator.join(value.replace("\\n", " ").split())
        print(f"export {SETTINGS[name]}={shlex.quote(values)}")
# As pip does, rather than to prefer an index in which there is an older version.
print("export UV_INDEX_STRATEGY=unsafe-best-match")
