"""Attention over codes in tiles (tier amx) against tier avx512, to the last bit: kernels, and whole decoders.

CPUs without tiles run the same kernel source on a model of the tile instructions; a CPU with them runs both.
"""

import dataclasses
import itertools

import numpy as np
import pytest

from guarded import guarded
from lowbit import _native as n
from lowbit import ops
from lowbit.models import ModelSpec
from models import tiny

TIERS = [t for t in ("amx", "amx_model") if t in n.tiers() or (t == "amx_model" and "avx512" in n.tiers())]
pytestmark = pytest.mark.skipif(not TIERS, reason="attention in tiles needs AVX-512 for what is not a tile")
AVX512, BLOCK, F = ops.TIERS.index("avx512"), 64, np.float32
WIDTHS = {np.int8: 127, np.int16: 32767}
EXTREMES = {  # of codes of 16 and of 8 bits; in the first case with bytes that are negative where codes are not, and 0
    "bytes": ([0x00FF, 0x0080, -0x0080, -0x0001, 0x7F00, 0x7F80, -0x7F01, -0x8000], [-128, -1, 0, 1, 127]),
    "most": ([32767], [127]),
    "least": ([-32768], [-128]),
    "alternating": ([32767, -32767], [127, -127]),
    "zero": ([0], [0]),
}

tiers = pytest.mark.parametrize("tier", TIERS)
widths = pytest.mark.parametrize("width", WIDTHS)


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F)


def codes(width: type, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-WIDTHS[width], WIDTHS[width] + 1, shape).astype(width)


def scores_in(tier: str, q: np.ndarray, keys: np.ndarray, count: int, at: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores [rows, count] in tiles and on AVX-512; sums may wrap, which is exact too."""
    rows, dim = q.shape
    operands = (
        q.reshape(-1),
        np.abs(floats(rows, seed=2)),
        keys.reshape(-1).view(np.uint8),
        np.abs(floats(BLOCK, seed=3)),
    )
    results = [guarded(np.zeros(rows * BLOCK, F), at) for _ in range(2)]
    n.tile_scores(ops.TIERS.index(tier), *(guarded(x, at) for x in operands), count, dim, results[0])
    n.code_scores(AVX512, *operands, count, dim, results[1])
    mine, other = (x.reshape(rows, BLOCK)[:, :count].view(np.uint32) for x in results)
    return mine, other


def values_in(tier: str, weights: np.ndarray, values: np.ndarray, at: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns outputs [rows, dim] in tiles and on AVX-512."""
    rows, dim = len(weights), values.size // BLOCK
    operands, state = (weights.reshape(-1), values.reshape(-1).view(np.uint8)), np.abs(floats(rows * 4, seed=4))
    results = [guarded(floats(rows * dim, seed=5), at) for _ in range(2)]
    n.tile_values(ops.TIERS.index(tier), *(guarded(x, at) for x in operands), dim, guarded(state, at), results[0])
    n.code_values(AVX512, *operands, BLOCK, dim, state, results[1])
    return results[0].view(np.uint32), results[1].view(np.uint32)


def weights_of(rows: int, count: int) -> np.ndarray:
    weights = np.zeros((rows, BLOCK), np.int16)
    weights[:, :count] = np.random.default_rng(rows).integers(0, 32768, (rows, count))
    return weights


@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("dim", [2, 30, 32, 62, 64, 66, 80, 96, 112, 126, 128, 130, 192, 256])
@widths
@tiers
def test_scores_equal_those_of_avx512(tier, width, dim, at):
    for rows, count in [(1, 64), (15, 1), (16, 16), (17, 17), (31, 48), (33, 63), (70, 64)]:
        mine, other = scores_in(tier, codes(np.int16, rows, dim), codes(width, dim, BLOCK, seed=1), count, at)
        np.testing.assert_array_equal(mine, other, str((rows, count)))


@pytest.mark.parametrize("at", ["start", "end"])
@pytest.mark.parametrize("dim", [16, 32, 48, 64, 80, 96, 112, 128, 256])
@widths
@tiers
def test_values_equal_those_of_avx512(tier, width, dim, at):
    for rows, count in [(1, 64), (15, 1), (16, 16), (17, 17), (31, 48), (33, 63), (70, 64)]:
        mine, other = values_in(tier, weights_of(rows, count), codes(width, BLOCK, dim), at)
        np.testing.assert_array_equal(mine, other, str((rows, count)))


@pytest.mark.parametrize("ours", EXTREMES)
@pytest.mark.parametrize("theirs", EXTREMES)
@widths
@tiers
def test_extreme_codes(tier, width, ours, theirs):
    for dim in (64, 80):
        q = np.resize(np.array(EXTREMES[ours][0], np.int16), (18, dim))
        block = np.resize(np.array(EXTREMES[theirs][width == np.int8], width), (dim, BLOCK))
        for operand in (block, np.random.default_rng(0).permuted(block)):
            mine, other = scores_in(tier, q, operand, BLOCK, "end")
            np.testing.assert_array_equal(mine, other)
            weights = np.resize(np.array(EXTREMES[ours][0]), (18, BLOCK)).clip(0)
            mine, other = values_in(tier, weights.astype(np.int16), operand, "end")
            np.testing.assert_array_equal(mine, other)


@widths
@tiers
def test_sums_of_codes_are_exact(tier, width):
    """Against numpy, so that both tiers cannot be wrong in the same way."""
    q, keys = codes(np.int16, 16, 96) // 64, codes(width, BLOCK, 96, seed=1) // (64 if width is np.int16 else 1)
    pairs = np.ascontiguousarray(keys.T.reshape(48, 2, BLOCK).transpose(0, 2, 1)).reshape(-1).view(np.uint8)
    out, one = np.zeros(16 * BLOCK, F), np.ones(BLOCK, F)
    n.tile_scores(ops.TIERS.index(tier), q.reshape(-1), one[:16], pairs, one, BLOCK, 96, out)
    np.testing.assert_array_equal(out.reshape(16, BLOCK), (q.astype(np.int64) @ keys.T.astype(np.int64)).astype(F))


SPEC = ModelSpec(
    family="tiny", vocab_size=67, hidden_size=64, layers=2, heads=6, kv_heads=2, head_dim=32, ffn_size=72, context=2048
)  # fmt: skip
CHANGES = {
    "plain": {},
    "heads-of-7": {"heads": 14, "head_dim": 64},
    "window": {"layer_window": (70, 9)},
    "softcap-and-alibi": {"attention_softcap": 2.0, "alibi_slopes": (0.5, 0.1, 0.02, 0.01, 0.005, 0.0)},
    "odd-head": {"head_dim": 21},
    "head-of-80": {"head_dim": 80, "heads": 2, "kv_heads": 2},
    "wide-head": {"head_dim": 256, "heads": 2, "kv_heads": 1},
    "steps-of-20-rows": {"heads": 20, "kv_heads": 1, "head_dim": 16},
}


@pytest.mark.parametrize("kind", ["int16", "int8"])
@pytest.mark.parametrize("change", CHANGES)
@tiers
def test_decoders_say_the_same_as_on_avx512(tier, change, kind):
    """Prompts whole and in pieces of many and few rows, steps, and two sessions in a pass."""
    spec = dataclasses.replace(SPEC, **CHANGES[change])
    tensors, ids = tiny.packed(tiny.random_weights(spec)), np.random.default_rng(1).integers(0, 67, 230, np.int32)

    def logits(on: str) -> list[np.ndarray]:
        model = tiny.decoder(spec, tensors, on)
        whole = tiny.run(model, tiny.cache(spec, 230, kind), ids)
        session, other = tiny.cache(spec, 230, kind), tiny.cache(spec, 230, kind)
        cuts = [0, 150, 151, 155, 162, 180]
        pieces = [tiny.run(model, session, ids[a:b]) for a, b in itertools.pairwise(cuts)]
        both = ops.forward(model, [(session, ids[180:], True), (other, ids[:50], True)], ops.pool(2))
        np.testing.assert_array_equal(np.concatenate([*pieces, both[:50]]), whole)
        np.testing.assert_array_equal(both[50:], whole[:50])
        return [whole, both]

    for mine, avx512 in zip(logits(tier), logits("avx512"), strict=True):
        np.testing.assert_array_equal(mine.view(np.uint32), avx512.view(np.uint32))


@tiers
def test_whole_models_in_tiles_say_the_same_as_on_avx512(tier):
    """Linear layers and attention: prompts in tiles, a piece of few rows, a step."""
    tensors, ids = tiny.packed(tiny.random_weights(SPEC), "sym_int4", 32), np.arange(150) % 67
    results = []
    for on in (tier, "avx512"):
        model, session = tiny.decoder(SPEC, tensors, on, "int8"), tiny.cache(SPEC, 150, "int16")
        results.append([tiny.run(model, session, ids[a:b]) for a, b in [(0, 130), (130, 149), (149, 150)]])
    for mine, avx512 in zip(*results, strict=True):
        np.testing.assert_array_equal(mine.view(np.uint32), avx512.view(np.uint32))


def test_tiers_without_tiles_say_so():
    out = np.zeros(BLOCK, F)
    with pytest.raises(ValueError, match="has no tiles"):
        n.tile_scores(AVX512, np.zeros(64, np.int16), out[:1], np.zeros(64 * BLOCK, np.uint8), out, 1, 64, out)
