"""What does precision cost in time? A prompt and a step by how many matrices compute in fp32, and the measure itself.

Weights are packed tensors filled with one byte, so any shape starts in a second. Reports times over those of "fast"
(what "auto" is for a model without outliers), variants taken in turn: one matrix of every layer in fp32 (the one that
reads the MLP's inner layer), half of the layers, and all ("high").

    python benchmarks/bench_precision.py --shapes qwen2-0.5b --rounds 5
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import _common as common
import numpy as np
from bench_phases import synthetic
from make_model import COMMON, SHAPES

from lowbit import models, ops, precision
from lowbit.checkpoint import LoadedModel
from lowbit.runtime import Runtime


def measure(shape: str, low_bit: str, prompt: int, rounds: int, runtime: Any) -> list[dict[str, Any]]:
    """Returns one row per variant of a shape."""
    family = models.family({**COMMON, **SHAPES[shape]})
    spec, tensors = family.spec, synthetic(family, low_bit, "sym_int8")
    loaded = LoadedModel(spec, tensors, {})
    start = time.perf_counter()
    roles = list(precision.measure(loaded, runtime))
    probe = time.perf_counter() - start
    chosen = {
        "fast": [],
        "down in fp32": [role for role in roles if role.endswith(".down")],
        "half of the layers": [role for role in roles if role != "head" and int(role.split(".")[1]) % 2],
        "high": roles,
    }
    decoders = {
        name: ops.decoder(spec.to_dict(), tensors, "int8", runtime.tier, exact) for name, exact in chosen.items()
    }

    def taken(decoder: Any, tokens: int, steps: int) -> Callable[[], float]:
        """Seconds of one pass of `tokens`, the mean of `steps`."""

        def sample() -> float:
            cache = ops.kv_cache(spec.layers, spec.kv_heads, spec.head_dim, tokens * steps)
            ids = np.arange(tokens, dtype=np.int32) + 9
            start = time.perf_counter()
            for _ in range(steps):
                ops.forward(decoder, [(cache, ids, False)], runtime.pool)
            return (time.perf_counter() - start) / steps

        return sample

    prefills = common.interleave({name: taken(d, prompt, 1) for name, d in decoders.items()}, rounds)
    steps = common.interleave({name: taken(d, 1, 8) for name, d in decoders.items()}, rounds)
    return [
        {
            "shape": shape, "format": low_bit, "precision": name, "prompt ms": 1000 * common.median(prefills[name]),
            "prompt over fast": round(common.ratio(prefills[name], prefills["fast"]), 2),
            "step ms": 1000 * common.median(steps[name]),
            "step over fast": round(common.ratio(steps[name], steps["fast"]), 2), "measure s": round(probe, 2),
        }
        for name in chosen
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["qwen2-0.5b", "llama-1b"], choices=SHAPES)
    parser.add_argument("--formats", nargs="+", default=["sym_int4"])
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", help="file for the figures, - for standard output")
    args = parser.parse_args()
    runtime = Runtime(threads=args.threads).resolve()
    rows = [r for s in args.shapes for f in args.formats for r in measure(s, f, args.prompt, args.rounds, runtime)]
    common.report("precision", rows, args.json, threads=runtime.threads, tier=runtime.tier, prompt=args.prompt)


if __name__ == "__main__":
    main()
