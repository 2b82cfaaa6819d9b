"""How long does loading take, and how much memory?

Per shape and format, each in a fresh process: seconds and peak memory of quantising a bf16 checkpoint, seconds of
saving, and seconds of opening the saved low-bit folder: from the disk and from the page cache, with every byte checked
and with none. Peak memory is the growth of the process while loading; its bound is what has to be there: the packed
model and the largest bf16 tensor. `huge` is the share of the mapped weights that the kernel maps in 2 MiB pages.

    python benchmarks/bench_load.py --shapes qwen2-0.5b llama-1b --formats sym_int4 nf4
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _common as common
import numpy as np
from make_model import SHAPES, make_model, tensor_shapes

from lowbit.runtime import Runtime


def status(key: str) -> int:
    """Returns a line of /proc/self/status in bytes."""
    return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def huge_share(file: Path) -> float:
    """Returns which part of the resident pages of a mapped file are huge."""
    resident = huge = 0
    wanted = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        key, _, value = line.partition(":")
        if "-" in key:
            wanted = str(file) in line
        elif wanted and key == "Rss":
            resident += int(value.split()[0])
        elif wanted and key == "FilePmdMapped":
            huge += int(value.split()[0])
    return huge / max(1, resident)


def drop_from_cache(folder: Path) -> None:
    """Makes the kernel forget the contents of a folder's files."""
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def quantise(source: str, low_bit: str, target: str) -> dict:
    """Returns seconds and memory of load_model and save."""
    from lowbit import checkpoint, loading

    runtime = Runtime().resolve()
    assert runtime.pool
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = status("VmRSS")
    start = time.perf_counter()
    loaded = loading.load_model(source, low_bit, runtime=runtime)
    seconds = time.perf_counter() - start
    peak = status("VmHWM") - before
    start = time.perf_counter()
    checkpoint.save(loaded, target)
    return {
        "load_s": seconds,
        "packed_mb": loaded.packed_bytes / 1e6,
        "peak_mb": peak / 1e6,
        "save_s": time.perf_counter() - start,
    }


def open_folder(folder: str, verify: bool) -> dict:
    """Returns seconds of opening a low-bit folder."""
    from lowbit import checkpoint

    start = time.perf_counter()
    loaded = checkpoint.load(folder, verify=verify)
    seconds = time.perf_counter() - start
    for tensor in loaded.tensors.values():  # every page, so that the share of huge ones means something
        (tensor if isinstance(tensor, np.ndarray) else tensor.data).reshape(-1)[::1024].max()
    return {"seconds": seconds, "huge": huge_share(Path(folder) / checkpoint.WEIGHTS)}


def fresh(*arguments: str) -> dict:
    """Returns what a function of this file measures in a process of its own."""
    command = [sys.executable, __file__, "--run", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(shape: str, low_bit: str, root: Path, rounds: int) -> dict:
    """Returns one row: a shape in a format."""
    source, target = root / shape, root / f"{shape}-{low_bit}"
    if not (source / "config.json").exists():
        make_model(shape, source)
    loads = [fresh("quantise", str(source), low_bit, str(target)) for _ in range(rounds)]
    sizes = [2 * rows * columns for rows, columns in (s for s in tensor_shapes(SHAPES[shape]).values() if len(s) == 2)]
    row = {"shape": shape, "format": low_bit, "bf16_mb": (source / "model.safetensors").stat().st_size / 1e6}
    row |= {key: statistics.median(load[key] for load in loads) for key in loads[0]}
    row["peak_of_bound"] = row["peak_mb"] / (row["packed_mb"] + max(sizes) / 1e6)
    row["disk_mb"] = sum(path.stat().st_size for path in target.iterdir()) / 1e6
    for cache in ("cold", "warm"):
        for verify in (True, False):
            opened = []
            for _ in range(rounds):
                if cache == "cold":
                    drop_from_cache(target)
                opened.append(fresh("open_folder", str(target), str(int(verify))))
            name = f"open_{cache}_{'checked' if verify else 'unchecked'}_s"
            row[name] = statistics.median(each["seconds"] for each in opened)
        row[f"huge_{cache}"] = statistics.median(each["huge"] for each in opened)
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["qwen2-0.5b", "llama-1b"], choices=SHAPES)
    parser.add_argument("--formats", nargs="+", default=["sym_int4", "nf4"])
    parser.add_argument("--models", type=Path, help="folder that keeps the models between runs (default: temporary)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="write the result to this file as JSON; '-' for standard output only")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        function, *values = arguments.run
        result = quantise(*values) if function == "quantise" else open_folder(values[0], values[1] == "1")
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.models or Path(scratch)
        rows = [measure(s, f, root, arguments.rounds) for s in arguments.shapes for f in arguments.formats]
    runtime = Runtime().resolve()
    common.report("load", rows, arguments.json, tier=runtime.tier, threads=runtime.threads)


if __name__ == "__main__":
    main()
