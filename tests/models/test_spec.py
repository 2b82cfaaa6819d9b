"""ModelSpec: both mirrors have the same fields, every knob does what the numpy reference says, bad specs are
refused."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest

from lowbit import ops
from lowbit.models import ModelSpec, Rope
from lowbit.reference_decoder import Reference
from models import tiny

HEADER = Path(__file__).resolve().parents[2] / "native" / "include" / "lowbit" / "spec.h"
TIERS = ops.tiers()
TOKENS = np.random.default_rng(3).integers(0, 67, 70).tolist()  # more than one block of the cache

BASE = ModelSpec(
    family="tiny", vocab_size=67, hidden_size=40, layers=2, heads=6, kv_heads=2, head_dim=10, ffn_size=50, context=96
)  # fmt: skip


def frequencies(dim: int, theta: float = 100.0) -> tuple[float, ...]:
    return tuple(theta ** (-2 * i / dim) for i in range(dim // 2))


HALF = Rope("half", 10, frequencies(10))
PARTIAL = Rope("interleaved", 6, frequencies(6), scale=1.2)
LONG = Rope("half", 10, frequencies(10), 1.1, frequencies(10, 500.0), 1.3, long_from=90)
SLOPES = tuple(2.0 ** -(i + 1) for i in range(6))
HIDDEN, HEAD, ALL_HEADS, ALL_KV = (40,), (10,), (60,), (20,)
NORM_BIASES = {f"layers.{i}.{n}_norm.bias": HIDDEN for i in (0, 1) for n in ("attention", "ffn")}
HEAD_NORMS = {f"layers.{i}.{n}_norm.weight": HEAD for i in (0, 1) for n in "qk"}
PER_HEAD = {f"layers.{i}.{n}_norm.weight": s for i in (0, 1) for n, s in (("q", ALL_HEADS), ("k", ALL_KV))}
BIASES = {
    f"layers.{i}.{n}.bias": (rows,)
    for i in (0, 1)
    for n, rows in (("qkv", 100), ("o", 40), ("gate_up", 128), ("down", 40))
}

# id -> (changes to BASE, optional tensors); the families that need it in the comments
KNOBS: dict[str, tuple[dict, dict]] = {
    "nothing": ({}, {}),
    "biases": ({}, {**BIASES, "head.bias": (67,)}),  # Phi, GPT-J's head
    "rope": ({"ropes": (HALF,), "layer_rope": (0, 0)}, {}),
    "partial-interleaved-rope": ({"ropes": (PARTIAL,), "layer_rope": (0, 0)}, {}),  # GPT-J, GLM
    "two-ropes": ({"ropes": (HALF, PARTIAL), "layer_rope": (1, 0)}, {}),  # Gemma 3
    "rope-in-one-layer": ({"ropes": (HALF,), "layer_rope": (-1, 0)}, {}),  # Cohere 2
    "long-rope": ({"ropes": (LONG,), "layer_rope": (0, 0)}, {}),  # Phi-3
    "alibi": ({"alibi_slopes": SLOPES}, {}),  # BLOOM, MPT, Baichuan 13B
    "softcaps": ({"attention_softcap": 2.0, "logit_softcap": 3.0, "attention_scale": 0.2}, {}),  # Gemma 2
    "windows": ({"layer_window": (5, 0), "ropes": (HALF,), "layer_rope": (0, 0)}, {}),
    "window-of-one": ({"layer_window": (1, 66)}, {}),
    "clip": ({"clip_qkv": 0.7}, {}),  # MPT
    "logn": ({"attention_logn_from": 8}, {}),  # Qwen 1
    "layer-scale": ({"layer_attention_scale": (1.0, 0.5)}, {}),  # GPT-2
    "layer-norm": ({"norm": "layer"}, NORM_BIASES),
    "layer-norm-without-bias": ({"norm": "layer"}, {}),  # MPT, Cohere
    "norm-offset": ({"norm_weight_offset": 1.0}, HEAD_NORMS),  # Gemma
    "post-norm": ({"norm": "layer", "norm_place": "post", "final_norm": False}, NORM_BIASES),  # OPT-350m
    "sandwich": ({"norm_place": "sandwich"}, {}),  # Gemma 2, GLM-4
    "parallel-shared": ({"residual": "parallel_shared", "norm": "layer"}, {}),  # GPT-J, Falcon-7B, Cohere
    "parallel-separate": ({"residual": "parallel_separate", "residual_scale": 0.5}, {}),  # GPT-NeoX, Falcon-40B
    "parallel-sandwich": ({"residual": "parallel_separate", "norm_place": "sandwich"}, {}),
    "residual-scale": ({"residual_scale": 0.3}, {}),
    "head-norms": ({"ropes": (HALF,), "layer_rope": (0, 0)}, HEAD_NORMS),  # Qwen 3
    "norm-per-head": ({"qk_norm": "layer", "ropes": (HALF,), "layer_rope": (0, 0)}, PER_HEAD),  # Cohere, StableLM
    "norm-over-all-heads": ({"qk_norm": "layer", "qk_norm_whole": True}, PER_HEAD),  # MPT
    "plain-mlp": ({"gated": False, "activation": "gelu"}, {}),
    "gated-gelu": ({"activation": "gelu_tanh"}, {}),
    "quick-gelu": ({"gated": False, "activation": "quick_gelu"}, {}),
    "relu": ({"gated": False, "activation": "relu"}, {}),
    "tied": ({"tied_head": True, "embedding_scale": 2.5, "logit_scale": 0.4}, {}),
    "positions": ({"learned_position_offset": 2}, {"position_embedding.weight": (98, 40)}),
    "embedding-norm": ({"norm": "layer"}, {"embedding_norm.weight": HIDDEN, "embedding_norm.bias": HIDDEN}),  # BLOOM
    "one-kv-head": ({"kv_heads": 1}, {}),  # Falcon-7B, StarCoder
    "as-many-kv-heads": ({"kv_heads": 6}, {}),
    "whole-panels": ({"vocab_size": 80, "ffn_size": 64, "hidden_size": 64, "head_dim": 32}, {}),
}
PROJECTED = {"embedding.weight": (67, 24), "embedding_in.weight": (40, 24), "head_in.weight": (24, 40)}
KNOBS["projected-words"] = ({"tied_head": True}, PROJECTED)  # OPT-350m


def build(name: str) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    changes, extra = KNOBS[name]
    spec = dataclasses.replace(BASE, **changes)
    return spec, tiny.random_weights(spec, extra)


def assert_close(ours: np.ndarray, exact: np.ndarray) -> None:
    span = exact.max() - exact.min()
    assert span > 0.5
    assert np.abs(ours - exact).max() <= 1e-4 * span


@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("tier", TIERS)
def test_knob(knob, tier):
    spec, weights = build(knob)
    exact = Reference(spec, weights, capacity=96).logits(TOKENS)
    model = tiny.decoder(spec, tiny.packed(weights), tier)
    whole = tiny.run(model, tiny.cache(spec), TOKENS)
    assert_close(whole, exact)

    session = tiny.cache(spec)
    pieces = [tiny.run(model, session, TOKENS[a:b]) for a, b in ((0, 1), (1, 30), (30, 31), (31, 65), (65, 70))]
    assert_close(np.concatenate(pieces), exact)


@pytest.mark.parametrize("knob", ["sandwich", "parallel-shared", "positions", "windows", "projected-words"])
def test_knob_changes_the_result(knob):
    """The reference itself notices a knob, so equality above is not between two that ignore it."""
    spec, weights = build(knob)
    plain = dataclasses.replace(
        spec, norm_place="pre", residual="sequential", learned_position_offset=0, layer_window=(), embedding_scale=1.5
    )
    if knob == "parallel-shared":
        weights = weights | {f"layers.{i}.ffn_norm.weight": np.ones(40) for i in (0, 1)}
    a, b = Reference(spec, weights).logits(TOKENS), Reference(plain, weights).logits(TOKENS)
    assert np.abs(a - b).max() > 0.05


def test_a_long_rope_follows_the_capacity():
    spec, weights = build("long-rope")
    model = tiny.decoder(spec, tiny.packed(weights))
    for capacity in (80, 96):
        exact = Reference(spec, weights, capacity).logits(TOKENS)
        assert_close(tiny.run(model, tiny.cache(spec, capacity), TOKENS), exact)


def struct_fields(name: str) -> list[str]:
    """Returns the members of a struct in spec.h, in order."""
    body = re.search(rf"struct {name} {{(.*?)^}};", HEADER.read_text(), re.S | re.M).group(1)
    body = re.sub(r"//.*", "", body)
    names = []
    for declaration in body.split(";"):
        for part in re.sub(r"<[^>]*>", "", declaration).split(","):
            member = re.search(r"(\w+)\s*(=.*)?$", part.strip())
            if member:
                names.append(member.group(1))
    return names


@pytest.mark.parametrize("struct", [ModelSpec, Rope])
def test_mirrors_have_the_same_fields(struct):
    python = [f.name for f in dataclasses.fields(struct)]
    assert set(struct_fields(struct.__name__)) == set(python)
    assert sorted(ops.native().spec_fields()[struct.__name__]) == sorted(python)


def test_mirrors_have_the_same_defaults():
    """Fields left out of the dictionary mean the same on both sides."""
    spec, weights = build("nothing")
    required = {f.name for f in dataclasses.fields(ModelSpec) if f.default is dataclasses.MISSING}
    short = {name: value for name, value in spec.to_dict().items() if name in required}
    full = tiny.decoder(spec, tiny.packed(weights))
    lean = ops.decoder(short, tiny.packed(weights), "fp32", "scalar")
    np.testing.assert_array_equal(*(tiny.run(m, tiny.cache(spec), TOKENS) for m in (full, lean)))


def test_spec_survives_json():
    import json

    for name in KNOBS:
        spec, _ = build(name)
        assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    with pytest.raises(ValueError, match="newer lowbit"):
        ModelSpec.from_dict({**BASE.to_dict(), "wings": 2})
    with pytest.raises(ValueError, match="vocab_size"):
        ModelSpec.from_dict({k: v for k, v in BASE.to_dict().items() if k != "vocab_size"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 5}, "multiple of kv_heads"),
        ({"layers": 0}, "layers is 0"),
        ({"norm": "batch"}, "norm: 'batch'"),
        ({"activation": "sine"}, "activation"),
        ({"vocab_size": "many"}, "vocab_size: wrong type"),
        ({"ropes": (Rope("half", 12, frequencies(12)),), "layer_rope": (0, 0)}, "12 of 10"),
        ({"ropes": (Rope("half", 10, frequencies(8)),), "layer_rope": (0, 0)}, "5 frequencies"),
        ({"ropes": (Rope("twisted", 10, frequencies(10)),), "layer_rope": (0, 0)}, "twisted"),
        ({"ropes": (HALF,), "layer_rope": (1, 0)}, "layer_rope"),
        ({"layer_window": (1,)}, "layer_window has 1"),
        ({"layer_window": (-1, 0)}, "layer_window"),
        ({"alibi_slopes": (1.0,)}, "alibi_slopes"),
        ({"head_dim": 8}, r"qkv.weight has shape \[100, 40\]"),
        ({"tied_head": True, "hidden_size": 41}, "embedding.weight has 40 columns"),
        ({"norm_place": "sandwich"}, "attention_post_norm"),
        ({"gated": False}, "layers.0.up.weight is missing"),
    ],
)
def test_bad_specs_name_what_is_wrong(changes, message):
    tensors = tiny.packed(build("nothing")[1])
    with pytest.raises(ValueError, match=message):
        ops.decoder(
            {**dataclasses.asdict(BASE), **{k: _plain(v) for k, v in changes.items()}}, tensors, "fp32", "scalar"
        )


def _plain(value):
    return [dataclasses.asdict(v) if isinstance(v, Rope) else v for v in value] if isinstance(value, tuple) else value


@pytest.mark.parametrize("name", ["embedding.weight", "layers.1.o.weight", "layers.0.ffn_norm.weight", "head.weight"])
def test_missing_tensors_are_named(name):
    tensors = tiny.packed(build("nothing")[1])
    del tensors[name]
    with pytest.raises(ValueError, match=re.escape(name)):
        tiny.decoder(BASE, tensors)


def test_unknown_tier_and_compute():
    tensors = tiny.packed(build("nothing")[1])
    with pytest.raises(ValueError, match="choose one of scalar"):
        tiny.decoder(BASE, tensors, tier="sse")
    with pytest.raises(ValueError, match="choose one of int8, fp32, bf16"):
        tiny.decoder(BASE, tensors, compute="fp16")


def test_reference_softmax_sees_only_the_past():
    spec, weights = build("nothing")
    reference = Reference(spec, weights)
    np.testing.assert_allclose(reference.logits(TOKENS)[:9], reference.logits(TOKENS[:9]), atol=1e-12)
    assert math.isclose(reference.logits(TOKENS)[0, 0], reference.logits(TOKENS[:1])[0, 0], rel_tol=1e-9)
