"""How fast does a whole model read a prompt, and how near is that to what its multiply-adds could take?

Weights are packed tensors filled with one byte, so any shape starts in a second. Reports tokens/s, the multiply-adds of
the linear layers per second beside a loop of their instruction on registers alone, sampled in turn, and the
share of the time that each phase takes.

    python benchmarks/bench_prefill.py --shapes qwen2-0.5b llama-1b --prompts 512 4096
"""

import argparse
import time
from typing import Any

import _common as common
import numpy as np
from bench_phases import synthetic
from make_model import COMMON, SHAPES

from lowbit import formats, models, ops
from lowbit.packed import PackedTensor
from lowbit.runtime import COMPUTE_TYPES, KV_DTYPES, Runtime


def linear_macs(tensors: dict[str, Any]) -> int:
    """Returns multiply-adds per token of the layers' matrices; the head works for the last token alone."""
    layers = (t for name, t in tensors.items() if isinstance(t, PackedTensor) and name.startswith("layers."))
    return sum(int(np.prod(t.shape)) for t in layers)


def measure(
    shape: str, low_bit: str, prompts: list[int], caches: list[str], runtime: Any, rounds: int
) -> list[dict[str, Any]]:
    """Returns one row per prompt length and type of the KV cache."""
    family = models.family({**COMMON, **SHAPES[shape]})
    spec, tensors = family.spec, synthetic(family, low_bit, "sym_int8")
    decoder = ops.decoder(spec.to_dict(), tensors, runtime.compute, runtime.tier)
    macs = linear_macs(tensors)
    compute = ops.effective_compute(formats.resolve(low_bit).format.id, runtime.compute)
    arguments = (runtime.pool, ops.TIERS.index(runtime.tier), ops.COMPUTE.index(compute), 0.05)

    def prefill(tokens: int, kv: str) -> float:
        cache = ops.kv_cache(spec.layers, spec.kv_heads, spec.head_dim, tokens, kv)
        start = time.perf_counter()
        ops.forward(decoder, [(cache, np.arange(tokens, dtype=np.int32) + 9, False)], runtime.pool)
        return time.perf_counter() - start

    variants: dict[Any, Any] = {(n, kv): lambda n=n, kv=kv: prefill(n, kv) for n in prompts for kv in caches}
    variants["peak"] = lambda: ops.native().peak_rate(*arguments)[0]
    samples = common.interleave(variants, rounds)
    rows = []
    for tokens, kv in list(variants)[:-1]:
        seconds = samples[tokens, kv]
        rate = [macs * tokens / s for s in seconds]
        row = {"shape": shape, "format": low_bit, "prompt": tokens, "kv": kv, "tok/s": tokens / common.median(seconds)}
        row |= {"best tok/s": tokens / min(seconds), "linear GMAC/s": common.median(rate) / 1e9}
        row |= {"peak GMAC/s": common.median(samples["peak"]) / 1e9}
        row |= {"% of peak": 100 * common.ratio(rate, samples["peak"])}
        decoder.profile(True)
        whole = prefill(tokens, kv)
        phases = {name: s for name, s in decoder.phase_seconds().items() if s > 0.005 * whole}
        decoder.profile(False)
        row |= {"attention ms": 1e3 * phases.get("attention", 0.0)}
        rows.append(row | {"phases": " ".join(f"{name} {100 * s / whole:.0f}%" for name, s in phases.items())})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["qwen2-0.5b", "llama-1b"], choices=SHAPES)
    parser.add_argument("--formats", nargs="+", default=["sym_int4"])
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--kv", nargs="+", default=["int16"], choices=KV_DTYPES, help="types of the KV cache")
    parser.add_argument("--compute", default="int8", choices=COMPUTE_TYPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tier")
    parser.add_argument("--json", help="file for the figures, - for standard output")
    args = parser.parse_args()
    runtime = Runtime(threads=args.threads, tier=args.tier, compute=args.compute).resolve()
    rows = [
        r for s in args.shapes for f in args.formats for r in measure(s, f, args.prompts, args.kv, runtime, args.rounds)
    ]
    common.report("prefill", rows, args.json, threads=runtime.threads, tier=runtime.tier, compute=runtime.compute)


if __name__ == "__main__":
    main()
