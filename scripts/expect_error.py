# SPDX-License-Identifier: Apache-2.0
"""Checks that a source file does not compile, and that the compiler says why.

usage: expect_error.py FILE COMPILER [ARGUMENT...]

Every line `// expect: REGEX` in the file must match the compiler's output. The file must compile
when VALID is defined if it mentions VALID: then nothing else in it can be what is wrong.
"""
import os
import pathlib
import re
import subprocess
import sys


def compile_file(*more):
    run = subprocess.run([*compiler, *more, source], capture_output=True, text=True,
                         env={**os.environ, "LC_ALL": "C"})
    return run.returncode == 0, run.stdout + run.stderr


source, *compiler = sys.argv[1:]
text = pathlib.Path(source).read_text()
expected = re.findall(r"^// expect: (.+)$", text, re.MULTILINE)
if not expected:
    sys.exit(f"{source}: no line `// expect: REGEX`")

compiles, said = compile_file()
if compiles:
    sys.exit(f"{source} compiles, but should not")
missing = [regex for regex in expected if not re.search(regex, said)]
if missing:
    sys.exit(f"{said}\n{source}: the compiler did not say " + " nor ".join(map(repr, missing)))
if "VALID" in text:
    compiles, said = compile_file("-DVALID")
    if not compiles:
        sys.exit(f"{said}\n{source} does not compile with -DVALID either")
print("refused with: " + "; ".join(expected))
