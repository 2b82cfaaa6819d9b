"""The tables and the plot of compare.py, from the samples of all its runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import _common as common

LESS_IS_BETTER = ("load", "memory")
RATES = ("prefill", "decode")  # in tokens/s, by the first word of their names
TITLES = {"load": "load, s", "memory": "peak memory, MB", "share": "decode over reading"}
DIGITS = {"load": 2, "memory": 0}
ORDER = ("prefill", "decode", "share", "load", "memory")


@dataclass
class Pair:
    """A rival beside lowbit at as many bits: (theirs, ours) by measure, of rounds in which both were measured."""

    ours: str
    bits: tuple[dict[str, float], dict[str, float]]
    samples: dict[str, list[tuple[float, float]]] = field(default_factory=dict)

    def medians(self, measure: str) -> tuple[float, float, float]:
        """Returns theirs, ours, and the median ratio of a round, above 1 where ours is better."""
        theirs, ours = zip(*self.samples[measure], strict=True)
        ratio = common.ratio(theirs, ours) if measure in LESS_IS_BETTER else common.ratio(ours, theirs)
        return common.median(theirs), common.median(ours), ratio


Place = tuple[str, str, int]  # CPU, tier, threads: what may not be mixed


def merge(runs: list[dict[str, Any]]) -> dict[Place, dict[str, dict[str, Pair]]]:
    """Returns pairs by place, shape and rival; samples of several runs add up."""
    places: dict[Place, dict[str, dict[str, Pair]]] = {}
    for run in runs:
        place = (run["machine"]["cpu"], run["tier"], run["threads"])
        pairs = places.setdefault(place, {}).setdefault(run["shape"], {})
        for rival, ours in run["against"].items():
            pair = pairs.setdefault(rival, Pair(ours, (run["bits"][rival], run["bits"][ours])))
            for measure, theirs in run["samples"][rival].items():
                beside = run["samples"][ours].get(measure, [])
                if len(theirs) != len(beside):
                    continue
                pair.samples.setdefault(measure, []).extend(zip(theirs, beside, strict=True))
                if measure == "decode" and run["reads"]:
                    shares = zip(_shares(run, rival), _shares(run, ours), strict=True)
                    pair.samples.setdefault("share", []).extend(shares)
    return {
        place: {shape: dict(sorted(pairs.items(), key=lambda item: item[0].lower())) for shape, pairs in shapes.items()}
        for place, shapes in places.items()
    }


def _shares(run: dict[str, Any], name: str) -> list[float]:
    """Returns the bytes of weights that steps read per second, over the rate of a plain reader in the same round."""
    step = sum(run["bits"][name][part] * weights / 8e9 for part, weights in run["weights"].items())
    samples = zip(run["samples"][name]["decode"], run["reads"], strict=True)
    return [rate * step / read for rate, read in samples]


def _measures(pairs: dict[str, Pair]) -> list[str]:
    """Returns what was measured of any pair, rates first."""
    found = {measure for pair in pairs.values() for measure in pair.samples}
    return sorted(found, key=lambda name: (ORDER.index(name.split()[0]), len(name), name))


def _rates(pairs: dict[str, Pair]) -> list[str]:
    return [measure for measure in _measures(pairs) if measure.split()[0] in RATES]


def _cell(pair: Pair, measure: str) -> str:
    """Returns "ratio (ours, theirs)", in italics where ours is worse."""
    if measure not in pair.samples:
        return ""
    theirs, ours, ratio = pair.medians(measure)
    if measure == "share":
        return f"{ours:.0%}, {theirs:.0%}"
    digits = DIGITS.get(measure, 1 if min(theirs, ours) < 100 else 0)
    mark = "*" if ratio < 1 else ""
    return f"{mark}{ratio:.2f}{mark} ({ours:.{digits}f}, {theirs:.{digits}f})"


def _bits(bits: dict[str, float]) -> str:
    return f"{bits['body']:.2f} / {bits['head']:.2f}"


def tables(runs: list[dict[str, Any]]) -> str:
    """Returns a Markdown table for each place and shape, and where its figures come from."""
    text = []
    for place, shapes in merge(runs).items():
        here = [run for run in runs if (run["machine"]["cpu"], run["tier"], run["threads"]) == place]
        text.append(_context(place, here))
        for shape, pairs in shapes.items():
            measures = _measures(pairs)
            titles = [TITLES.get(measure, measure) for measure in measures]
            lines = [[shape, "bits", "lowbit", "bits", *titles], ["---", "--:", "---", "--:"] + ["--:"] * len(titles)]
            for rival, pair in pairs.items():
                theirs, ours = map(_bits, pair.bits)
                lines.append([rival, theirs, pair.ours, ours, *(_cell(pair, measure) for measure in measures)])
            text.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    return "\n\n".join(text) + "\n" if text else "nothing measured\n"


def _context(place: Place, runs: list[dict[str, Any]]) -> str:
    """Returns machine, versions and commits in words."""
    cpu, tier, threads = place
    rivals = {run["versions"][rival]: None for run in runs for rival in run["against"]}
    rounds = [len(values) for run in runs for found in run["samples"].values() for values in found.values()]
    commits = dict.fromkeys(run["machine"]["commit"] for run in runs)
    others = [share for run in runs for share in run["others"]] or [0.0]
    return (
        f"{cpu}, tier {tier}, {threads} threads; lowbit at {', '.join(commits)}; {'; '.join(rivals)}. "
        f"{len(runs)} runs of up to {max(rounds, default=0)} rounds; other processes took {common.median(others):.0%} "
        f"of the CPU (median; at worst {max(others):.0%}). Cells: ratio (lowbit, rival), above 1 where lowbit is "
        "ahead, prompts and steps in tokens/s; the weights that steps of one sequence read, over plain reading."
    )


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """Draws tokens/s of lowbit and each rival, a row of panels for each place and shape."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from None
    fonts = {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "sans-serif"], "font.size": 8}
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "lowbit", **fonts})
    rows = [(place, shape, pairs) for place, shapes in merge(runs).items() for shape, pairs in shapes.items()]
    rows = [(place, shape, pairs) for place, shape, pairs in rows if _rates(pairs)]
    if not rows:
        raise SystemExit("nothing measured that could be drawn")
    columns = max(len(_rates(pairs)) for _, _, pairs in rows)
    heights = [0.7 + 0.42 * len(pairs) for _, _, pairs in rows]
    figure = Figure(figsize=(2 + 2.6 * columns, sum(heights)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    for axes, (place, shape, pairs) in zip(grid, rows, strict=True):
        measures = _rates(pairs)
        for axis, measure in zip(axes, measures, strict=False):
            for i, pair in enumerate(pairs.values()):
                if measure in pair.samples:
                    theirs, ours, ratio = pair.medians(measure)
                    first = i == 0
                    axis.barh(i - 0.2, ours, 0.38, color="#1f77b4", label="lowbit, as many bits" if first else None)
                    axis.barh(i + 0.2, theirs, 0.38, color="#b0b0b0", label="rival" if first else None)
                    axis.annotate(f"{ratio:.2f} x", (ours, i - 0.2), (3, 0), textcoords="offset points", va="center")
            axis.set_yticks(range(len(pairs)), pairs if axis is axes[0] else [""] * len(pairs))
            axis.invert_yaxis()
            axis.margins(x=0.18)
            axis.spines[["top", "right"]].set_visible(False)
            axis.set_title(f"{shape}, {place[1]}: {measure}")
            axis.set_xlabel("tokens/s")
        for axis in axes[len(measures) :]:
            axis.set_axis_off()
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)
