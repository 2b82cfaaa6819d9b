"""How close do linear products come to memory speed, and for many rows to the speed of the arithmetic units?

GB/s of packed weights beside the best plain reader of the run, and multiply-adds per second beside a loop of the same
instruction on registers alone ("% of peak"). Weights fill several hundred MB of huge pages, so nothing stays in a
cache: what a decoder does for one token (m = 1), and a prefill for hundreds.

    python benchmarks/bench_linear.py --formats sym_int4 nf4 --m 1 8            # a step
    python benchmarks/bench_linear.py --formats sym_int4 bf16 --m 128 512 --megabytes 48 --rounds 5   # a prefill
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
from _common import CLOCKS, buffer, interleave, median, ops, ratio, reader, report

from lowbit import formats, quantize

FORMATS = [f.name for f in formats.FORMATS.values()]
TIERS = [t for t in ops.tiers() if t != "scalar"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--tiers", nargs="+", default=TIERS, choices=ops.TIERS)
    parser.add_argument("--compute", nargs="+", default=["int8", "fp32"], choices=ops.COMPUTE)
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, ops.pool().size}))
    parser.add_argument("--m", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=11008)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--megabytes", type=int, default=384, help="of weights per sample")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that other jobs share")
    parser.add_argument("--json", metavar="FILE", help="write the result there; - for standard output")
    return parser.parse_args()


def product(pool: Any, weights: tuple[Any, ...], tier: str, compute: str, m: int, clock: str) -> Callable[[], float]:
    """Returns a function that samples GB/s of one product of m rows with each of the weights.

    weights: format id, rows, k, group size, and the bytes of whole packed weights behind each other.
    """
    format_id, rows, k, group_size, data = weights
    k_padded = ops.layout(format_id, rows, k, group_size)["k_padded"]
    x = np.random.default_rng(m).normal(0, 1, (m, k_padded)).astype(np.float32)
    arguments = (pool, ops.TIERS.index(tier), ops.COMPUTE.index(compute), *weights, x)
    return lambda: data.size / ops.native().linear_seconds(*arguments)[CLOCKS.index(clock)] / 1e9


def peak(pool: Any, tier: str, compute: str, clock: str) -> Callable[[], float]:
    """Returns a function that samples 1e9 multiply-adds per second of the tier's instruction on registers alone."""
    arguments = (pool, ops.TIERS.index(tier), ops.COMPUTE.index(compute), 0.02)
    return lambda: ops.native().peak_rate(*arguments)[CLOCKS.index(clock)] / 1e9


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns one row per threads, tier, compute type and m for a format."""
    weight = np.random.default_rng(0).normal(0, 0.02, (args.rows, args.k)).astype(np.float32)
    packed = quantize.quantize(weight, name, args.group_size)
    format_id, _, _, group_size, *_ = packed.native()
    copies = max(1, args.megabytes * 10**6 // packed.data.size)
    data = buffer(copies * packed.data.size, packed.data)
    weights = (format_id, args.rows, args.k, group_size, data)
    compute_types = list(dict.fromkeys(ops.effective_compute(format_id, c) for c in args.compute))
    rows = []
    for threads in args.threads:
        pool = ops.native().ThreadPool(threads)
        read_name, read = reader(pool, data, args.clock)
        keys = [(tier, compute, m) for tier in args.tiers for compute in compute_types for m in args.m]
        peaks = {(t, c): peak(pool, t, c, args.clock) for t in args.tiers for c in compute_types}
        products = {key: product(pool, weights, *key, args.clock) for key in keys}
        samples = interleave({"read": read} | peaks | products, args.rounds)
        for key in keys:
            tier, compute, m = key
            row = {"format": name, "tier": tier, "compute": compute, "threads": threads, "m": m}
            row |= {"GB/s": median(samples[key]), "best": max(samples[key]), "read GB/s": median(samples["read"])}
            row |= {"% of read": 100 * ratio(samples[key], samples["read"])}
            macs = [gb_s / packed.data.size * args.rows * args.k * m for gb_s in samples[key]]
            row |= {"GMAC/s": median(macs), "% of peak": 100 * ratio(macs, samples[tier, compute])}
            rows.append(row | {"reader": read_name})
    return rows


def main() -> None:
    args = parse()
    rows = [row for name in args.formats for row in measure(name, args)]
    context = {"shape": f"{args.rows}x{args.k}", "group_size": args.group_size, "megabytes": args.megabytes}
    report("bench_linear", rows, args.json, **context, clock=args.clock)


if __name__ == "__main__":
    main()
