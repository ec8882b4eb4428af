# SPDX-License-Identifier: Apache-2.0
"""What the records of the GPU benchmarks have in common."""

# What makes two records of attention the same case.
CASE_KEYS = ("mask", "score", "type", "batch", "heads", "kv_heads", "seq", "dim")


def describe(record):
    if record["what"] == "block_map":
        return f"block map {record['mask']}, {record['q_len']} x {record['kv_len']}"
    score = "" if record["score"] == "none" else " + " + record["score"]
    return (
        f"{record['what']} {record['mask']}{score}, D {record['dim']}, {record['seq']}, "
        f"{record['batch']} x {record['heads']}"
    )
