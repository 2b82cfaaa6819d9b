"""How close do linear products come to memory speed? GB/s of packed weights beside the best plain reader of the same run.

One layer's worth of activations is multiplied with weights that fill several hundred MB of huge pages, so nothing stays in a
cache: what a decoder does for one token. For batches the rate falls where arithmetic takes over.
"""

from __future__ import annotations

import argparse

import numpy as np
from _common import CLOCKS, buffer, interleave, median, ops, ratio, reader, report
from lowbit import formats, quantize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    scaled = [f.name for f in formats.FORMATS.values()]
    parser.add_argument("--formats", nargs="+", default=scaled, choices=scaled)
    parser.add_argument("--tiers", nargs="+", default=[t for t in ops.tiers() if t not in ("scalar", "amx")], choices=ops.TIERS)
    parser.add_argument("--compute", nargs="+", default=["int8", "fp32"])
    parser.add_argument("--threads", nargs="+", type=int, default=sorted({1, ops.native().allowed_cpus()}))
    parser.add_argument("--m", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--rows", type=int, default=11008)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--megabytes", type=int, default=384, help="of weights per sample")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: for a machine that other jobs share")
    parser.add_argument("--json", metavar="FILE", help="write the result there; - for standard output")
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    weight = rng.normal(0, 0.02, (args.rows, args.k)).astype(np.float32)
    rows = []
    for name in args.formats:
        packed = quantize.quantize(weight, name, args.group_size)
        copies = max(1, args.megabytes * 10**6 // packed.data.size)
        data = buffer(copies * packed.data.size, packed.data)
        format_id, _, _, group_size, *_ = packed.native()
        k_padded = ops.layout(format_id, args.rows, args.k, group_size)["k_padded"]
        for threads in args.threads:
            pool = ops.native().ThreadPool(threads)
            read_name, read = reader(pool, data, args.clock)
            variants = {}
            for tier in args.tiers:
                for compute in args.compute:
                    if compute == "int8" and not ops.has_int8_compute(format_id):
                        continue
                    for m in args.m:
                        x = rng.normal(0, 1, (m, k_padded)).astype(np.float32)

                        def sample(tier=tier, compute=compute, x=x) -> float:
                            arguments = (format_id, args.rows, args.k, group_size, data, x)
                            tier_id, compute_id = ops.TIERS.index(tier), ops.COMPUTE.index(compute)
                            times = ops.native().linear_seconds(pool, tier_id, compute_id, *arguments)
                            return data.size / times[CLOCKS.index(args.clock)] / 1e9

                        variants[tier, compute, m] = sample
            samples = interleave({"read": read, **variants}, args.rounds)
            for tier, compute, m in variants:
                gbs = samples[tier, compute, m]
                rows.append(
                    {
                        "format": name, "tier": tier, "compute": compute, "threads": threads, "m": m,
                        "GB/s": median(gbs), "best": max(gbs), "read GB/s": median(samples["read"]),
                        "% of read": 100 * ratio(gbs, samples["read"]), "reader": read_name,
                    }
                )  # fmt: skip
    shape = {"shape": f"{args.rows}x{args.k}", "group_size": args.group_size, "megabytes": args.megabytes, "clock": args.clock}
    report("bench_linear", rows, args.json, **shape)


if __name__ == "__main__":
    main()
