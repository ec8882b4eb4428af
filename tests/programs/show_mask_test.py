# SPDX-License-Identifier: Apache-2.0
"""Drives show_mask: every mask, every layout and method gives a well-formed picture; mistakes are named."""
import os
import pathlib
import subprocess
import sys
import tempfile
import xml.etree.ElementTree

program = pathlib.Path(os.environ["MASKRING_BUILD"], "examples", "show_mask")


def show(*words, status=0):
    run = subprocess.run([program, *words], text=True, capture_output=True, timeout=120)
    if run.returncode != status:
        sys.exit(f"show_mask {' '.join(words)}: status {run.returncode}, expected {status}\n"
                 f"{run.stdout}{run.stderr}")
    return run.stdout + run.stderr


def expect(text, part):
    if part not in text:
        sys.exit(f"expected '{part}' in:\n{text}")


names = [line.split()[0].split("[")[0]
         for line in show("--help").split("masks:\n")[1].splitlines()]
if len(names) < 25:
    sys.exit(f"--help lists {len(names)} masks")

with tempfile.TemporaryDirectory() as folder:
    picture = os.path.join(folder, "picture.svg")
    for name in names:
        show(name, "--tokens", "700", "--tile", "64", "--svg", picture)
        xml.etree.ElementTree.parse(picture)
    for layout in ("contiguous", "zigzag", "striped"):
        for method in ("ring", "all-gather", "ulysses"):
            show("document_causal:90&!sliding_window:5|full", "--tokens", "700", "--keys", "650",
                 "--tile", "32", "--ranks", "3", "--layout", layout, "--method", method, "--heads",
                 "6", "--svg", picture)
            xml.etree.ElementTree.parse(picture)

# Neighbour traffic only, whatever the number of ranks.
expect(show("sliding_window:100", "--tokens", "1600", "--ranks", "8", "--layout", "contiguous"),
       "15 of 64 steps computed")
expect(show("causal", "--tokens", "256", "--tile", "64"), "+...\n#+..\n##+.\n###+\n")

expect(show("causl", status=2), "no mask is called 'causl'")
expect(show("causal:1", status=2), "causal: 1 arguments")
expect(show("sliding_window:-1", status=2), "sliding_window: width is -1, expected 0 or more")
expect(show("neighbourhood:20:21", "--tokens", "400", status=2), "expected at most the canvas")
expect(show("causal", "--ranks", "0", status=2), "--ranks is '0'")
expect(show("causal", "--ranks", "2", "--layout", "x", status=2), "--layout is 'x'")
expect(show("causal", "--method", "x", status=2), "--method is 'x'")
expect(show(status=2), "which mask?")
expect(show("causal", "--svg", "/nowhere/picture.svg", status=2), "cannot write")
