"""Products in tiles (tier amx) against the other int8 kernels, to the last bit, whatever the number of rows.

CPUs without tiles run the same kernel source on a model of the tile instructions; a CPU with them runs both.
"""

import numpy as np
import pytest

from guarded import guarded
from lowbit import _native as n
from lowbit import ops
from packed_random import INT8, NAMES, Packed, random_packed

TIERS = [t for t in ("amx", "amx_model") if t in n.tiers() or (t == "amx_model" and "avx512" in n.tiers())]
pytestmark = pytest.mark.skipif(not TIERS, reason="the tile kernels need AVX-512 for what is not a tile")
POOL = n.ThreadPool(2)
F = np.float32


def linear(w: Packed, x: np.ndarray, tier: str, pool=POOL, compute: int = 0) -> np.ndarray:
    return n.linear(pool, ops.TIERS.index(tier), compute, *w.native, np.ascontiguousarray(x, F), None)


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (m, k)).astype(F)


def eights(w: Packed, x: np.ndarray, tier: str) -> np.ndarray:
    """Returns the product of at most 8 rows at a time: never in tiles, never with unpacked weights."""
    return np.concatenate([linear(w, x[i : i + 8], tier) for i in range(0, len(x), 8)])


SHAPES = [  # group size, rows, k, m: ragged everything, groups shorter and longer than a run, several blocks of k
    (32, 16, 32, 16), (64, 33, 100, 17), (128, 47, 512, 31), (256, 64, 1030, 32), (0, 70, 1300, 43), (64, 1, 520, 33),
    (32, 40, 1600, 48), (0, 17, 96, 16), (0, 20, 1056, 18), (128, 30, 1100, 24), (256, 50, 2100, 18), (64, 9, 600, 530),
]  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "g{} {}x{} m{}".format(*s))
@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("tier", TIERS)
def test_tiles_equal_avx512_bit_for_bit(tier, name, shape):
    group_size, rows, k, m = shape
    w, x = random_packed(name, rows, k, group_size, seed=k), activations(m, k)
    mine = linear(w, x, tier)
    assert np.array_equal(mine, linear(w, x, "avx512"))
    assert np.array_equal(mine, eights(w, x, "avx512"))


@pytest.mark.parametrize("m", [*range(1, 50), 63, 64, 65])
@pytest.mark.parametrize("tier", TIERS)
def test_a_row_is_the_same_in_any_company(tier, m):
    for name, group_size in [("sym_int4", 32), ("asym_int5", 64), ("nf3", 0)]:
        w, x = random_packed(name, 40, 330, group_size), activations(65, 330)
        assert np.array_equal(linear(w, x[:m], tier), eights(w, x, tier)[:m])


@pytest.mark.parametrize("m", [*range(1, 20), 31, 33, 40])
@pytest.mark.parametrize("tier", TIERS)
def test_a_row_in_bf16_is_the_same_in_any_company(tier, m):
    """Few rows fill a part of the tiles; groups shorter than a block of 512 k, longer, and whole rows."""
    for name, group_size, k in [
        ("fp8_e4m3", 128, 700),
        ("fp6", 32, 530),
        ("asym_int4", 0, 1100),
        ("nf4", 256, 600),
        ("bf16", 0, 1050),
    ]:
        w, x = random_packed(name, 40, k, group_size), activations(40, k)
        whole = linear(w, x, tier, compute=2)
        assert np.array_equal(linear(w, x[:m], tier, compute=2), whole[:m]), name
        assert np.array_equal(linear(w, x[40 - m :], tier, compute=2), whole[40 - m :]), name


@pytest.mark.parametrize("tier", TIERS)
def test_results_depend_on_neither_threads_nor_other_rows(tier):
    w, x = random_packed("sym_int4", 200, 700, 64), activations(70, 700)
    whole = linear(w, x, tier, n.ThreadPool(1))
    for threads in (2, 3, 5):
        assert np.array_equal(linear(w, x, tier, n.ThreadPool(threads)), whole)
    for begin, end in [(20, 50), (1, 17), (0, 16), (69, 70)]:
        assert np.array_equal(linear(w, x[begin:end], tier), whole[begin:end])


@pytest.mark.parametrize("tier", TIERS)
def test_formats_and_compute_without_tiles_are_those_of_avx512(tier):
    for name in NAMES:
        w, x = random_packed(name, 50, 300, 64), activations(20, 300)
        for compute in (0, 1, 2) if name in ("fp16", "fp32") else (1,):
            assert np.array_equal(linear(w, x, tier, compute=compute), linear(w, x, "avx512", compute=compute)), name


@pytest.mark.parametrize("tier", TIERS)
def test_quantised_rows_are_those_of_avx512(tier):
    """Tiles hold rows in another order; what they hold is the same."""
    x = activations(43, 700)
    mine, other = (n.quantize_rows(POOL, ops.TIERS.index(t), x, 704) for t in (tier, "avx512"))
    for a, b in zip(mine, other, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("at", ["start", "end"])
def test_nothing_outside_the_operands_is_touched(at, tier):
    for name in INT8:
        for group_size, rows, k, m in [(64, 50, 600, 19), (32, 16, 64, 16), (0, 33, 96, 33)]:
            w = random_packed(name, rows, k, group_size)
            x = np.zeros((m, w.layout["k_padded"]), F)
            x[:, :k] = activations(m, k)
            y = guarded(np.zeros((m, 16 * w.layout["panels"]), F), at)
            scratch = guarded(np.zeros(n.linear_input_bytes(m, x.shape[1], w.native[0], 0), np.uint8), at)
            native = (*w.native[:5], guarded(w.data, at))
            n.linear_into(POOL, ops.TIERS.index(tier), 0, *native, guarded(x, at), scratch, y)
            assert np.array_equal(y[:, :rows], linear(w, x[:, :k], "avx512"))


@pytest.mark.parametrize("name", ["sym_int4", "asym_int4", "nf4"])
@pytest.mark.parametrize("tier", TIERS)
def test_awkward_activations(tier, name):
    w, x = random_packed(name, 32, 600, 64), activations(24, 600)
    x[0], x[1], x[2] = 0, -0.0, x[2] * F(1e-42)
    x[3] *= F(1e37)
    x[4, 5], x[5, 599], x[6, 3] = np.nan, np.inf, -np.inf
    mine, other = linear(w, x, tier), eights(w, x, "avx512")
    assert np.array_equal(mine, other, equal_nan=True)
    finite = ~np.isnan(other)  # zeros have the same sign
    assert np.array_equal(mine.view(np.uint32)[finite], other.view(np.uint32)[finite])
    assert np.isnan(other).any()
    assert finite.any()


@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("tier", TIERS)
def test_largest_codes_are_summed_exactly(tier, name):
    k, m = 256, 16
    w = random_packed(name, 32, k, 64)
    lines = 2 if name.startswith("asym") else 1
    for byte in (0x00, 0xFF):
        w.data.reshape(-1, w.layout["tile_bytes"])[:, : -64 * lines] = byte
        for signs in (np.ones(k), -np.ones(k), np.where(np.arange(k) % 2, 1, -1)):
            x = np.tile(signs, (m, 1)).astype(F)
            assert np.array_equal(linear(w, x, tier), eights(w, x, "avx512"))


def test_no_machine_without_tiles_gets_the_tier():
    features = n.cpu_features()
    has_tiles = features["amx_tile"] and features["amx_int8"]
    assert ("amx" in n.tiers()) <= bool(has_tiles)
    if "amx" not in n.tiers():
        w = random_packed("sym_int4", 16, 64, 32)
        with pytest.raises(ValueError, match="not available"):
            linear(w, activations(16, 64), "amx")
