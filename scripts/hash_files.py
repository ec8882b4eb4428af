# SPDX-License-Identifier: Apache-2.0
"""Prints a hash over all headers below the folders given."""
import hashlib
import pathlib
import sys

digest = hashlib.sha256()
for folder in sys.argv[1:]:
    for path in sorted(pathlib.Path(folder).rglob("*.[hc]*")):
        if path.suffix in (".hpp", ".cuh"):
            digest.update(path.as_posix().encode() + b"\0" + path.read_bytes())
print(digest.hexdigest()[:16])
