"""Plots as SVG, drawn by matplotlib from a benchmark's figures, so that they can be drawn again from the JSON."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

mpl.rcParams["svg.fonttype"] = "none"  # text stays text: small files that can be searched
mpl.rcParams["svg.hashsalt"] = "sekali"  # the same figures give the same file
mpl.rcParams["font.family"] = "sans-serif"

COLOURS = ("#1f6feb", "#d9822b", "#2da44e", "#8250df", "#cf222e", "#57606a")


def save(figure: Figure, path: Path) -> None:
    """Write a plot."""
    figure.savefig(path, format="svg", metadata={"Date": None}, bbox_inches="tight")


def bars(labels: list[str], values: list[float], *, title: str, unit: str) -> Figure:
    """Draw one horizontal bar for each label, with its value."""
    figure = Figure(figsize=(8, 0.6 + 0.5 * len(labels)))
    axes = figure.subplots()
    drawn = axes.barh(labels, values, color=[COLOURS[place % len(COLOURS)] for place in range(len(labels))])
    axes.bar_label(drawn, fmt="{:,.0f}", padding=4)
    axes.invert_yaxis()
    axes.set_title(title)
    axes.set_xlabel(unit)
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return figure


def ceiling(figures: dict[str, Any]) -> Figure:
    """Rows a second of the ceiling, by kind of id."""
    kinds = ["uuid7", "uuid4"]
    values = [figures[kind]["rows_per_s"] for kind in kinds]
    return bars(kinds, values, title=f"ceiling, commits of {figures['commit_rows']} rows", unit="rows/s")


def ingest(figures: dict[str, Any]) -> Figure:
    """Events a second of each load, and of the ceiling."""
    values = {name: one["events_per_s"] for name, one in figures["summary"].items()}
    if figures["ceiling"]["runs"]:
        values["ceiling (no HTTP, one thread)"] = figures["ceiling"]["events_per_s"]
    return bars(list(values), list(values.values()), title="acknowledged events a second, fsync on", unit="events/s")


PLOTS = {"ceiling": ceiling, "ingest": ingest}
