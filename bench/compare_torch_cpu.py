#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Times maskring's host attention beside PyTorch's on the same cases, in turns, and prints ratios.

usage: compare_torch_cpu.py PROGRAM [--rounds N] [--only CASE] [--json FILE] [--flex]

PROGRAM is bench_host_attention. Each round runs a case with maskring and then with every peer that can
do it: scaled_dot_product_attention (with is_causal where the mask is causal, else with a boolean mask)
and, with --flex, FlexAttention compiled. Times are medians of 7 calls, ratios medians of the rounds; a
ratio above 1 means that maskring is faster.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time

import torch
from torch.nn.functional import scaled_dot_product_attention

REPEAT = 7
KEY = ("case", "mask", "score", "type", "batch", "heads", "kv_heads", "seq", "dim")


def maskring_records(program, case):
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [program, "--only", case, "--repeat", str(REPEAT), "--json", file.name]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.load(open(file.name))["results"]


def mask_mod(name, seq):
    word, *number = name.split()
    if word == "causal":
        return lambda b, h, q, k: q >= k
    if word == "window":
        width = int(number[0])
        return lambda b, h, q, k: (q >= k) & (q - k <= width)
    if word == "documents":
        ids = torch.arange(seq) // int(number[0])
        return lambda b, h, q, k: (ids[q] == ids[k]) & (q >= k)
    return None


def score_mod(name):
    word, *number = name.split()
    if word == "softcap":
        cap = float(number[0])
        return lambda s, b, h, q, k: cap * torch.tanh(s / cap)
    return None


def peers(case, with_flex):
    """Names and callables of the peers that can compute this case."""
    grouped = case["heads"] != case["kv_heads"]
    mask, score = mask_mod(case["mask"], case["seq"]), score_mod(case["score"])
    found = {}
    if score is None:
        if case["mask"] in ("full", "causal"):
            options = {"is_causal": case["mask"] == "causal"}
        else:
            index = torch.arange(case["seq"])
            options = {"attn_mask": mask(0, 0, index[:, None], index[None, :])}
        found["SDPA"] = lambda q, k, v: scaled_dot_product_attention(
            q, k, v, enable_gqa=grouped, **options
        )
    if with_flex:
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        block_mask = mask and create_block_mask(
            mask, None, None, case["seq"], case["seq"], device="cpu"
        )
        compiled = torch.compile(flex_attention, dynamic=False)
        found["FlexAttention"] = lambda q, k, v: compiled(
            q, k, v, score_mod=score, block_mask=block_mask, enable_gqa=grouped
        )
    return found


def median_ms(work):
    times = []
    for _ in range(REPEAT + 1):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times[1:])


def peer_times(peer, tensors, dout):
    """Medians of the forward and the backward pass, or why there is none."""
    times = {}
    try:
        detached = [t.detach() for t in tensors]
        with torch.no_grad():
            times["forward"] = median_ms(lambda: peer(*detached))
        out = peer(*tensors)
        times["backward"] = median_ms(
            lambda: torch.autograd.grad(out, tensors, dout, retain_graph=True)
        )
    except Exception as failure:  # a peer that cannot do a case must not end the run
        reason = str(failure).strip().split("\n")[0][:90] or type(failure).__name__
        for what in ("forward", "backward"):
            times.setdefault(what, reason)
    return times


def run_case(program, name, rounds, with_flex):
    """Records of the case with the peers' times and ratios of each round."""
    merged = {}
    setup = None
    for _ in range(rounds):
        records = maskring_records(program, name)
        if setup is None:
            case = {key: records[0][key] for key in KEY}
            dtype = {"float": torch.float32, "half": torch.float16, "bfloat16": torch.bfloat16}
            make = lambda heads: torch.randn(
                case["batch"], heads, case["seq"], case["dim"], dtype=dtype[case["type"]]
            )
            tensors = [make(h).requires_grad_() for h in (case["heads"],) + (case["kv_heads"],) * 2]
            setup = (peers(case, with_flex), tensors, make(case["heads"]))
        for r in records:
            entry = merged.setdefault(r["what"], {**r, "times": [], "peers": {}})
            entry["times"].append(r["ms"])
        for peer_name, peer in setup[0].items():
            times = peer_times(peer, setup[1], setup[2])
            for what, entry in merged.items():
                entry["peers"].setdefault(peer_name, []).append(times[what])
    for entry in merged.values():
        entry["ms"] = statistics.median(entry["times"])
        for peer_name, times in entry["peers"].items():
            words = [t for t in times if isinstance(t, str)]
            if words:
                entry["peers"][peer_name] = {"skipped": words[0]}
                continue
            ratios = [theirs / ours for theirs, ours in zip(times, entry["times"])]
            entry["peers"][peer_name] = {
                "ms": statistics.median(times),
                "ratio": statistics.median(ratios),
            }
    return list(merged.values())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help="one case; bench_host_attention --list yes names them")
    parser.add_argument("--json", help="where to write the results")
    parser.add_argument("--flex", action="store_true", help="also FlexAttention, compiled")
    options = parser.parse_args()

    names = [options.only] if options.only else subprocess.run(
        [options.program, "--list", "yes"], check=True, capture_output=True, text=True
    ).stdout.split()
    torch.manual_seed(0)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    results = []
    for name in names:
        for entry in run_case(options.program, name, options.rounds, options.flex):
            results.append(entry)
            line = f"{name:14} {entry['what']:8} maskring {entry['ms']:8.2f} ms"
            for peer, outcome in entry["peers"].items():
                if "skipped" in outcome:
                    line += f"; {peer}: skipped ({outcome['skipped']})"
                else:
                    line += f"; {peer} {outcome['ms']:8.2f} ms, ratio {outcome['ratio']:.2f}"
            print(line, flush=True)
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"torch": torch.__version__, "threads": torch.get_num_threads(),
                       "results": results}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
