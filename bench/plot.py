# SPDX-License-Identifier: Apache-2.0
"""Draw a run's document: each row's time against the kernel's, as PNG and SVG."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

__all__ = ["draw"]

COLOURS = {
    "kernel": "#888888",
    "native": "#888888",
    "penstock": "#2e6f9e",
    "penstock-splice": "#6fa8cf",
    "penstock-copy": "#b5d3e7",
    "fuse2fs": "#d08770",
    "passthrough_hp": "#d08770",
    "passthrough_ll": "#e5b9a5",
    "pyfuse3": "#a3be8c",
    "mfusepy": "#cfe0c3",
}


def draw(content: dict[str, Any], bases: tuple[str, ...], path: Path) -> list[Path]:
    """Write ``path`` with the suffixes .png and .svg.

    Args:
        content: what ``results.document`` returns.
        bases: contenders to compare with; the first one that took part counts.
    """
    seconds: dict[str, dict[str, list[float]]] = content["seconds"]
    base_name = next((name for name in bases if name in seconds), next(iter(seconds)))
    base = seconds[base_name]
    names = [name for name in COLOURS if name in seconds]
    rows = [name for name in content["rows"] if name in base]
    figure, axes = plt.subplots(
        figsize=(9, 1 + 0.12 * len(rows) * (len(names) + 1)), layout="constrained"
    )
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        ratios = [
            [a / b for a, b in zip(seconds[name].get(row, []), base[row], strict=False)]
            for row in rows
        ]
        middles = [statistics.median(r) if r else 0.0 for r in ratios]
        below = [m - min(r, default=m) for m, r in zip(middles, ratios, strict=True)]
        above = [max(r, default=m) - m for m, r in zip(middles, ratios, strict=True)]
        places = [number + (index - (len(names) - 1) / 2) * height for number in range(len(rows))]
        axes.barh(
            places,
            middles,
            height,
            xerr=[below, above],
            label=name,
            color=COLOURS[name],
            error_kw={"elinewidth": 0.8, "capsize": 1.5},
        )
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [content["rows"][row]["title"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"time against {base_name} (shorter is faster; lines: lowest to highest)")
    axes.legend(loc="best", fontsize="small")
    machine = content["machine"]
    axes.set_title(
        f"{content['plan']}: Linux {machine['kernel']}, {machine['cpus']} CPUs, "
        f"Python {machine['python']}, {content['rounds']} rounds",
        fontsize="small",
    )
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in written:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return written
