"""How fast does a model decode and prefill far into a context, and how near is a step to the memory bandwidth?

Each context is a cache filled with zeros (a step's time does not depend on what is in it), of every `--kv` type, in
one process and sampled in turn. A step reads all weights and all keys and values; the share is what it reads per second
over the multi-stream read bandwidth, sampled beside it. Prefill is one pass over `--chunk` tokens behind the context.

    python benchmarks/bench_longctx.py --models /tmp/models --shapes qwen2-0.5b --contexts 2048 8192 32000
"""

import time
from typing import Any

import _common as common
import numpy as np
from bench_decode import READ_BYTES, weight_bytes_per_step

from lowbit import ops
from lowbit.runtime import pool


def filled(model: Any, context: int, dtype: str, room: int) -> Any:
    """Returns a cache of `context` positions with room for more."""
    spec = model.spec
    cache = ops.kv_cache(spec.layers, spec.kv_heads, spec.head_dim, context + room, dtype)
    cache.fill(context)
    return cache


def passes(model: Any, cache: Any, tokens: int) -> float:
    """Returns the seconds of one pass over `tokens` behind what is in a cache, which then is as it was."""
    length = cache.length
    ids = np.arange(tokens, dtype=np.int32) + 7
    start = time.perf_counter()
    model.generator.engine.forward([(cache, ids, False)])
    seconds = time.perf_counter() - start
    cache.truncate(length)
    return seconds


def measure(model: Any, context: int, kinds: list[str], chunk: int, rounds: int, read: Any) -> list[dict[str, Any]]:
    """Returns a row for each kind of cache at a context."""
    weights = weight_bytes_per_step(model.loaded.tensors, model.spec.tied_head)
    caches = {kind: filled(model, context, kind, chunk) for kind in kinds}
    ways: dict[Any, Any] = {"read": read}
    ways |= {kind: lambda c=cache: passes(model, c, 1) for kind, cache in caches.items()}
    samples = common.interleave(ways, rounds)
    chunks = common.interleave({k: lambda c=c: passes(model, c, chunk) for k, c in caches.items()}, max(1, rounds // 8))
    rows = []
    for kind, cache in caches.items():
        kv = cache.bytes_per_position * context
        rates = [(weights + kv) / seconds / 1e9 for seconds in samples[kind]]
        step = common.median(samples[kind])
        rows.append(
            {
                "context": context,
                "kv": kind,
                "weight_mb": round(weights / 1e6, 1),
                "kv_mb": round(kv / 1e6, 1),
                "step_ms": f"{step * 1e3:.2f}",
                "tok_s": round(1 / step, 1),
                "over_first": f"{common.ratio(samples[kinds[0]], samples[kind]):.2f}",
                "share": f"{common.ratio(rates, samples['read']):.2f}",
                "prefill_tok_s": round(chunk / common.median(chunks[kind])),
            }
        )
    return rows


def main() -> None:
    parser = common.model_parser(__doc__, rounds=24)
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--kv", nargs="+", default=["int16", "fp16", "int8"])
    parser.add_argument("--chunk", type=int, default=128)
    args = parser.parse_args()
    rows = []
    for shape, model in common.models_of(args):
        _, read = common.reader(pool(args.threads), common.buffer(READ_BYTES))
        for context in args.contexts:
            found = measure(model, context, args.kv, args.chunk, args.rounds, read)
            rows += [{"shape": shape, "format": args.format, **row} for row in found]
    common.report("longctx", rows, args.json, threads=args.threads)


if __name__ == "__main__":
    main()
