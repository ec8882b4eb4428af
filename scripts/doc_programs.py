# SPDX-License-Identifier: Apache-2.0
"""Compiles and runs every whole C++ program (a ```cpp block with a main function) of a text.

usage: doc_programs.py TEXT COMPILER [ARGUMENT...]

Programs with CUDA's headers, kernels or NCCL are left out: a plain compiler cannot take them.
"""
import pathlib
import re
import subprocess
import sys
import tempfile

text, *compiler = sys.argv[1:]
blocks = re.findall(r"^```cpp\n(.*?)^```$", pathlib.Path(text).read_text(), re.MULTILINE | re.DOTALL)
programs = [b for b in blocks if "int main(" in b and ".cuh" not in b]
if not programs:
    print("skipped: no whole host program in it")
    sys.exit(77)

with tempfile.TemporaryDirectory() as work:
    for number, program in enumerate(programs, 1):
        source, binary = pathlib.Path(work, "program.cpp"), pathlib.Path(work, "program")
        source.write_text(program)
        for command in ([*compiler, str(source), "-o", str(binary)], [str(binary)]):
            run = subprocess.run(command, text=True, capture_output=True)
            if run.returncode != 0:
                sys.exit(f"{run.stdout}{run.stderr}\nprogram {number} of {text}: {command[0]} "
                         f"ended with status {run.returncode}")
        print(f"program {number} of {len(programs)}: {run.stdout.strip()}")
