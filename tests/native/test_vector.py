"""Element-wise and attention kernels: scalar against numpy, every other tier against scalar; operands end at a guard
page."""

import math

import numpy as np
import pytest

from guarded import guarded
from lowbit import _native as n

TIERS = {name: index for index, name in enumerate(n.tiers())}
FAST = [name for name in TIERS if name != "scalar"]
SIZES = [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 48, 63, 64, 65, 100, 257]
ACTIVATIONS = ["silu", "gelu", "gelu_tanh", "relu", "quick_gelu"]
DTYPES = {"fp32": 0, "fp16": 1, "bf16": 2}
BLOCK = 64

tiers = pytest.mark.parametrize("tier", TIERS)
sizes = pytest.mark.parametrize("size", SIZES)


def floats(*shape: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


def activated(name: str, x: np.ndarray) -> np.ndarray:
    """The definition, in fp64."""
    x = x.astype(np.float64)
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu":
        return x / 2 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    if name == "gelu_tanh":
        return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return x / (1 + np.exp(-x * (1.702 if name == "quick_gelu" else 1)))


@tiers
@sizes
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm(tier, size, offset):
    x, w, y = guarded(floats(size, spread=3)), guarded(floats(size, seed=1)), guarded(floats(size))
    n.vector_norm(TIERS[tier], True, x, w, None, offset, 1e-5, y)
    exact = x.astype(np.float64)
    exact = exact / np.sqrt((exact**2).mean() + 1e-5) * (w.astype(np.float64) + offset)
    np.testing.assert_allclose(y, exact, rtol=2e-6, atol=1e-6)


@tiers
@sizes
@pytest.mark.parametrize("affine", ["none", "weight", "both"])
def test_layer_norm(tier, size, affine):
    x, y = guarded(floats(size, spread=3) + 5), guarded(floats(size))
    w = guarded(floats(size, seed=1)) if affine != "none" else None
    b = guarded(floats(size, seed=2)) if affine == "both" else None
    n.vector_norm(TIERS[tier], False, x, w, b, 0.5, 1e-5, y)
    exact = x.astype(np.float64)
    exact = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    exact = exact * (1 if w is None else w.astype(np.float64) + 0.5) + (0 if b is None else b)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5)


@tiers
def test_norms_work_in_place(tier):
    x, w = floats(50), floats(50, seed=1)
    apart = np.empty_like(x)
    for rms in (True, False):
        n.vector_norm(TIERS[tier], rms, x, w, None, 0.0, 1e-5, apart)
        inside = x.copy()
        n.vector_norm(TIERS[tier], rms, inside, w, None, 0.0, 1e-5, inside)
        np.testing.assert_array_equal(inside, apart)


@tiers
@sizes
def test_add_and_max(tier, size):
    x, y = guarded(floats(size)), guarded(floats(size, seed=1))
    expected = y + np.float32(0.25) * x
    n.vector_add(TIERS[tier], y, x, 0.25)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    assert n.vector_max(TIERS[tier], x) == x.max()
    assert n.vector_max(TIERS[tier], guarded(np.full(size, -7, np.float32))) == -7


@tiers
@sizes
def test_exp_sum(tier, size):
    x = guarded(-np.abs(floats(size, spread=20)))
    exact = np.exp((x - np.float32(0.5)).astype(np.float64))
    total = n.vector_exp_sum(TIERS[tier], x, 0.5)
    np.testing.assert_allclose(x, exact, rtol=3e-7, atol=2e-38)
    np.testing.assert_allclose(total, exact.sum(), rtol=1e-5)


@tiers
def test_exp_over_its_whole_range(tier):
    x = np.concatenate([np.linspace(-87.3, 88.3, 200_001), [0, -0.0]]).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    n.vector_exp_sum(TIERS[tier], x, 0.0)
    np.testing.assert_allclose(x, exact, rtol=3e-7)
    edges = np.array([-1e30, -np.inf, -200, 200, np.inf, np.nan] + [0] * 10, np.float32)
    n.vector_exp_sum(TIERS[tier], edges, 0.0)
    assert np.all(edges[:3] < 2e-38)
    assert np.all(np.isinf(edges[3:5]))
    assert np.isnan(edges[5])
    assert np.all(edges[6:] == 1)


@tiers
@sizes
@pytest.mark.parametrize("kind", ["fp16", "bf16"])
def test_to_half(tier, size, kind):
    special = [
        0,
        -0.0,
        65504,
        65519.99,
        65520,
        1e6,
        -1e9,
        6e-8,
        2.9e-8,
        3e-8,
        6.1e-5,
        5.9e-5,
        1e-30,
        np.inf,
        -np.inf,
        np.nan,
    ]
    ties = [1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-8, 1 + 3 * 2**-8, 2**-24 * 1.5, 2**-24 * 2.5, 3.3895e38, 3.4e38]
    x = np.concatenate([floats(size, spread=100), special, ties]).astype(np.float32)
    x = guarded(np.concatenate([x[size:], x[:size]]))
    y = guarded(np.zeros(len(x), np.uint16))
    n.vector_to_half(TIERS[tier], kind == "bf16", x, y)
    if kind == "fp16":
        with np.errstate(over="ignore"):
            expected = x.astype(np.float16)
        np.testing.assert_array_equal(y.view(np.float16), expected)
        np.testing.assert_array_equal(np.signbit(y.view(np.float16)[:2]), [False, True])
    else:
        bits = x.view(np.uint32).astype(np.uint64)
        expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        nan = np.isnan(x)
        np.testing.assert_array_equal(y[~nan], expected[~nan])
        assert np.all(np.isnan((y[nan].astype(np.uint32) << 16).view(np.float32)))


@tiers
@sizes
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(tier, size, name):
    x, y = guarded(floats(size, spread=3)), guarded(floats(size))
    n.vector_activate(TIERS[tier], ACTIVATIONS.index(name), x, y)
    np.testing.assert_allclose(y, activated(name, x), rtol=2e-6, atol=1e-6)
    n.vector_activate(TIERS[tier], ACTIVATIONS.index(name), x, x)  # in place
    np.testing.assert_array_equal(x, y)


@tiers
@sizes
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gated_activations(tier, size, name):
    panels = -(-size // 16)
    gate_up, y = guarded(floats(panels, 2, 16, spread=3)), guarded(floats(size))
    n.vector_activate_gated(TIERS[tier], ACTIVATIONS.index(name), gate_up.reshape(-1), y)
    gate, up = (gate_up[:, half].reshape(-1)[:size] for half in (0, 1))
    np.testing.assert_allclose(y, activated(name, gate) * up, rtol=3e-6, atol=1e-6 * np.abs(up).max())


@tiers
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_far_out(tier, name):
    x = np.array([-1e30, -1e4, -100, -90, -88, 88, 90, 100, 1e4, 1e30, np.nan, 0], np.float32)
    y = np.empty_like(x)
    n.vector_activate(TIERS[tier], ACTIVATIONS.index(name), x, y)
    assert np.isnan(y[10])
    with np.errstate(over="ignore", invalid="ignore"):
        expected = activated(name, np.delete(x, 10))
    expected = np.where(np.isnan(expected), 0, expected)  # -1e30 / (1 + e^1e30) in fp64
    np.testing.assert_allclose(np.delete(y, 10), expected, rtol=1e-5, atol=1e-30 if name == "relu" else 1e-6)


def block_of(kind: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a cache block's bytes and the values they stand for."""
    if kind == "fp32":
        return values.reshape(-1).view(np.uint8), values
    if kind == "fp16":
        halves = values.astype(np.float16)
        return halves.reshape(-1).view(np.uint8), halves.astype(np.float32)
    halves = (values.view(np.uint32) >> 16).astype(np.uint16)
    return halves.reshape(-1).view(np.uint8), (halves.astype(np.uint32) << 16).view(np.float32)


@tiers
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize(
    ("rows", "count", "dim"), [(1, 1, 1), (2, 64, 64), (3, 17, 80), (4, 33, 10), (7, 63, 96), (9, 5, 33)]
)
def test_attention_scores(tier, kind, rows, count, dim):
    data, keys = block_of(kind, floats(dim, BLOCK))
    q, scores = guarded(floats(rows, dim, seed=1)), guarded(np.zeros((rows, BLOCK), np.float32))
    n.vector_attention(
        TIERS[tier], False, q.reshape(-1), rows, guarded(data), DTYPES[kind], count, dim, scores.reshape(-1)
    )
    exact = q.astype(np.float64) @ keys
    np.testing.assert_allclose(scores[:, :count], exact[:, :count], atol=1e-5 * math.sqrt(dim))


@tiers
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize(
    ("rows", "count", "dim"), [(1, 1, 16), (2, 64, 64), (3, 17, 80), (4, 33, 16), (7, 63, 96), (9, 5, 48)]
)
def test_attention_values(tier, kind, rows, count, dim):
    data, values = block_of(kind, floats(BLOCK, dim))
    weights, out = guarded(np.abs(floats(rows, BLOCK, seed=1))), guarded(floats(rows, dim, seed=2))
    exact = out + weights[:, :count].astype(np.float64) @ values[:count]
    n.vector_attention(
        TIERS[tier], True, weights.reshape(-1), rows, guarded(data), DTYPES[kind], count, dim, out.reshape(-1)
    )
    np.testing.assert_allclose(out, exact, atol=1e-5 * math.sqrt(count))


@pytest.mark.parametrize("tier", FAST)
def test_half_conversion_equals_scalar_on_every_upper_word(tier):
    """All 65536 values of the upper half of a float, with lower halves around the rounding points."""
    for low in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        x = ((np.arange(1 << 16, dtype=np.uint32) << 16) | low).view(np.float32)
        x = x[~np.isnan(x)]
        for bf16 in (False, True):
            ours, scalar = np.zeros(len(x), np.uint16), np.zeros(len(x), np.uint16)
            n.vector_to_half(TIERS[tier], bf16, x, ours)
            n.vector_to_half(TIERS["scalar"], bf16, x, scalar)
            np.testing.assert_array_equal(ours, scalar)
