"""Plots as SVG, drawn by matplotlib from a benchmark's figures, so that they can be drawn again from the JSON."""

from math import log10
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

mpl.rcParams["svg.fonttype"] = "none"  # text stays text: small files that can be searched
mpl.rcParams["svg.hashsalt"] = "sekali"  # the same figures give the same file
mpl.rcParams["font.family"] = "sans-serif"

COLOURS = ("#1f6feb", "#d9822b", "#2da44e", "#8250df", "#cf222e", "#57606a")
_NINES_MAX = 6  # where the longest of all is drawn


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


def growth(figures: dict[str, Any]) -> Figure:
    """Events a second, and memory and disk, against stored events."""
    figure = Figure(figsize=(8, 6.5))
    rate, size = figure.subplots(2, 1, sharex=True)
    stored = [point["stored"] / 1e6 for point in figures["points"]]
    rate.plot(stored, [point["events_per_s"] for point in figures["points"]], color=COLOURS[0], marker=".")
    _from_zero(rate, "acknowledged events a second while a store of random ids fills", "events/s")
    for key, label, colour in (("private_bytes", "private memory", COLOURS[1]), ("wal_bytes", "WAL", COLOURS[2])):
        size.plot(stored, [point[key] / 1e6 for point in figures["points"]], color=colour, marker=".", label=label)
    _from_zero(size, "private memory and write-ahead log", "MB")
    size.legend(frameon=False)
    size.set_xlabel("stored events, millions")
    return figure


def index(figures: dict[str, Any]) -> Figure:
    """Keys a second against keys."""
    figure = Figure(figsize=(8, 3.5))
    axes = figure.subplots()
    keys, rates = [point[0] / 1e6 for point in figures["points"]], [point[1] for point in figures["points"]]
    axes.plot(keys, rates, color=COLOURS[0], marker=".", label="while it fills")
    axes.axhline(
        figures["rate_at_1_million"], color=COLOURS[1], linestyle="--", label="from half a million to 1 million keys"
    )
    _from_zero(axes, "the dedup index alone: keys looked up a second, four in five added", "keys/s")
    axes.set_xlabel("keys, millions")
    axes.legend(frameon=False)
    return figure


def latency(figures: dict[str, Any]) -> Figure:
    """Latency against percentile, each step to the right one more nine."""
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    for place, (name, one) in enumerate(figures["summary"].items()):
        # The longest is drawn a step behind the last percentile: it has no place on this scale.
        nines = [_NINES_MAX if at == 100 else -log10(1 - at / 100) for at, _ in one.get("curve", [])]
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(nines, [ms for _, ms in one.get("curve", [])], color=colour, marker=".", label=name)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks([0, 1, 2, 3, 4, 5, _NINES_MAX], ["0", "90", "99", "99.9", "99.99", "99.999", "max"])
    axes.set_xlabel("percentile")
    axes.set_ylabel("ms from when it was due")
    axes.set_title("latency under load, open loop", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small")
    return figure


def reads(figures: dict[str, Any]) -> Figure:
    """The 99th percentile of each kind of page, at rest and while writing."""
    kinds = list(figures["reads"])
    figure = Figure(figsize=(8, 0.8 + 0.6 * len(kinds)))
    axes = figure.subplots()
    for place, when in enumerate(("at rest", "while writing")):
        values = [figures["reads"][kind][when]["p99_ms"] for kind in kinds]
        at = [number + 0.4 * place for number in range(len(kinds))]
        drawn = axes.barh(at, values, height=0.38, color=COLOURS[place], label=when)
        axes.bar_label(drawn, fmt="{:.1f}", padding=4)
    axes.set_yticks([number + 0.2 for number in range(len(kinds))], kinds)
    axes.invert_yaxis()
    axes.set_title(f"p99 of reading from {figures['stored'] / 1e6:,.3g} million events", fontsize="medium")
    axes.set_xlabel("ms")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    return figure


def follow(figures: dict[str, Any]) -> Figure:
    """Latency of live followers, and the rate of ingest beside idle ones."""
    figure = Figure(figsize=(8, 4.5))
    live, idle = figure.subplots(2, 1, height_ratios=(3, 1))
    names = [name for name, one in figures["live"].items() if "failures" not in one]
    for place, percentile in enumerate(("p50", "p99")):
        at = [number + 0.4 * place for number in range(len(names))]
        values = [figures["live"][name][f"follower_{percentile}_ms"] for name in names]
        drawn = live.barh(at, values, height=0.38, color=COLOURS[place], label=percentile)
        live.bar_label(drawn, fmt="{:.1f}", padding=4)
    live.set_yticks([number + 0.2 for number in range(len(names))], names)
    live.set_title("100 live followers: from the commit to the follower, ms", fontsize="medium")
    live.legend(frameon=False, loc="lower right")
    rates = figures["idle"].get("events_per_s", {})
    drawn = idle.barh(list(rates), list(rates.values()), color=COLOURS[2])
    idle.bar_label(drawn, fmt="{:,.0f}", padding=4)
    idle.set_title("full ingest, events/s", fontsize="medium")
    for axes in (live, idle):
        axes.invert_yaxis()
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def consume(figures: dict[str, Any]) -> Figure:
    """Events a second beside each kind of consumers."""
    values = {f"beside {name}": one["events_per_s"] for name, one in figures["summary"].items()}
    return bars(list(values), list(values.values()), title="full ingest beside consumers", unit="events/s")


def stall(figures: dict[str, Any]) -> Figure:
    """The longest answer and the longest bare fsync of each second."""
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    latency, bare = figures["steady"]["latency_ms"], figures["fsync_ms"]
    axes.plot(latency["max_by_second"], color=COLOURS[0], linewidth=0.8, label="longest answer")
    axes.plot(bare["max_by_second"], color=COLOURS[1], linewidth=0.8, label="longest bare fsync")
    axes.axhline(latency["p50"], color=COLOURS[5], linestyle="--", linewidth=0.8, label="median answer")
    _from_zero(axes, f"{figures['offered_events_per_s']:,.0f} events/s, the longest of each second", "ms")
    axes.set_xlabel("s")
    axes.legend(frameon=False)
    return figure


def peers(figures: dict[str, Any]) -> Figure:
    """Events a second of each system."""
    rates = figures["rates"]
    return bars(list(rates), list(rates.values()), title="the same events, 20 % duplicates", unit="events/s")


def _from_zero(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_ylabel(unit)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(axis="y", alpha=0.3)


PLOTS = {
    "ceiling": ceiling,
    "ingest": ingest,
    "growth": growth,
    "index": index,
    "latency": latency,
    "reads": reads,
    "follow": follow,
    "consume": consume,
    "stall": stall,
    "peers": peers,
}
