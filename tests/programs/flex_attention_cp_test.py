# SPDX-License-Identifier: Apache-2.0
"""Drives flex_attention_cp: its output, its options, and its exit status; and custom_mask."""
import os
import pathlib
import re
import subprocess
import sys

examples = pathlib.Path(os.environ["MASKRING_BUILD"], "examples")


def run(*words, status=0, program="flex_attention_cp"):
    done = subprocess.run([examples / program, *words], text=True, capture_output=True, timeout=300)
    if done.returncode != status:
        sys.exit(f"{program} {' '.join(words)}: status {done.returncode}, expected {status}\n"
                 f"{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def expect(text, *parts):
    for part in parts:
        if part not in text:
            sys.exit(f"expected '{part}' in:\n{text}")


def golden(text):
    """The output with its errors, which depend on the processor, left out."""
    return re.sub(r"\d\.\d\de-\d\d", "x.xxe-xx", text)


expect(golden(run("--ranks", "2", "--seq", "16", "--batch", "1", "--heads", "2", "--dim", "4")), """\
float32, batch 1, 2 heads, 2 key heads, dim 4, value dim 4, 16 tokens
mask causal, 2 ranks, layout contiguous, method ring, device cpu, seed 0

block map of each rank: its queries down, all keys across, tiles of 1 x 1;
# full, + partial, . empty
rank 0, 72 % empty
#...............
##..............
###.............
####............
#####...........
######..........
#######.........
########........
rank 1, 22 % empty
#########.......
##########......
###########.....
############....
#############...
##############..
###############.
################

plan: 3 of 4 steps computed; sent of what an unplanned ring would send:
      forward 512 of 1024 bytes (50 %), backward 1024 of 2048 bytes (50 %)

""")

text = run()
expect(text, "batch 8, 8 heads, 8 key heads, dim 32", "128 tokens\nmask causal, 4 ranks, layout contiguous, "
       "method ring", "10 of 16 steps computed")
if len(re.findall(r"\d\.\d\de-\d\d +\d\.\de-\d\d   ok$", text, re.M)) != 4:
    sys.exit(f"expected four checks that hold in:\n{text}")
if golden(run()) != golden(text):
    sys.exit("two runs differ")

for ranks in ("1", "3", "8"):
    for layout in ("contiguous", "zigzag", "striped"):
        for method in ("ring", "all-gather"):
            run("--ranks", ranks, "--layout", layout, "--method", method, "--batch", "2", "--heads", "4",
                "--kv-heads", "2", "--v-dim", "16", "--seq", "75", "--mask",
                "document_causal|sliding_window:9", "--seed", ranks)
# A window of one shard's width is neighbour traffic: of 8 ranks, 7 send to one instead of 8 to seven.
expect(run("--ranks", "8", "--mask", "sliding_window:32", "--batch", "1"),
       "15 of 64 steps computed", "(12 %)")
run("--ranks", "16", "--seq", "5")

# Every mask and score modifier by name.
lists = run("--help").split("A SCORE")
names = [re.findall(r"^  ([a-z0-9_]+)(?:\[:| )", part.split("\n", 1)[1], re.M) for part in lists]
masks, scores = names[0][names[0].index("full"):], names[1]
if len(masks) < 25 or len(scores) < 10:
    sys.exit(f"--help lists the masks {masks} and the score modifiers {scores}")
small = ["--batch", "2", "--heads", "4", "--kv-heads", "2", "--dim", "8", "--seq", "131", "--ranks", "3"]
for i, mask in enumerate(masks):
    layout = ("contiguous", "zigzag", "striped")[i % 3]
    run(*small, "--mask", mask, "--layout", layout, "--method", ("ring", "all-gather")[i % 2])
for i, score in enumerate(scores + ["softcap:5>t5_bias>alibi"]):
    run(*small, "--score", score, "--layout", "zigzag", "--method", ("ring", "all-gather")[i % 2])

for words, message in [
        (["--ranks", "0"], "--ranks is '0', expected a whole number from 1"),
        (["--heads", "8", "--kv-heads", "3"], "--heads is 8, expected a multiple of --kv-heads, which is 3"),
        (["--mask", "causl"], "no mask is called 'causl'"),
        (["--score", "alibis"], "no score modifier is called 'alibis'"),
        (["--score", "softcap:-1"], "cap is -1, expected a number above 1e-38"),
        (["--layout", "spiral"], "expected one of contiguous, zigzag, striped"),
        (["--method", "tree"], "expected one of ring, all-gather"),
        (["--device", "abacus"], "--device is 'abacus'"),
        (["--dim"], "--dim expects a value"),
        (["--size", "3"], "no option is called --size")]:
    said = run(*words, status=2)
    expect(said, message)
    if said.count("\n") != 1:
        sys.exit(f"expected one line: {said}")
expect(run("--help"), "usage: flex_attention_cp", "--kv-heads", "sliding_window", "Exit status")

expect(run(program="custom_mask"), "of the tiles are never visited", "one rank and four differ by at most")
