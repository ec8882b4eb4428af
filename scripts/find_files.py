# SPDX-License-Identifier: Apache-2.0
"""Prints the files below a folder that match any of the patterns, one a line, relative to it.

usage: find_files.py FOLDER PATTERN...     (`**` in a pattern crosses folders)
"""
import pathlib
import sys

folder = pathlib.Path(sys.argv[1])
found = {path.relative_to(folder).as_posix() for pattern in sys.argv[2:]
         for path in folder.glob(pattern) if path.is_file()}
print("\n".join(sorted(found)))
