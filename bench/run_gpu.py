#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs all GPU benchmarks and PyTorch's peers on the same cases, and keeps the results.

usage: run_gpu.py [--build FOLDER] [--kernels LIST] [--results FOLDER] [--no-peers] [--eager]

FOLDER of the build holds the bench_cuda_* programs (default: build). Each attention program runs once
for every entry of LIST, "automatic,portable" unless given; add ":free" to a name for backward passes
that need not give the same bits each time. Results go to results/MODEL.json, MODEL being the GPU's.
"""
import argparse
import json
import pathlib
import re
import subprocess
import sys
import tempfile

here = pathlib.Path(__file__).resolve().parent


def run(program, folder, *arguments):
    """Runs a program; returns where its JSON is."""
    out = pathlib.Path(folder) / ("-".join([program.stem, *arguments]).replace("--", "") + ".json")
    subprocess.run([program, "--json", out, *arguments], check=True)
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, default=here.parent / "build")
    parser.add_argument("--kernels", default="automatic,portable")
    parser.add_argument("--results", type=pathlib.Path, default=here / "results")
    parser.add_argument("--no-peers", action="store_true", help="without PyTorch")
    parser.add_argument("--eager", action="store_true", help="also time eager create_block_mask")
    options = parser.parse_args()

    programs = {}
    for name in ("bench_cuda_block_map", "bench_cuda_attention", "bench_cuda_masks"):
        found = [p for p in (options.build / "bench" / name, options.build / name) if p.exists()]
        if not found:
            sys.exit(f"{name} is not in {options.build}: configure with -Dgpu_tests=all and build it")
        programs[name] = found[0].resolve()

    with tempfile.TemporaryDirectory() as folder:
        files = [run(programs["bench_cuda_block_map"], folder)]
        for entry in options.kernels.split(","):
            kernel, _, free = entry.partition(":")
            for name in ("bench_cuda_attention", "bench_cuda_masks"):
                files.append(
                    run(programs[name], folder, "--kernel", kernel, "--deterministic", "0" if free else "1")
                )
        device = json.loads(files[0].read_text())["device"]
        options.results.mkdir(exist_ok=True)
        target = options.results / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")
        if options.no_peers:
            results = [r for f in files for r in json.loads(f.read_text())["results"]]
            target.write_text(json.dumps({"device": device, "results": results}, indent=1) + "\n")
        else:
            command = [sys.executable, here / "peers.py", *files, "--json", target]
            subprocess.run(command + (["--eager"] if options.eager else []), check=True)
    print("results are in", target)


if __name__ == "__main__":
    main()
