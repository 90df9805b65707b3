"""Draw bars of what it is given as a file of JSON; run by a Python that has matplotlib."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update({"svg.hashsalt": "benchmarks", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9})

from matplotlib import pyplot as plt  # noqa: E402  # the backend comes first

OURS, OTHERS = "#2a6fb0", "#b5bcc4"


def draw(path: str, title: str, unit: str, bars: list[list[Any]], *, is_ratio: bool) -> None:
    """Draw one bar for each row: its title, whether it is ours, median, least, greatest."""
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.3 * len(bars)), layout="constrained")
    names, ours, medians, least, greatest = zip(*bars, strict=True)
    errors = [
        [m - x for m, x in zip(medians, least, strict=True)],
        [x - m for m, x in zip(medians, greatest, strict=True)],
    ]
    axes.barh(
        names, medians, xerr=errors, color=[OURS if own else OTHERS for own in ours], ecolor="#444444", height=0.7
    )
    axes.bar_label(axes.containers[1], [f" {m:,.0f}" if m >= 100 else f" {m:.2f}" for m in medians], padding=3)
    axes.margins(x=0.12)
    axes.invert_yaxis()
    if is_ratio:
        axes.axvline(1, color="#444444", linewidth=0.8, linestyle=":")
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


for one in json.loads(Path(sys.argv[1]).read_text()):
    if one["bars"]:
        draw(**one)
