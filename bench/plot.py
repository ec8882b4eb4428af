#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plots results of run_gpu.py: bars for maskring and its peers, one panel a kind of measurement.

usage: plot.py RESULTS.json [--out FILE]      FILE: .svg (default, beside the results) or .png
"""
import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from cases import describe


def panel(axes, title, unit, groups):
    """Horizontal bars: groups is {case: {who: value}}; longer is better."""
    names = list(dict.fromkeys(who for bars in groups.values() for who in bars))
    height = 0.8 / max(1, len(names))
    for n, who in enumerate(names):
        at = [i + n * height for i, bars in enumerate(groups.values()) if who in bars]
        values = [bars[who] for bars in groups.values() if who in bars]
        drawn = axes.barh(at, values, height * 0.9, label=who)
        axes.bar_label(drawn, fmt="%.3g", padding=2, fontsize=6)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(groups))], list(groups), fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(title)
    axes.legend(fontsize=7)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    options = parser.parse_args()
    data = json.loads(options.results.read_text())

    panels = {"forward": {}, "backward": {}, "block_map": {}}
    for record in data["results"]:
        # Attention in TFLOP/s of the pairs that the mask keeps, block maps in maps a second.
        rate = (lambda ms: record["flops"] / ms / 1e9) if "flops" in record else (lambda ms: 1e3 / ms)
        case = describe(record).removeprefix(record["what"].replace("_", " ") + " ")
        bars = panels[record["what"]].setdefault(case, {})
        name = "maskring"
        if "kernel" in record:
            name += ", " + record["kernel"] + ("" if record["deterministic"] else ", free order")
        bars[name] = rate(record["ms"])
        for peer, ms in record.get("peers", {}).items():
            if not isinstance(ms, str):
                bars[peer] = rate(ms)

    panels = {what: groups for what, groups in panels.items() if groups}
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 1.5 + sum(1 + 0.7 * len(g) for g in panels.values())),
        height_ratios=[1 + len(g) for g in panels.values()], layout="constrained", squeeze=False,
    )
    for ax, (what, groups) in zip(axes[:, 0], panels.items()):
        maps = what == "block_map"
        panel(ax, what.replace("_", " "), "maps a second" if maps else "TFLOP/s of kept pairs", groups)
        if maps:
            ax.set_xscale("log")
    figure.suptitle(data["device"])
    figure.savefig(options.out or options.results.with_suffix(".svg"))


if __name__ == "__main__":
    main()
