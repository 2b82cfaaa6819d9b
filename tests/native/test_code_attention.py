"""Kernels of attention over codes: every tier against numpy, integers to the last bit; operands end at a guard page."""

import math

import numpy as np
import pytest

from guarded import guarded
from lowbit import _native as n

TIERS = {name: index for index, name in enumerate(n.tiers())}
FAST = [name for name in TIERS if name != "scalar"]
BLOCK, CODE_NORM, WEIGHT_SUM = 64, 46300.0, 32730.0  # of code_attention.h
WIDTHS = {np.int8: 127, np.int16: 32767}

tiers = pytest.mark.parametrize("tier", TIERS)
fast = pytest.mark.parametrize("tier", FAST)
widths = pytest.mark.parametrize("width", WIDTHS)


def floats(*shape: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


def codes_of(tier: str, x: np.ndarray, most: float) -> tuple[np.ndarray, float]:
    codes = guarded(np.full(len(x), 99, np.int16))
    return codes, n.code_vector(TIERS[tier], guarded(x), most, codes)


def random_codes(width: type, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-WIDTHS[width], WIDTHS[width] + 1, shape).astype(width)


def in_pairs(codes: np.ndarray) -> np.ndarray:
    """Returns the bytes of a block: rows d (or t) of [a, b] become [a/2][b][2]."""
    a, b = codes.shape
    return np.ascontiguousarray(codes.reshape(a // 2, 2, b).transpose(0, 2, 1)).reshape(-1).view(np.uint8)


@tiers
@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 80, 100, 257])
@pytest.mark.parametrize("most", [127, 32767])
def test_a_vector_becomes_the_nearest_codes(tier, size, most):
    x = floats(size, seed=size, spread=3)
    x[size // 2] *= 40
    codes, scale = codes_of(tier, x, most)
    exact = x.astype(np.float64)
    assert scale == pytest.approx(max(np.abs(exact).max() / most, np.sqrt((exact**2).sum()) / CODE_NORM), rel=1e-5)
    assert np.abs(codes - exact / scale).max() <= 0.5 + 2e-7 * most
    assert np.abs(codes).max() <= most
    assert (codes.astype(np.int64) ** 2).sum() < 2**31


@tiers
@pytest.mark.parametrize("most", [127, 32767])
def test_vectors_without_a_scale(tier, most):
    for x, expected in [(np.zeros(33), 0.0), (np.full(9, 1e-39), 0.0)]:
        codes, scale = codes_of(tier, x.astype(np.float32), most)
        assert scale == expected
        assert not codes.any()
    for wrong in (np.nan, np.inf, -np.inf):
        for at in (0, 16, 32):
            x = floats(33)
            x[at] = wrong
            codes, scale = codes_of(tier, x, most)
            assert np.isnan(scale)
            assert not codes.any()
    for size in (1e-37, 3e38):
        x = (floats(33) / 10 * size).astype(np.float32)
        codes, scale = codes_of(tier, x, most)
        if scale or size > 1:  # the inverse of a small scale may overflow
            np.testing.assert_allclose(codes * np.float64(scale), x, atol=np.abs(x).max() / 100)


@tiers
def test_widen(tier):
    for size in (1, 15, 16, 31, 32, 33, 200):
        codes = random_codes(np.int8, size)
        wide = guarded(np.zeros(size, np.int16))
        n.code_widen(TIERS[tier], guarded(codes), wide)
        np.testing.assert_array_equal(wide, codes)


@tiers
@widths
@pytest.mark.parametrize(
    ("rows", "count", "dim"), [(1, 1, 2), (2, 64, 64), (3, 17, 80), (4, 33, 10), (7, 63, 96), (9, 5, 34), (8, 64, 256)]
)
def test_scores(tier, width, rows, count, dim):
    keys = np.stack([codes_of("scalar", k, WIDTHS[width])[0] for k in floats(BLOCK, dim)]).astype(width)
    q = np.stack([codes_of("scalar", k, 32767)[0] for k in floats(rows, dim, seed=1)])
    q_scales, scales = np.abs(floats(rows, seed=2)), np.abs(floats(BLOCK, seed=3))
    out = guarded(np.zeros((rows, BLOCK), np.float32))
    n.code_scores(
        TIERS[tier], guarded(q.reshape(-1)), guarded(q_scales), guarded(in_pairs(np.ascontiguousarray(keys.T))),
        guarded(scales), count, dim, out.reshape(-1),
    )  # fmt: skip
    sums = q.astype(np.int64) @ keys.T.astype(np.int64)
    assert np.abs(sums).max() < 2**31
    exact = sums.astype(np.float32) * scales * q_scales[:, None]
    np.testing.assert_array_equal(out[:, :count], exact[:, :count])


@tiers
def test_scores_of_a_key_with_itself_do_not_overflow(tier):
    """The largest product of two vectors of codes: that of equal ones; flat, so that roundings add up."""
    for dim in (2, 64, 256):
        flat = np.full(dim, 0.99, np.float32)
        q, _ = codes_of("scalar", flat, 32767)
        keys = np.tile(q[:, None], (1, BLOCK))
        out, one = np.zeros(BLOCK, np.float32), np.ones(BLOCK, np.float32)
        n.code_scores(TIERS[tier], q, one[:1], in_pairs(keys), one, BLOCK, dim, out)
        assert (out == np.float32((q.astype(np.int64) ** 2).sum())).all()
        assert out[0] > 2.1e9


def exact_softmax(
    scores: np.ndarray, ranges: np.ndarray, scales: np.ndarray, state: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The definition, in fp64."""
    weights, after = np.zeros(scores.shape), state.astype(np.float64).copy()
    for r, (start, end) in enumerate(ranges):
        if start >= end:
            after[r, 2:] = 1, 0
            continue
        seen = scores[r, start:end].astype(np.float64)
        largest, total = state[r, :2].astype(np.float64)
        top = seen.max() if total == 0 else max(largest, seen.max())
        p = np.exp(seen - top)
        shrink = 0 if total == 0 else math.exp(largest - top)
        weighted = p * scales[start:end]
        after[r] = top, total * shrink + p.sum(), shrink, weighted.sum() / WEIGHT_SUM
        weights[r, start:end] = weighted / after[r, 3]
    return weights, after


@tiers
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 17])
@pytest.mark.parametrize("kind", ["whole", "ragged", "peaked"])
def test_softmax(tier, rows, kind):
    rng = np.random.default_rng(rows)
    scores = guarded(floats(rows, BLOCK, seed=rows, spread=12 if kind == "peaked" else 2))
    scales = np.abs(floats(BLOCK, seed=1)) + np.float32(0.1)
    ranges = np.tile(np.array([0, BLOCK], np.int32), (rows, 1))
    if kind == "ragged":
        ranges = np.sort(rng.integers(0, BLOCK + 1, (rows, 2)).astype(np.int32), axis=1)
        scales[int(ranges[:, 1].max()) :] = np.nan  # of positions that were never written
    state = np.zeros((rows, 4), np.float32)
    state[::2, 0], state[::2, 1] = floats(len(state[::2]), seed=4, spread=5), 3.5
    expected, after = exact_softmax(scores, ranges, scales, state)
    state, weights = guarded(state), guarded(np.full((rows, BLOCK), 77, np.int16))
    n.code_softmax(
        TIERS[tier],
        scores.reshape(-1),
        guarded(ranges.reshape(-1)),
        guarded(scales),
        state.reshape(-1),
        weights.reshape(-1),
    )
    np.testing.assert_allclose(state, after, rtol=1e-5, atol=1e-7)
    assert np.abs(weights - expected).max() <= 0.6
    assert (weights.astype(np.int64).sum(1) <= 32767).all()


@tiers
def test_softmax_of_scores_far_apart_and_of_nothing(tier):
    """The largest takes everything; values that are all zero give no weights; NaN says so in sum and factor."""
    scores = np.full((4, BLOCK), -500, np.float32)
    scores[0, 5] = scores[1, 60] = 300
    scores[2] = 1
    scores[3, 7] = np.nan
    ranges = np.tile(np.array([0, BLOCK], np.int32), (4, 1))
    state, weights = np.zeros((4, 4), np.float32), np.zeros((4, BLOCK), np.int16)
    one = np.ones(BLOCK, np.float32)
    n.code_softmax(TIERS[tier], scores.reshape(-1), ranges.reshape(-1), one, state.reshape(-1), weights.reshape(-1))
    assert weights[0, 5] == weights[1, 60] == round(WEIGHT_SUM)
    assert weights[:2].sum() == 2 * round(WEIGHT_SUM)
    np.testing.assert_allclose(state[:3, 1], [1, 1, BLOCK], rtol=1e-6)
    assert np.isnan(state[3, [1, 3]]).all()
    state[:] = 0
    n.code_softmax(TIERS[tier], scores.reshape(-1), ranges.reshape(-1), 0 * one, state.reshape(-1), weights.reshape(-1))
    assert not weights[:3].any()
    assert not state[:3, 3].any()
    assert state[0, 1] == pytest.approx(1)


@fast
def test_a_row_does_not_depend_on_the_rows_beside_it(tier):
    """To the last bit: what makes a prompt in chunks, a batch and a draft equal to single steps."""
    rows = 11
    scores, scales = floats(rows, BLOCK, spread=3), np.abs(floats(BLOCK, seed=1))
    ranges = np.array([[0, BLOCK]] * rows, np.int32)
    ranges[3], ranges[4] = (0, 20), (9, BLOCK)
    state = np.abs(floats(rows, 4, seed=2))

    def run(rows: slice) -> tuple[np.ndarray, np.ndarray]:
        mine, weights = state[rows].copy(), np.zeros_like(scores[rows], np.int16)
        n.code_softmax(
            TIERS[tier],
            scores[rows].reshape(-1),
            ranges[rows].reshape(-1),
            scales,
            mine.reshape(-1),
            weights.reshape(-1),
        )
        return mine, weights

    together = run(slice(None))
    for r in range(rows):
        for ours, all_rows in zip(run(slice(r, r + 1)), together, strict=True):
            np.testing.assert_array_equal(ours[0], all_rows[r])


@tiers
@widths
@pytest.mark.parametrize(
    ("rows", "count", "dim"), [(1, 1, 16), (2, 64, 64), (3, 17, 80), (4, 33, 16), (7, 63, 96), (9, 5, 48), (8, 64, 256)]
)
def test_values(tier, width, rows, count, dim):
    values = random_codes(width, BLOCK, dim)
    weights = np.random.default_rng(1).dirichlet(np.full(count, 0.3), rows) * WEIGHT_SUM
    weights = np.pad(np.rint(weights).astype(np.int16), [(0, 0), (0, BLOCK - count)])
    state, out = np.abs(floats(rows, 4, seed=2)), guarded(floats(rows, dim, seed=3))
    sums = weights.astype(np.int64) @ values.astype(np.int64)
    assert np.abs(sums).max() < 2**31
    exact = out.astype(np.float64) * state[:, 2:3] + sums * state[:, 3:].astype(np.float64)
    n.code_values(
        TIERS[tier],
        guarded(weights.reshape(-1)),
        guarded(in_pairs(values)),
        count,
        dim,
        guarded(state.reshape(-1)),
        out.reshape(-1),
    )
    np.testing.assert_allclose(out, exact, rtol=3e-7, atol=np.abs(exact).max() * 3e-7)
