"""Linear kernels: scalar against fp64 arithmetic on the layout's description, every other tier against scalar."""

import numpy as np
import pytest

from guarded import guarded
from lowbit import _native as n
from lowbit import ops, quantize
from lowbit.reference_decoder import as_bf16
from packed_random import FORMATS, INT8, NAMES, SCALED, Packed, exact_values, random_packed

TIERS = {name: ops.TIERS.index(name) for name in n.tiers()}
if "avx2" in TIERS:
    TIERS["avx2_without_vnni"] = ops.TIERS.index("avx2_without_vnni")
if "avx512" in TIERS:  # tiles; test_tiles.py has what is their own
    TIERS["amx_model"] = ops.TIERS.index("amx_model")
FAST = [name for name in TIERS if name != "scalar"]
COMPUTE = {name: i for i, name in enumerate(ops.COMPUTE)}
POOL = n.ThreadPool(2)
# These read activations rounded to bf16 where others read int8.
WIDE = ["fp6", "fp8_e4m3", "fp8_e5m2", "bf16"]
CASES = (
    [(name, "int8") for name in [*INT8, *WIDE]] + [(name, "bf16") for name in INT8] + [(name, "fp32") for name in NAMES]
)
GROUPS = [0, 32, 64, 128]


def linear(w: Packed, x: np.ndarray, tier: str, compute: str, bias=None, pool=POOL) -> np.ndarray:
    return n.linear(pool, TIERS[tier], COMPUTE[compute], *w.native, np.ascontiguousarray(x, np.float32), bias)


def activations(m: int, k: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (m, k)).astype(np.float32)


def quantised(x: np.ndarray) -> np.ndarray:
    """Returns x [m, k] as int8 compute sees it, in fp64: symmetric int8 per 64 values."""
    m, k = x.shape
    padded = -(-k // 64) * 64
    blocks = np.zeros((m, padded), np.float32)
    blocks[:, :k] = x
    blocks = blocks.reshape(m, padded // 64, 64)
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    scales = largest / np.float32(127)
    codes = np.rint(blocks * np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest != 0))
    return (codes.astype(np.float64) * scales).reshape(m, padded)[:, :k]


def close(actual: np.ndarray, w: Packed, x: np.ndarray, compute: str, expected=None, tolerance=1e-6, bias=0.0) -> None:
    """Asserts |actual - expected| <= tolerance * sum |w||x|; expected is fp64 arithmetic when not given."""
    if compute == "bf16" or (compute == "int8" and w.name in WIDE):
        x = as_bf16(x)
    elif compute == "int8":
        x = quantised(x)
    x = x.astype(np.float64)
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


def rounds_table(name: str, compute: str, tier: str) -> bool:
    """Returns True where the values of a format are none of bf16, and kernels for bf16 round them."""
    return compute == "bf16" and name in ("nf3", "nf4") and n.has_bf16_kernels(TIERS[tier])


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
    (20, 130, 33), (49, 700, 37), (83, 4096, 1), (17, 4096, 4), (5, 4096, 0),
]  # fmt: skip


@pytest.mark.parametrize("tier", FAST)
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize(("name", "compute"), CASES)
def test_tier_equals_scalar(name, compute, group_size, tier):
    for rows, k, m in SHAPES:
        w, x = random_packed(name, rows, k, group_size, seed=k), activations(m, k)
        bias = activations(1, rows, seed=2)[0]
        expected = linear(w, x, "scalar", compute, bias)
        tolerance = 2.0**-9 if rounds_table(name, compute, tier) else 1e-6
        close(linear(w, x, tier, compute, bias), w, x, compute, expected, tolerance, bias=bias)


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("at", ["start", "end"])
def test_nothing_outside_the_operands_is_touched(at, tier):
    for name, compute in CASES:
        for group_size, rows, k, m in [(32, 17, 40, 1), (64, 80, 200, 3), (0, 33, 96, 8), (128, 16, 128, 2)]:
            w = random_packed(name, rows, k, group_size)
            k_padded, columns = w.layout["k_padded"], 16 * w.layout["panels"]
            x = np.zeros((m, k_padded), np.float32)
            x[:, :k] = activations(m, k)
            y = guarded(np.zeros((m, columns), np.float32), at)
            scratch = guarded(np.zeros(n.linear_input_bytes(m, k_padded, w.native[0], COMPUTE[compute]), np.uint8), at)
            native = (*w.native[:5], guarded(w.data, at))
            n.linear_into(POOL, TIERS[tier], COMPUTE[compute], *native, guarded(x, at), scratch, y)
            assert np.array_equal(y[:, :rows], linear(w, x[:, :k], tier, compute))


@pytest.mark.parametrize(("name", "compute"), CASES)
@pytest.mark.parametrize("tier", TIERS)
def test_results_depend_on_neither_threads_nor_batch(name, compute, tier):
    w, x = random_packed(name, 200, 160, 32), activations(9, 160)
    alone = linear(w, x, tier, compute, pool=n.ThreadPool(1))
    for threads in (2, 3, 5):
        assert np.array_equal(linear(w, x, tier, compute, pool=n.ThreadPool(threads)), alone)
    for first, last in [(0, 1), (3, 5), (2, 6), (1, 9)]:
        assert np.array_equal(linear(w, x[first:last], tier, compute), alone[first:last])


@pytest.mark.parametrize(("name", "compute"), CASES)
@pytest.mark.parametrize("tier", FAST)
def test_many_rows_equal_few_rows_bit_for_bit(name, compute, tier):
    """32 rows and more go through kernels of their own: several blocks of k, strips of 1 to 4 panels, ragged rows."""
    shapes = [(32, 16, 530, 32), (64, 33, 700, 33), (128, 47, 1100, 47), (256, 64, 1030, 40), (0, 70, 1300, 43)]
    for group_size, rows, k, m in shapes:
        w, x = random_packed(name, rows, k, group_size, seed=k), activations(m, k)
        few = [linear(w, x[i : i + 8], tier, compute) for i in range(0, m, 8)]
        assert np.array_equal(linear(w, x, tier, compute), np.concatenate(few))


@pytest.mark.parametrize("tier", FAST)
@pytest.mark.parametrize("at", ["start", "end"])
def test_many_rows_touch_nothing_outside_the_operands(at, tier):
    for name, compute in CASES:
        w, m = random_packed(name, 50, 600, 64), 35
        x = np.zeros((m, w.layout["k_padded"]), np.float32)
        x[:, : w.k] = activations(m, w.k)
        y = guarded(np.zeros((m, 16 * w.layout["panels"]), np.float32), at)
        scratch = guarded(np.zeros(n.linear_input_bytes(m, x.shape[1], w.native[0], COMPUTE[compute]), np.uint8), at)
        native = (*w.native[:5], guarded(w.data, at))
        n.linear_into(POOL, TIERS[tier], COMPUTE[compute], *native, guarded(x, at), scratch, y)
        assert np.array_equal(y[:, : w.rows], linear(w, x[:, : w.k], tier, compute))


@pytest.mark.parametrize("name", INT8)
@pytest.mark.parametrize("tier", TIERS)
def test_largest_codes_do_not_saturate(name, tier):
    k = 256
    for byte in (0x00, 0xFF):
        w = random_packed(name, 32, k, 64)
        tiles = w.data.reshape(-1, w.layout["tile_bytes"])
        lines = 2 if FORMATS[name]["has_min"] else 1
        tiles[:, : -64 * lines] = byte
        for sign in (np.ones(k), -np.ones(k), np.where(np.arange(k) % 2, 1, -1), np.where(np.arange(k) % 4 < 2, 1, -1)):
            x = np.tile(sign.astype(np.float32), (3, 1))
            close(linear(w, x, tier, "int8"), w, x, "int8")


def halves(w: Packed, line: int) -> np.ndarray:
    """Returns the scales (line 0) or minima (line 1) of a packed weight as a writable fp16 view [tiles, 32]."""
    lines = 2 if FORMATS[w.name]["has_min"] else 1
    tiles = w.data.reshape(-1, w.layout["tile_bytes"])
    begin = tiles.shape[1] - 64 * (lines - line)
    return tiles[:, begin : begin + 64].view(np.float16)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("tier", TIERS)
def test_special_scales(name, tier):
    specials = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 6e-8, -6e-5, 65504.0], np.float16)
    for compute in COMPUTE:
        w, x = random_packed(name, 64, 192, 32), activations(5, 192)
        x[1] = 0
        rng = np.random.default_rng(0)
        for line in range(2 if FORMATS[name]["has_min"] else 1):
            view = halves(w, line)
            view[0] = rng.choice(specials, view.shape[1])
            view[1, ::3] = 0
        with np.errstate(invalid="ignore"):
            actual, expected = linear(w, x, tier, compute), linear(w, x, "scalar", compute)
            assert np.array_equal(np.isnan(actual), np.isnan(expected))
            assert np.array_equal(np.isinf(actual), np.isinf(expected))
            finite = np.isfinite(expected)
            if not rounds_table(name, compute, tier):
                assert np.allclose(actual[finite], expected[finite], rtol=1e-5, atol=1e-2)
    zero = random_packed(name, 64, 192, 32)
    for line in range(2 if FORMATS[name]["has_min"] else 1):
        halves(zero, line)[:] = 0
    assert not linear(zero, x, tier, "int8").any()


@pytest.mark.parametrize("tier", TIERS)
def test_bf16_weights_read_activations_rounded_to_bf16(tier):
    """An identity gives back what a product sees of its input: the nearest bf16, ties to even; or all of it (fp32)."""
    k = 96
    eye = quantize.quantize(np.eye(k, dtype=np.float32), "bf16", 0).native()
    x = np.concatenate([activations(40, k) * scale for scale in (1, 1e-30, 1e30)])
    x[0] = 1 + np.arange(k) * 2.0**-9  # every other one a tie
    for m in (1, 3, 8, 40, len(x)):
        for compute, seen in ((0, as_bf16(x[:m])), (1, x[:m])):
            assert np.array_equal(n.linear(POOL, TIERS[tier], compute, *eye, x[:m], None), seen)


@pytest.mark.parametrize("tier", TIERS)
def test_weights_and_activations_of_bf16_that_are_no_numbers(tier):
    w, x = random_packed("bf16", 48, 160, 0), activations(37, 160)
    w.data.view("<u2")[3 * 32 + 2 * 5] = 0x7FC0  # row 5 of the first panel is NaN at k 6
    w.data.view("<u2")[160 * 16 + 2 * 7 + 1] = 0xFF80  # row 23 is -inf at k 1
    x[2, 9], x[36, 100] = np.nan, np.inf
    for m in (4, 37):
        with np.errstate(invalid="ignore"):
            y, expected = linear(w, x[:m], tier, "int8"), x[:m].astype(np.float64) @ exact_values(w).T
        assert np.array_equal(np.isnan(y), np.isnan(expected))
        assert np.array_equal(np.isinf(y), np.isinf(expected))
        assert np.isnan(y[:, 5]).all()
        assert np.isnan(y[2]).all()
        assert np.isfinite(y[0, :5]).all()


def awkward_rows() -> np.ndarray:
    """Returns rows with ties, zeros, subnormals, huge values, NaN and infinity, [17, 100]."""
    x = activations(17, 100, seed=5)
    x[0] = 0
    x[1] = np.arange(100) - 50 + 0.5
    x[1, ::32] = 127
    x[2] *= 1e-42
    x[3] *= 1e38
    x[4, 7] = np.nan
    x[5, 40] = np.inf
    x[6, 99] = -np.inf
    x[7] = -0.0
    x[8] = 1e-45
    return x.astype(np.float32)


@pytest.mark.parametrize("tier", TIERS)
def test_activations_are_quantised_bit_for_bit_as_scalar_does(tier):
    x = awkward_rows()
    for m in (1, 2, 3, 4, 5, 8, 9, 17):
        for k_padded in (128, 192):
            for mine, scalar in zip(
                n.quantize_rows(POOL, TIERS[tier], x[:m], k_padded),
                n.quantize_rows(POOL, 0, x[:m], k_padded),
                strict=True,
            ):
                assert np.array_equal(mine, scalar, equal_nan=mine.dtype.kind == "f")


def test_activation_codes_are_the_nearest():
    x = awkward_rows()[[0, 1, 3, 9, 10]]
    codes, scales, sums = n.quantize_rows(POOL, 0, x, 128)
    blocks = np.pad(x, ((0, 0), (0, 28))).reshape(5, 2, 64)
    assert np.array_equal(scales, np.abs(blocks).max(axis=2) / np.float32(127))
    largest = np.abs(blocks).max(axis=2, keepdims=True)
    exact = blocks * np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 4e-37)
    assert np.array_equal(codes.reshape(5, 2, 64), np.rint(exact))
    assert np.array_equal(sums, codes.reshape(5, 4, 32).sum(axis=2, dtype=np.int32))


def test_wrong_shapes_and_tiers_are_errors():
    w, x = random_packed("sym_int4", 16, 64, 32), activations(2, 64)
    with pytest.raises(ValueError, match="columns"):
        linear(w, x[:, :63], "scalar", "int8")
    with pytest.raises(ValueError, match="bias"):
        linear(w, x, "scalar", "int8", bias=np.zeros(15, np.float32))
    with pytest.raises(ValueError, match="tier"):
        n.linear(POOL, 9, 0, *w.native, x, None)
    with pytest.raises(ValueError, match="compute"):
        n.linear(POOL, 0, 3, *w.native, x, None)
    assert np.array_equal(
        ops.linear(w.native, x, tier="scalar", compute="int8", pool=POOL), linear(w, x, "scalar", "int8")
    )
