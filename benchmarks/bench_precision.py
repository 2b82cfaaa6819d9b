"""What does precision cost in time? A prompt and a step by how many matrices compute in bf16, and the measure itself.

Synthetic models of real shapes (make_model.py), whose activations have no outliers. Reports times over those of
"fast", variants taken in turn: "auto", one matrix of every layer in bf16 (the one that reads the inner layer of the
MLP), half of the layers, all, and "high", which is all in fp32.

    python benchmarks/bench_precision.py --shapes qwen2-0.5b llama-1b --rounds 7
"""

import time
from collections.abc import Callable
from typing import Any

import _common as common
import numpy as np

from lowbit import ops, precision


def measure(shape: str, model: Any, prompt: int, rounds: int) -> list[dict[str, Any]]:
    """Returns one row per variant of a model."""
    spec, tensors, runtime = model.spec, model.loaded.tensors, model.runtime
    start = time.perf_counter()
    errors = precision.measure(model.loaded, runtime)
    probe = time.perf_counter() - start
    roles = list(errors)
    chosen = {
        "fast": [],
        "auto": precision.outlier_matrices(errors, "auto"),
        "down in bf16": [role for role in roles if role.endswith(".down")],
        "half of the layers": [role for role in roles if role != "head" and int(role.split(".")[1]) % 2],
        "all in bf16": roles,
        "high": roles,
    }

    def taken(name: str, tokens: int, steps: int) -> Callable[[], float]:
        """Seconds of one pass of `tokens`, the mean of `steps`."""
        compute = "fp32" if name == "high" else "int8"
        decoder = ops.decoder(spec.to_dict(), tensors, compute, runtime.tier, chosen[name])

        def sample() -> float:
            cache = ops.kv_cache(spec.layers, spec.kv_heads, spec.head_dim, tokens * steps)
            ids = np.arange(tokens, dtype=np.int32) + 9
            start = time.perf_counter()
            for _ in range(steps):
                ops.forward(decoder, [(cache, ids, False)], runtime.pool)
            return (time.perf_counter() - start) / steps

        return sample

    prefills, steps = (
        common.interleave({name: taken(name, tokens, count) for name in chosen}, rounds)
        for tokens, count in ((prompt, 1), (1, 16))
    )
    return [
        {
            "shape": shape, "precision": name, "matrices": f"{len(found)} of {len(roles)}",
            "prompt ms": 1000 * common.median(prefills[name]),
            "prompt over fast": f"{common.ratio(prefills[name], prefills['fast']):.2f}",
            "step ms": 1000 * common.median(steps[name]),
            "step over fast": f"{common.ratio(steps[name], steps['fast']):.2f}", "measure s": f"{probe:.2f}",
        }
        for name, found in chosen.items()
    ]  # fmt: skip


def main() -> None:
    parser = common.model_parser(__doc__, 7)
    parser.add_argument("--prompt", type=int, default=256)
    args = parser.parse_args()
    rows = [r for shape, model in common.models_of(args) for r in measure(shape, model, args.prompt, args.rounds)]
    common.report("precision", rows, args.json, format=args.format, threads=args.threads, prompt=args.prompt)


if __name__ == "__main__":
    main()
