"""Products in tiles (tier amx) against the arithmetic that native/include/lowbit/tiles.h states, to the last bit.

CPUs without tiles run the same kernel source on a model of the tile instructions; a CPU with them runs both.
"""

import numpy as np
import pytest

from guarded import guarded
from lowbit import _native as n
from lowbit import ops
from packed_random import FORMATS, INT8, Packed, exact_values, integer_codes, random_packed

TIERS = [t for t in ("amx", "amx_model") if t in n.tiers() or (t == "amx_model" and "avx512" in n.tiers())]
pytestmark = pytest.mark.skipif(not TIERS, reason="the tile kernels need AVX-512 for what is not a tile")
POOL = n.ThreadPool(2)
BLOCK = 256  # k that is summed as integers
F = np.float32


def linear(w: Packed, x: np.ndarray, tier: str, pool=POOL) -> np.ndarray:
    return n.linear(pool, ops.TIERS.index(tier), 0, *w.native, np.ascontiguousarray(x, np.float32), None)


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (m, k)).astype(np.float32)


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes [m, k] and the scale [m] of one block of k."""
    top = np.abs(x).max(axis=1)
    with np.errstate(all="ignore"):
        inverse = F(127) / top
        usable = (top > 0) & np.isfinite(top) & np.isfinite(inverse)
        codes = np.where(usable[:, None], np.rint(np.clip(x * inverse[:, None], -127, 127)), 0)
    return np.nan_to_num(codes).astype(np.int64), top / F(127)


def requantised(w: Packed, q: np.ndarray, s: np.ndarray, low: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 codes [rows, k] and the scale [rows] of one block; s and low: scale and minimum of every weight."""
    f = FORMATS[w.name]
    largest = (1 << f["bits"]) - 1 if f["has_min"] else f["offset"] or {"fp4": 12}.get(w.name, 127)
    shift = next(a for a in range(9) if largest << a >= (252 if f["has_min"] else 127))
    unit = F(32768 / 2**shift)
    if low is None:
        top = np.abs(s).max(axis=1, keepdims=True)
        scale = top * (F(largest) / F(127))
        per_r = np.divide(unit * (F(127) / F(largest)), top, out=np.zeros_like(top), where=top > 0)
        c = 0
    else:
        top = np.maximum(np.abs(low), np.abs(s * F(largest) + low)).max(axis=1, keepdims=True)
        scale = top / F(126)
        per_r = np.divide(unit * F(126), top, out=np.zeros_like(top), where=top > 0)
        c = np.rint(low * np.divide(F(126), top, out=np.zeros_like(top), where=top > 0)).astype(np.int64)
    r = np.clip(np.trunc(s * per_r), -32767, 32767).astype(np.int64)
    codes = ((q << shift) * r + (1 << 14) >> 15) + c
    assert np.abs(codes).max(initial=0) <= 127
    return codes, scale[:, 0]


def expected(w: Packed, x: np.ndarray) -> np.ndarray:
    q, s, low = integer_codes(w)
    unit = {"nf3": F(1) / F(127), "nf4": F(1) / F(127), "fp4": F(0.5)}.get(w.name, F(1))
    y = np.zeros((len(x), w.rows), np.float32)
    for begin in range(0, q.shape[1], BLOCK):
        part = slice(begin, begin + BLOCK)
        codes, scale = requantised(w, q[:, part], s[:, part], None if low is None else low[:, part])
        columns = x[:, part] if begin < w.k else np.zeros((len(x), 1), np.float32)
        mine, t = quantised(columns)
        sums = mine @ codes[:, : mine.shape[1]].T
        y = y + (sums.astype(np.float32) * scale) * t[:, None]
    return y * (F(w.multiplier) * unit)


SHAPES = [  # group size, rows, k, m
    (32, 16, 32, 16), (64, 33, 100, 17), (128, 47, 512, 31), (256, 64, 1030, 32), (0, 70, 1300, 43), (64, 1, 520, 33),
    (32, 40, 1600, 48), (0, 17, 96, 16), (64, 30, 4096, 290),
]  # fmt: skip


@pytest.mark.parametrize("group", SHAPES, ids=lambda s: "g{} {}x{} m{}".format(*s))
@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("tier", TIERS)
def test_tiles_are_the_stated_arithmetic(tier, name, group):
    group_size, rows, k, m = group
    w, x = random_packed(name, rows, k, group_size, seed=k), activations(m, k)
    assert np.array_equal(linear(w, x, tier), expected(w, x))


@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("tier", TIERS)
def test_rounding_again_costs_little(tier, name):
    """Against fp64 on the weights as the format has them: what tiles add is small beside the format's own error."""
    w, x = random_packed(name, 64, 2048, 64), activations(64, 2048)
    exact = x.astype(np.float64) @ exact_values(w, "int8").T
    error = np.sqrt(np.mean((linear(w, x, tier) - exact) ** 2) / np.mean(exact**2))
    assert error < 0.025, error


@pytest.mark.parametrize("tier", TIERS)
def test_results_depend_on_neither_threads_nor_other_rows(tier):
    w, x = random_packed("sym_int4", 200, 700, 64), activations(70, 700)
    whole = linear(w, x, tier, n.ThreadPool(1))
    for threads in (2, 3, 5):
        assert np.array_equal(linear(w, x, tier, n.ThreadPool(threads)), whole)
    assert np.array_equal(linear(w, x[20:50], tier), whole[20:50])


@pytest.mark.parametrize("tier", TIERS)
def test_few_rows_and_fp32_are_those_of_avx512(tier):
    w, x = random_packed("nf4", 50, 300, 64), activations(40, 300)
    index = ops.TIERS.index(tier)
    assert np.array_equal(linear(w, x[:15], tier), linear(w, x[:15], "avx512"))
    high = [n.linear(POOL, t, 1, *w.native, x, None) for t in (index, ops.TIERS.index("avx512"))]
    assert np.array_equal(*high)
    fp8 = random_packed("fp8_e4m3", 50, 300, 64)
    assert np.array_equal(linear(fp8, x, tier), linear(fp8, x, "avx512"))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("at", ["start", "end"])
def test_nothing_outside_the_operands_is_touched(at, tier):
    for name in INT8:
        for group_size, rows, k, m in [(64, 50, 600, 19), (32, 16, 64, 16), (0, 33, 96, 33)]:
            w = random_packed(name, rows, k, group_size)
            x = np.zeros((m, w.layout["k_padded"]), np.float32)
            x[:, :k] = activations(m, k)
            y = guarded(np.zeros((m, 16 * w.layout["panels"]), np.float32), at)
            scratch = guarded(np.zeros(n.linear_input_bytes(m, x.shape[1]), np.uint8), at)
            native = (*w.native[:5], guarded(w.data, at))
            n.linear_into(POOL, ops.TIERS.index(tier), 0, *native, guarded(x, at), scratch, y)
            assert np.array_equal(y[:, :rows], expected(w, x[:, :k]))


@pytest.mark.parametrize("tier", TIERS)
def test_awkward_activations(tier):
    w, x = random_packed("sym_int4", 32, 600, 64), activations(24, 600)
    x[0], x[1], x[2] = 0, -0.0, x[2] * F(1e-42)
    x[3] *= F(1e37)
    x[4, 5], x[5, 599], x[6, 3] = np.nan, np.inf, -np.inf
    with np.errstate(invalid="ignore", over="ignore"):
        assert np.array_equal(linear(w, x, tier), expected(w, x), equal_nan=True)


@pytest.mark.parametrize("tier", TIERS)
def test_groups_of_zeros_and_of_unequal_size(tier):
    w, x = random_packed("asym_int4", 32, 1024, 32), activations(16, 1024)
    tiles = w.data.reshape(-1, w.layout["tile_bytes"])
    tiles[::3, -128:] = 0
    tiles[1::3, -64:] = 0
    assert np.array_equal(linear(w, x, tier), expected(w, x))
    tiles[:, -128:] = 0
    assert not linear(w, x, tier).any()


def test_no_machine_without_tiles_gets_the_tier():
    features = n.cpu_features()
    has_tiles = features["amx_tile"] and features["amx_int8"] and features["amx_bf16"]
    assert ("amx" in n.tiers()) <= bool(has_tiles)
    if "amx" not in n.tiers():
        w = random_packed("sym_int4", 16, 64, 32)
        with pytest.raises(ValueError, match="not available"):
            linear(w, activations(16, 64), "amx")
