"""Linear kernels: scalar against fp64 arithmetic on the layout's description, every other tier against scalar."""

import numpy as np
import pytest
from lowbit import _native as n
from lowbit import ops
from packed_random import FORMATS, INT8, NAMES, SCALED, Packed, exact_values, random_packed

TIERS = {name: ops.TIERS.index(name) for name in n.tiers() if name != "amx"}
if "avx2" in TIERS:
    TIERS["avx2_without_vnni"] = ops.TIERS.index("avx2_without_vnni")
FAST = [name for name in TIERS if name != "scalar"]
COMPUTE = {"int8": 0, "fp32": 1}
POOL = n.ThreadPool(2)
CASES = [(name, "int8") for name in INT8] + [(name, "fp32") for name in NAMES]
GROUPS = [0, 32, 64, 128]


def linear(w: Packed, x: np.ndarray, tier: str, compute: str, bias=None, pool=POOL) -> np.ndarray:
    return n.linear(pool, TIERS[tier], COMPUTE[compute], *w.native, np.ascontiguousarray(x, np.float32), bias)


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (m, k)).astype(np.float32)


def quantised(x: np.ndarray) -> np.ndarray:
    """Returns x [m, k] as int8 compute sees it, in fp64: symmetric int8 per 32 values."""
    m, k = x.shape
    padded = -(-k // 32) * 32
    blocks = np.zeros((m, padded), np.float32)
    blocks[:, :k] = x
    blocks = blocks.reshape(m, padded // 32, 32)
    scales = (np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)).astype(np.float32)
    codes = np.rint(np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales != 0))
    return (codes.astype(np.float64) * scales).reshape(m, padded)[:, :k]


def close(actual: np.ndarray, w: Packed, x: np.ndarray, compute: str, expected=None, tolerance=1e-6, bias=0.0) -> None:
    """Asserts |actual - expected| <= tolerance * sum |w||x|; expected is fp64 arithmetic when not given."""
    x = quantised(x) if compute == "int8" else x.astype(np.float64)
    values = exact_values(w, compute)
    if expected is None:
        expected = x @ values.T + bias
    if FORMATS[w.name]["has_min"]:  # codes and minimum are summed apart
        magnitude = np.abs(x) @ np.abs(exact_values(w, compute)).T + _minimum_magnitude(w, x)
    else:
        magnitude = np.abs(x) @ np.abs(values).T
    worst = np.abs(actual - expected) - tolerance * (magnitude + np.abs(bias))
    assert actual.shape == expected.shape
    assert np.all(worst <= 0), f"{w.name} g{w.group_size} [{w.rows}, {w.k}] m={len(x)} {compute}: over by {worst.max()}"


def _minimum_magnitude(w: Packed, x: np.ndarray) -> np.ndarray:
    codes_only = Packed(w.name, w.rows, w.k, w.group_size, w.multiplier, w.data.copy())
    tiles = codes_only.data.reshape(-1, w.layout["tile_bytes"])
    tiles[:, -64:] = 0
    return 2 * np.abs(x) @ np.abs(exact_values(codes_only)).T


@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize(("name", "compute"), CASES)
def test_scalar_is_the_arithmetic(name, compute, group_size):
    for rows, k, m in [(1, 1, 1), (17, 32, 2), (40, 96, 9), (16, 172, 1), (33, 130, 3)]:
        w, x = random_packed(name, rows, k, group_size), activations(m, k)
        close(linear(w, x, "scalar", compute), w, x, compute)
    assert linear(w, activations(0, k), "scalar", compute).shape == (0, rows)


SHAPES = [  # rows, k, m: every k and m of interest, rows that are no multiple of 16 or 64
    (1, 1, 1), (15, 32, 2), (33, 64, 3), (16, 96, 7), (70, 130, 8), (130, 172, 9), (47, 96, 16), (65, 64, 17),
    (20, 130, 33), (83, 4096, 1), (17, 4096, 4), (5, 4096, 0),
]  # fmt: skip


@pytest.mark.parametrize("tier", FAST)
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize(("name", "compute"), CASES)
def test_tier_equals_scalar(name, compute, group_size, tier):
    for rows, k, m in SHAPES:
        w, x = random_packed(name, rows, k, group_size, seed=k), activations(m, k)
        bias = activations(1, rows, seed=2)[0]
        expected = linear(w, x, "scalar", compute, bias)
        close(linear(w, x, tier, compute, bias), w, x, compute, expected, bias=bias)
