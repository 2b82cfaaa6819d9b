"""Where does the time of a forward pass go? Milliseconds by phase for steps and a prompt, at several context lengths.

Weights are packed tensors filled with one byte, so any shape starts in a second. Member 0's clock ends a phase when
the whole team has finished it; a phase's bytes over its time say how near it is to the memory bandwidth.

    python benchmarks/bench_phases.py --shape qwen2-0.5b --format sym_int4 --contexts 16 1024 4096
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import _common as common
import numpy as np
from make_model import COMMON, SHAPES

from lowbit import models, ops
from lowbit.packed import PackedTensor

MATRIX_PHASE = {"qkv": "qkv", "o": "o", "gate_up": "up", "up": "up", "down": "down", "head": "head"}


def synthetic(family: models.Family, low_bit: str, head: str) -> dict[str, Any]:
    """Returns tensors of the right shapes; every byte of a matrix is 0x1c, which as an fp16 scale is 0.004."""
    s = family.spec
    tensors: dict[str, Any] = {}
    rows = {
        "qkv": ((s.heads + 2 * s.kv_heads) * s.head_dim, s.hidden_size),
        "o": (s.hidden_size, s.heads * s.head_dim),
        "gate_up": (2 * -(-s.ffn_size // 16) * 16, s.hidden_size),
        "up": (s.ffn_size, s.hidden_size),
        "down": (s.hidden_size, s.ffn_size),
        "embedding": (s.vocab_size, s.hidden_size),
        "head": (s.vocab_size, s.hidden_size),
    }
    for recipe in family.recipes:
        layer, name, kind = recipe.name.rpartition(".")[0], recipe.name.split(".")[-2], recipe.name.split(".")[-1]
        if recipe.kind == "vector":
            size = rows[name][0] if kind == "bias" and name in rows else s.hidden_size
            tensors[recipe.name] = np.ones(s.head_dim if layer.endswith(("q_norm", "k_norm")) else size, np.float32)
        else:
            tensor = PackedTensor.allocate(head if name in ("embedding", "head") else low_bit, rows[name])
            tensor.data.fill(0x1C)
            tensors[recipe.name] = tensor
    return tensors


def show(row: dict[str, float]) -> None:
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="qwen2-0.5b", choices=SHAPES)
    parser.add_argument("--format", default="sym_int4")
    parser.add_argument("--head", default="sym_int8")
    parser.add_argument("--contexts", type=int, nargs="+", default=[16, 1024, 4096])
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--tier", default=None)
    parser.add_argument("--compute", default="int8")
    parser.add_argument("--json", help="file for the numbers")
    args = parser.parse_args()

    print(", ".join(f"{name} {value}" for name, value in common.machine().items()))
    family = models.family({**COMMON, **SHAPES[args.shape]})
    spec, pool = family.spec, ops.pool(args.threads)
    tensors = synthetic(family, args.format, args.head)
    weights = dict.fromkeys(MATRIX_PHASE.values(), 0)
    for name, tensor in tensors.items():
        part = name.split(".")[-2]
        part = "head" if part == "embedding" and spec.tied_head else part
        if part in MATRIX_PHASE and not isinstance(tensor, np.ndarray):
            weights[MATRIX_PHASE[part]] += tensor.nbytes
    decoder = ops.decoder(spec.to_dict(), tensors, args.compute, args.tier)

    def session(length: int) -> Any:
        cache = ops.kv_cache(spec.layers, spec.kv_heads, spec.head_dim, length + args.steps + 8)
        ops.forward(decoder, [(cache, np.arange(length, dtype=np.int32) + 7, False)], pool)
        return cache

    def measure(parts: Any, repeats: int) -> dict[str, float]:
        """Best seconds by phase over repeats, and the best whole as `total`."""
        best: dict[str, float] = {}
        for _ in range(repeats):
            decoder.profile(True)
            start = time.perf_counter()
            ops.forward(decoder, parts(), pool)
            seconds = {"total": time.perf_counter() - start, **decoder.phase_seconds()}
            best = {k: min(v, best.get(k, v)) for k, v in seconds.items()}
        decoder.profile(False)
        return best

    step = np.array([11], np.int32)
    rows = []
    for length in args.contexts:
        caches = [session(length) for _ in range(args.batch)]
        seconds = measure(lambda caches=caches: [(c, step, False) for c in caches], args.steps)
        row = {"context": length, **{f"{k}_ms": round(v * 1e3, 3) for k, v in seconds.items()}}
        row |= {f"{k}_gb_s": round(b / seconds[k] / 1e9, 1) for k, b in weights.items() if seconds[k]}
        rows.append(row)
        show(row)
    prompt = np.arange(args.prompt, dtype=np.int32) + 9

    def whole() -> Any:
        cache = ops.kv_cache(spec.layers, spec.kv_heads, spec.head_dim, args.prompt)
        return [(cache, prompt, False)]

    seconds = measure(whole, 3)
    rows.append({"prompt": args.prompt, **{f"{k}_ms": round(v * 1e3, 1) for k, v in seconds.items()}})
    show(rows[-1])
    result = {"benchmark": "phases", "machine": common.machine(), **vars(args), "rows": rows}
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
