"""Attention over caches of codes against the reference: its knobs, odd heads, prompts in pieces, steps, NaN."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lowbit import ops
from lowbit.models import ModelSpec
from lowbit.reference_decoder import Reference
from models import tiny

TIERS = ops.tiers()
SPEC = ModelSpec(
    family="tiny", vocab_size=67, hidden_size=64, layers=2, heads=6, kv_heads=2, head_dim=32, ffn_size=72, context=2048
)  # fmt: skip
POOL = ops.pool(2)
CHANGES = {
    "plain": {},
    "window": {"layer_window": (0, 40)},
    "softcap": {"attention_softcap": 2.0},
    "alibi": {"alibi_slopes": (0.5, 0.1, 0.02, 0.01, 0.005, 0.0)},
    "everything": {
        "layer_window": (70, 9),
        "attention_softcap": 5.0,
        "alibi_slopes": (0.1,) * 6,
        "attention_scale": 0.3,
    },
    "one-head-each": {"kv_heads": 6},
    "one-kv-head": {"heads": 9, "kv_heads": 1},
    "odd-head": {"head_dim": 21},
    "head-of-1": {"head_dim": 1},
    "wide-head": {"head_dim": 256, "heads": 2, "kv_heads": 1},
}


def tokens(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, SPEC.vocab_size, count, dtype=np.int32)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt((x * x).mean()))


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("change", CHANGES)
def test_codes_of_16_bits_are_nearer_than_halves(tier, change):
    """Prompt, a piece of one, steps: less off than with an fp16 cache, and the same bits however cut."""
    spec = dataclasses.replace(SPEC, **CHANGES[change])
    weights = tiny.random_weights(spec)
    model, ids = tiny.decoder(spec, tiny.packed(weights), tier), tokens(150)
    session = tiny.cache(spec, 150, "int16")
    got = np.concatenate(
        [tiny.run(model, session, ids[a:b]) for a, b in ((0, 100), (100, 101), (101, 109), (109, 150))]
    )
    halves, exact = tiny.run(model, tiny.cache(spec, 150, "fp16"), ids), Reference(spec, weights).logits(ids.tolist())
    assert np.abs(got - exact).max() <= 1e-3 * np.ptp(exact)
    assert rms(got - exact) < rms(halves - exact)
    if tier != "scalar":
        np.testing.assert_array_equal(got, tiny.run(model, tiny.cache(spec, 150, "int16"), ids))


@pytest.mark.parametrize("kind", ["int16", "int8"])
def test_tiers_agree_far_into_a_context(kind):
    """Beyond the first span of keys, where steps are cut into spans and long prompts are not."""
    ids, results = tokens(1100), []
    weights = tiny.random_weights(SPEC)
    for tier in TIERS:
        model, session = tiny.decoder(SPEC, tiny.packed(weights), tier), tiny.cache(SPEC, 1100, kind)
        parts = [
            ops.forward(model, [(session, ids[a:b], False)], POOL) for a, b in ((0, 1050), (1050, 1051), (1051, 1100))
        ]
        results.append(np.concatenate(parts))
    for result in results[1:]:
        assert np.abs(result - results[0]).max() <= (1e-4 if kind == "int16" else 1e-2) * np.ptp(results[0])


@pytest.mark.parametrize("kind", ["int16", "int8"])
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("rows", [slice(192, 256), slice(256, 320)], ids=["keys", "values"])
def test_what_is_not_finite_stays_in_the_rows_that_see_it(tier, kind, rows):
    """An infinite key or value of one token: NaN for whoever attends to it, nothing for those before."""
    weights = tiny.random_weights(SPEC)
    weights["embedding.weight"][:, 0] = 0  # token 5 alone has anything in channel 0
    weights["embedding.weight"][5] = np.eye(SPEC.hidden_size, dtype=np.float32)[0]
    weights["layers.0.qkv.weight"][rows, 0] = 3e38
    model = tiny.decoder(SPEC, tiny.packed(weights), tier)
    ids = np.where(tokens(100) == 5, 6, tokens(100)).astype(np.int32)
    ids[70] = 5
    got = tiny.run(model, tiny.cache(SPEC, 100, kind), ids)
    assert np.isfinite(got[:70]).all()
    assert np.isnan(got[70:]).all()
