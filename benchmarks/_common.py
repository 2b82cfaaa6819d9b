"""What every benchmark shares: the machine and the commit in words, interleaved samples, medians, JSON.

Single numbers mean nothing on a shared machine: variants are sampled in turn (A, B, C, A, B, C ...) beside a reference
in the same process, and reported as the median of each and of its per-round ratio to the reference.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
try:
    import lowbit  # the installed package, or PYTHONPATH=backend
except ImportError:
    sys.path.insert(0, str(ROOT / "backend"))
    import lowbit

from lowbit import ops, packed  # noqa: E402


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def commit() -> str:
    """Returns the checkout's commit, with "+" when files differ from it; "unknown" outside a checkout."""
    try:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, Any]:
    """Returns CPU, tiers, CPUs, memory in GiB, Python and commit: the context of every number."""
    features = ops.cpu_features()
    memory = 0
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        memory = int(meminfo.read_text().split("MemTotal:")[1].split()[0]) // 1024**2
    return {
        "cpu": f"{features['vendor']} {features['brand']}".strip(),
        "tiers": ops.tiers(),
        "cpus": ops.pool().size,
        "memory_gib": memory,
        "python": platform.python_version(),
        "commit": commit(),
    }


def model_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """Returns a parser with the arguments of every benchmark of whole synthetic models; `rounds` is its default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["qwen2-0.5b", "llama-1b"])
    parser.add_argument("--format", default="sym_int4")
    parser.add_argument("--models", help="folder that keeps the synthetic models between runs (default: temporary)")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", help="file for the figures, - for standard output")
    return parser


def models_of(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yields each shape that was asked for with its model, loaded; folders are made where they are not there."""
    with tempfile.TemporaryDirectory() as scratch:
        for shape in arguments.shapes:
            folder = low_bit_folder(shape, arguments.format, Path(arguments.models or scratch))
            yield shape, lowbit.load(str(folder), threads=arguments.threads)


def low_bit_folder(shape: str, format_name: str, root: Path) -> Path:
    """Returns a low-bit folder of a synthetic model below `root`, made when it is not there."""
    from make_model import make_model

    folder = root / f"{shape}-{format_name}"
    if not (folder / "config.json").exists():
        if not (root / shape / "config.json").exists():
            make_model(shape, root / shape)
        lowbit.load(str(root / shape), low_bit=format_name).save_low_bit(str(folder))
    return folder


def interleave(variants: Mapping[Any, Callable[[], float]], rounds: int) -> dict[Any, list[float]]:
    """Returns `rounds` samples of every variant, taken in turn after one unmeasured round."""
    samples: dict[Any, list[float]] = {name: [] for name in variants}
    for each in variants.values():
        each()
    for _ in range(rounds):
        for name, each in variants.items():
            samples[name].append(each())
    return samples


def median(values: list[float]) -> float:
    """Returns the median."""
    return statistics.median(values)


def ratio(values: list[float], reference: list[float]) -> float:
    """Returns the median of the per-round ratios values[i] / reference[i]."""
    return statistics.median(v / r for v, r in zip(values, reference, strict=True))


def buffer(size: int, fill: np.ndarray | None = None) -> np.ndarray:
    """Returns `size` bytes in huge pages, every page touched, filled with whole copies of `fill` when given."""
    data = packed.empty(size)
    if fill is None:
        data[:] = 1
    else:
        for start in range(0, size - fill.size + 1, fill.size):
            data[start : start + fill.size] = fill
    return data


READERS = {f"{s} x {a}": (s, a) for s in (1, 4, 8) for a in (0, 1024, 2048)}  # streams x bytes prefetched ahead


CLOCKS = ("wall", "cpu")  # what the native timers return; cpu (of the slowest thread) where other jobs take turns


def reader(pool: Any, data: np.ndarray, clock: str = "wall") -> tuple[str, Callable[[], float]]:
    """Returns the fastest way this pool reads `data` and a function that samples its GB/s."""

    def sample(streams: int, ahead: int) -> float:
        return data.size / ops.native().read_seconds(pool, data, streams, ahead)[CLOCKS.index(clock)] / 1e9

    trials = interleave({name: lambda a=arguments: sample(*a) for name, arguments in READERS.items()}, 5)
    best = max(trials, key=lambda name: median(trials[name]))
    return best, lambda: sample(*READERS[best])


def table(rows: list[dict[str, Any]]) -> str:
    """Returns rows of equal keys as aligned text; floats with three significant digits at least."""
    if not rows:
        return "(nothing measured)"
    text = [list(rows[0])] + [[f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    widths = [max(len(line[i]) for line in text) for i in range(len(text[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in text)


def report(name: str, rows: list[dict[str, Any]], json_path: str | None, **context: Any) -> None:
    """Prints the machine and the rows; writes them to `json_path` ("-": standard output) as JSON."""
    result = {"benchmark": name, "machine": machine(), **context, "rows": rows}
    if json_path == "-":
        print(json.dumps(result, indent=1))
        return
    print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in (result["machine"] | context).items()))
    print(table(rows))
    if json_path:
        Path(json_path).write_text(json.dumps(result, indent=1) + "\n")
