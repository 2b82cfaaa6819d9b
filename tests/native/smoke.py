"""Import, multiply in every format and generate, on a CPU that `make qemu` emulates without AVX-512.

A plain script, because pytest under emulation takes minutes. An instruction the CPU lacks ends it with SIGILL.
"""

import sys
from pathlib import Path

import numpy as np

from lowbit import _native as n
from lowbit import ops
from packed_random import FORMATS, INT8, NAMES, random_packed

MODEL = Path(__file__).resolve().parents[2] / "demo" / "model"


def check_products(tier: str) -> int:
    """Returns how many products of `tier` equal scalar's; raises AssertionError at the first that does not."""
    pool, done = n.ThreadPool(2), 0
    for name in NAMES:
        w = random_packed(name, 40, 200, 64)
        x = np.random.default_rng(1).normal(0, 1, (9, 200)).astype(np.float32)
        for compute in ("int8", "fp32") if name in INT8 else ("fp32",):
            for m in (1, 2, 3, 9):
                mine = ops.linear(w.native, x[:m], tier=tier, compute=compute, pool=pool)
                scalar = ops.linear(w.native, x[:m], tier="scalar", compute=compute, pool=pool)
                assert np.allclose(mine, scalar, rtol=1e-4, atol=1e-3), (name, compute, m)
                done += 1
    return done


def main() -> None:
    features = ops.cpu_features()
    expected = sys.argv[1:] or ["scalar", "avx2"]
    assert ops.tiers() == expected, f"this CPU has tiers {ops.tiers()}, the test expects {expected}"
    assert not features["avx512f"]
    assert not features["avx_vnni"]
    products = check_products(ops.tiers()[-1])
    print(f"smoke: tiers {ops.tiers()}, {products} products in {len(FORMATS)} formats equal scalar")
    if MODEL.exists():
        import lowbit

        model = lowbit.load(MODEL, low_bit="sym_int4")
        completion = model.generate("Once upon a time", max_new_tokens=8, temperature=0.0)
        assert completion.completion_tokens > 0
        print(f"smoke: generated {completion.text!r}")


if __name__ == "__main__":
    main()
