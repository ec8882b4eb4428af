#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs PyTorch's attention on the cases of maskring's GPU benchmarks and prints ratios.

usage: peers.py RESULTS.json... [--json FILE] [--only TEXT] [--eager]

RESULTS.json are what the bench_cuda_* programs wrote on this machine just before. Every case in them
is run with the peers that can do it: cuDNN and the FLASH backend of scaled_dot_product_attention
(FlashAttention-2), FlexAttention compiled, and create_block_mask, compiled and (with --eager) eager.
A ratio above 1 means that maskring is faster. Times are medians by events with a cold L2 cache.
"""
import argparse
import json
import math
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from triton.testing import do_bench

from cases import CASE_KEYS, describe

torch._dynamo.config.cache_size_limit = 1000
compiled_flex = torch.compile(flex_attention, dynamic=False)
compiled_block_mask = torch.compile(create_block_mask, dynamic=False)


def median_ms(work, budget=150):
    """As maskring's programs do: after a pause, for a card at its power limit would still be throttled
    by what ran before."""
    work()  # compiles
    torch.cuda.synchronize()
    time.sleep(0.5)
    return do_bench(work, warmup=20, rep=budget, return_mode="median")


# Masks and score modifiers by the names that the programs give them: a word and its numbers.


def mask_mod(name, seq):
    """The mask_mod of a name such as "window 1024 or prefix 4096"; None for the full mask."""
    for word, join in (" or ", lambda x, y: x | y), (" and ", lambda x, y: x & y):
        if word in name:
            first, second = (mask_mod(part, seq) for part in name.split(word, 1))
            return lambda b, h, q, k: join(first(b, h, q, k), second(b, h, q, k))
    words = name.replace(",", "").split()
    numbers = [int(w) for w in words if w.isdigit()]
    if words[0] == "full":
        return None
    if words[0] == "causal":  # "on ints" or not: that is what a mask_mod always is
        return lambda b, h, q, k: q >= k
    if words[0] == "window":
        (width,) = numbers
        return lambda b, h, q, k: (q >= k) & (q - k <= width)
    if words[0] == "prefix":
        (length,) = numbers
        return lambda b, h, q, k: (k < length) | (q >= k)
    if words[0] == "documents":
        (length,) = numbers
        ids = torch.arange(seq, device="cuda") // length
        return lambda b, h, q, k: (ids[q] == ids[k]) & (q >= k)
    if words[0] == "diffusion":
        half, block = numbers

        def diffusion(b, h, q, k):
            bq, bk = (q % half) // block, (k % half) // block
            return (
                ((bq == bk) & (q < half) & (k < half))
                | ((bq > bk) & (q < half) & (k >= half))
                | ((bq >= bk) & (q >= half) & (k >= half))
            )

        return diffusion
    raise ValueError(f"no mask_mod is known for {name}")


def score_mod(name, heads):
    words = name.split()
    if words[0] == "softcap":
        cap = float(words[1])
        return lambda s, b, h, q, k: cap * torch.tanh(s / cap)
    if words[0] == "alibi":
        return lambda s, b, h, q, k: s + (k - q) * torch.exp2(-(h + 1) * 8.0 / heads)
    if words[0] == "none":
        return None
    raise ValueError(f"no score_mod is known for {name}")


def tensors(case):
    dtype = {"bfloat16": torch.bfloat16, "half": torch.float16, "float": torch.float32}[case["type"]]
    generator = torch.Generator("cuda").manual_seed(1)

    def one(heads):
        shape = (case["batch"], heads, case["seq"], case["dim"])
        return torch.randn(shape, device="cuda", dtype=dtype, generator=generator).requires_grad_()

    return one(case["heads"]), one(case["kv_heads"]), one(case["kv_heads"])


def attention_peers(case):
    """Names and callables of the peers that compute this case."""
    mask, score = mask_mod(case["mask"], case["seq"]), score_mod(case["score"], case["heads"])
    grouped = case["heads"] != case["kv_heads"]
    peers = {}
    if case["mask"] in ("full", "causal") and score is None:
        for name, backend in (
            ("cuDNN", SDPBackend.CUDNN_ATTENTION),
            ("FlashAttention-2", SDPBackend.FLASH_ATTENTION),
        ):

            def sdpa(q, k, v, backend=backend):
                with sdpa_kernel(backend):
                    return torch.nn.functional.scaled_dot_product_attention(
                        q, k, v, is_causal=case["mask"] == "causal", enable_gqa=grouped
                    )

            peers[name] = sdpa
    block_mask = None
    if mask is not None:
        block_mask = create_block_mask(mask, None, None, case["seq"], case["seq"], device="cuda")
    peers["FlexAttention"] = lambda q, k, v: compiled_flex(
        q, k, v, score_mod=score, block_mask=block_mask, enable_gqa=grouped
    )
    return peers


def block_map_peers(case, eager):
    if "," in case["mask"].replace(", causal", "", 1) or case["q_len"] != case["kv_len"]:
        return {}
    mask = mask_mod(case["mask"], case["kv_len"])
    shape = (None, None, case["q_len"], case["kv_len"])
    tile = (case["tile_q"], case["tile_kv"])
    make = lambda f: lambda: f(mask, *shape, device="cuda", BLOCK_SIZE=tile)
    peers = {"create_block_mask, compiled": make(compiled_block_mask)}
    if eager:
        peers["create_block_mask, eager"] = make(create_block_mask)
    return peers


def attempt(measure):
    """What the call returns, a time, or why there is none."""
    try:
        return measure()
    except torch.cuda.OutOfMemoryError:
        return "out of memory"
    except Exception as failure:  # a peer that cannot do a case must not end the run
        return str(failure).strip().split("\n")[0][:80] or type(failure).__name__
    finally:
        torch.cuda.empty_cache()


def run_attention(case, wanted):
    """Times of the peers for one case: {what: {peer: ms}}. Forward passes keep what backward passes
    need, as maskring's do."""
    q, k, v = tensors(case)
    dout = torch.randn_like(q)

    def forward_ms(peer):
        return median_ms(lambda: peer(q, k, v))

    def backward_ms(peer):
        out = peer(q, k, v)
        return median_ms(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True))

    times = {what: {} for what in wanted}
    try:
        peers = attention_peers(case)
    except ValueError as unknown:  # a mask or score modifier that was not written for the peers
        print(unknown)
        return times
    for name, peer in peers.items():
        for what, measure in (("forward", forward_ms), ("backward", backward_ms)):
            if what in wanted:
                times[what][name] = attempt(lambda: measure(peer))
    return times


def report(record):
    cells = [f"{describe(record)}: maskring {record['kernel'] + ' ' if 'kernel' in record else ''}"
             f"{record['ms']:.3f} ms"]
    if "flops" in record:
        cells[0] += f" {record['flops'] / record['ms'] / 1e9:.0f} TFLOP/s"
    for name, ms in record["peers"].items():
        text = ms if isinstance(ms, str) else f"{ms:.3f} ms, ratio {ms / record['ms']:.2f}"
        cells.append(f"{name} {text}")
    print("; ".join(cells), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", nargs="+")
    parser.add_argument("--json", help="where to write the results with the peers' times added")
    parser.add_argument("--only", default="", help="only cases whose description holds this text")
    parser.add_argument("--eager", action="store_true", help="also time eager create_block_mask")
    options = parser.parse_args()

    records = []
    for name in options.results:
        with open(name) as file:
            records += json.load(file)["results"]
    records = [r for r in records if options.only in describe(r)]
    for r in records:
        r["peers"] = {}

    by_case = {}
    for r in records:
        if r["what"] in ("forward", "backward"):
            by_case.setdefault(tuple(r[k] for k in CASE_KEYS), []).append(r)
    for key, group in by_case.items():
        case = dict(zip(CASE_KEYS, key))
        times = run_attention(case, {r["what"] for r in group})
        for r in group:
            r["peers"] = times[r["what"]]
            report(r)
    for r in records:
        if r["what"] == "block_map":
            for name, work in block_map_peers(r, options.eager).items():
                torch.cuda.reset_peak_memory_stats()
                r["peers"][name] = attempt(lambda: median_ms(work))
                r.setdefault("peer_bytes", {})[name] = torch.cuda.max_memory_allocated()
            report(r)

    if options.json:
        with open(options.json, "w") as file:
            json.dump({"device": torch.cuda.get_device_name(), "torch": torch.__version__,
                       "results": records}, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
