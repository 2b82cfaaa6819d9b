"""Quantisers that look at what a model does with text: folds change nothing, each algorithm does what it is for."""

from __future__ import annotations

import itertools
import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit import formats, reference
from lowbit.calibration import LINEARS, Quantiser, Weights, measure_importance, quantise_layers
from lowbit.calibration._fold import folds
from lowbit.calibration._gptq import gptq
from lowbit.calibration._scaling import awq, teq
from lowbit.calibration.imatrix import lookup, read_imatrix, write_imatrix
from lowbit.formats import FORMATS, resolve
from lowbit.models import ModelSpec, Rope
from lowbit.perplexity import perplexity
from lowbit.quantize import CLIP_RATIOS, quantize
from lowbit.reference_decoder import Reference
from models import tiny

SCALED = [f for f in FORMATS.values() if f.codes != formats.FLOAT]
ROPE = Rope("half", 8, tuple(10000.0 ** (-i / 4) for i in range(4)))
BASE = {
    "family": "test", "vocab_size": 61, "hidden_size": 48, "layers": 2, "heads": 6, "kv_heads": 2, "head_dim": 8,
    "ffn_size": 40, "context": 64, "ropes": (ROPE,), "layer_rope": (0, 0),
}  # fmt: skip
SPECS = {
    "llama": {},
    "gemma": {"norm_weight_offset": 1.0, "norm_place": "sandwich", "activation": "gelu_tanh"},
    "opt": {"gated": False, "activation": "relu", "norm": "layer", "kv_heads": 6},
    "gpt2": {"gated": False, "activation": "gelu_tanh", "norm": "layer"},
    "post": {"norm_place": "post"},
    "parallel": {"residual": "parallel_shared"},
    "two norms": {"residual": "parallel_separate"},
}
FOLDED = {
    "llama": "o down qkv gate_up", "gemma": "o down qkv gate_up", "opt": "o down qkv up", "gpt2": "o qkv up",
    "post": "o down", "parallel": "o down", "two norms": "o down qkv gate_up",
}  # fmt: skip
TOKENS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 58, 60]


def model(name: str) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    spec = ModelSpec(**{**BASE, **SPECS[name]})
    up = "gate_up" if spec.gated else "up"
    rows = 96 if spec.gated else 40
    sizes = {"qkv": 8 * (6 + 2 * spec.kv_heads), up: rows}
    extra = {f"layers.{i}.{n}.bias": (size,) for i in (0, 1) for n, size in sizes.items()}
    if spec.norm == "layer":
        extra |= {f"layers.{i}.{n}_norm.bias": (48,) for i in (0, 1) for n in ("attention", "ffn")}
    weights = tiny.random_weights(spec, extra)
    for i in (0, 1):
        if spec.gated:  # what lies behind ffn_size is padding
            weights[f"layers.{i}.gate_up.bias"].reshape(3, 2, 16)[2, :, 8:] = 0
    return spec, weights


def layer_of(weights: dict[str, np.ndarray], i: int) -> dict[str, np.ndarray]:
    return {n.removeprefix(f"layers.{i}."): w for n, w in weights.items() if n.startswith(f"layers.{i}.")}


@pytest.mark.parametrize("name", SPECS)
def test_folded_factors_change_nothing(name):
    spec, weights = model(name)
    before = Reference(spec, weights).logits(TOKENS)
    random = np.random.default_rng(0)
    for i in range(spec.layers):
        layer = {n: w.astype(np.float64) for n, w in layer_of(weights, i).items()}
        found = folds(spec, {n: layer[f"{n}.weight"].shape[1] for n in LINEARS if f"{n}.weight" in layer})
        assert [fold.name for fold in found] == FOLDED[name].split()
        for fold in found:
            old = layer[f"{fold.name}.weight"].copy()
            fold.apply(layer, random.uniform(0.3, 3, fold.free))
            assert not np.allclose(layer[f"{fold.name}.weight"], old)
        weights = {**weights, **{f"layers.{i}.{n}": w for n, w in layer.items()}}
    after = Reference(spec, weights).logits(TOKENS)
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-9 * np.abs(before).max())


def inputs(n: int, k: int, seed: int = 0) -> np.ndarray:
    """Correlated activations with a few channels much larger than the others, as trained models have them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, k // 2)) @ random.standard_normal((k // 2, k)) + random.standard_normal((n, k))
    x *= 0.1
    x[:, :: k // 5] *= 20
    return x.astype(np.float32)


def weight_of(rows: int, k: int) -> np.ndarray:
    return (np.random.default_rng(9).standard_normal((rows, k)) * 0.05).astype(np.float32)


def loss(x: np.ndarray, weight: np.ndarray, values: np.ndarray) -> float:
    return float(np.square(x @ (values - weight).T).sum(dtype=np.float64))


@pytest.mark.parametrize("format", SCALED, ids=lambda f: f.name)
def test_gptq_makes_the_output_error_smaller(format):
    for (rows, k), group, order in itertools.product(((40, 192), (17, 130)), (32, 0), (True, False)):
        x, weight = inputs(600, k), weight_of(rows, k)
        tensor = gptq(weight, x.T @ x, resolve(format.name), group, act_order=order)
        assert tensor.shape == (rows, k)
        exact = reference.dequantize(tensor.data.tobytes(), format, (rows, k), tensor.group_size, tensor.multiplier)
        assert np.array_equal(tensor.dequantize(), exact)
        nearest = quantize(weight, format, group).dequantize()
        share = loss(x, weight, exact) / loss(x, weight, nearest)
        assert share < (0.75 if format.bits <= 5 else 1.0), (rows, k, group, order, share)


def test_gptq_survives_silent_inputs_and_little_text():
    x, weight = inputs(3, 64), weight_of(16, 64)
    x[:, 10] = 0
    assert np.isfinite(gptq(weight, x.T @ x, resolve("sym_int4"), 32).dequantize()).all()
    nothing = gptq(weight, np.zeros((64, 64), np.float32), resolve("sym_int4"), 32, act_order=False)
    np.testing.assert_array_equal(nothing.dequantize(), quantize(weight, "sym_int4", 32).dequantize())


@pytest.mark.parametrize("name", ["sym_int4", "asym_int4", "nf4", "sym_int3"])
def test_scaling_makes_the_output_error_smaller(name):
    x, weight = inputs(300, 160), weight_of(64, 160)
    columns = np.arange(160)

    def rounded(w):
        return quantize(w, name, 32).dequantize()

    found = {
        "awq": awq(weight, x, np.abs(x).mean(0), columns, rounded),
        "teq": teq(weight, x, columns, 32, FORMATS[name].has_min, rounded),
    }
    plain = loss(x, weight, rounded(weight))
    for algorithm, factors in found.items():
        scaled = rounded(weight * factors) / factors
        assert loss(x, weight, scaled) < 0.8 * plain, algorithm


def test_teq_follows_the_gradient_of_its_loss():
    """Where rounding is fine, the straight-through gradient is that of the expected loss; its steps go downhill."""
    x, weight = inputs(100, 64), weight_of(400, 64)
    shared = np.arange(64) // 2  # two columns to a factor
    factors = teq(weight, x, shared, 64, False, lambda w: quantize(w, "sym_int4", 64).dequantize())
    assert factors.shape == (32,)
    values = quantize(weight * factors[shared], "sym_int4", 64).dequantize() / factors[shared]
    assert loss(x, weight, values) < loss(x, weight, quantize(weight, "sym_int4", 64).dequantize())


@pytest.mark.parametrize("name", ["llama", "opt", "post"])
@pytest.mark.parametrize("algorithm", ["rtn", "awq", "teq", "gptq"])
def test_the_walk_over_layers(name, algorithm):
    spec, weights = model(name)
    source = Weights(frozenset(weights), lambda n: weights[n], lambda n, ids: weights[n][ids])
    texts = np.random.default_rng(1).integers(0, spec.vocab_size, (6, 40)).tolist()
    quantiser = Quantiser(algorithm, calibration=texts)
    done = dict(quantise_layers(spec, source, lambda n: (resolve("sym_int8"), 32), quantiser, texts))
    assert set(done) == {n for n in weights if n.startswith("layers.")}
    values = {n: t if isinstance(t, np.ndarray) else t.dequantize() for n, t in done.items()}
    exact, logits = (Reference(spec, {**weights, **v}).logits(TOKENS) for v in ({}, values))
    assert (exact - logits).std() < 0.05 * exact.std()  # 8 bits: a slip in a fold or an order makes it about 1


def test_a_trained_model_gets_better_at_few_bits(demo_model):
    held_out, calibration = demo_model["texts"][30:45], demo_model["texts"][:30] + demo_model["texts"][45:]

    def measured(**options):
        loaded = lowbit.load(demo_model["folder"], low_bit="sym_int3", group_size=128, **options)
        encode = loaded.tokenizer.encode
        return perplexity(loaded.logits, [encode(t, add_special_tokens=False) for t in held_out]).loss

    plain = measured()
    for algorithm in ("awq", "teq", "gptq"):
        better = measured(quantiser=Quantiser(algorithm, calibration=calibration, tokens=3600))
        assert better < plain, algorithm
    assert measured(quantiser=Quantiser(clip_search=True)) < plain


@pytest.fixture(scope="module")
def demo_model():
    demo = Path(__file__).resolve().parents[2] / "demo"
    sys.path.insert(0, str(demo))
    try:
        from text import documents
    finally:
        sys.path.remove(str(demo))
    source = documents(77)
    texts = ["".join(piece for piece, _ in next(source)) for _ in range(105)]
    return {"folder": str(demo / "model"), "texts": texts}


def test_the_folder_remembers_the_quantiser(demo_model, tmp_path):
    model = lowbit.load(demo_model["folder"], quantiser=Quantiser(clip_search=True, double_quant="int8"))
    model.save_low_bit(tmp_path / "saved")
    again = lowbit.load(str(tmp_path / "saved"))
    texts = [m.generate("Once upon a time", max_new_tokens=8).text for m in (model, again)]
    assert texts[0] == texts[1]
    recorded = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]["quantiser"]
    assert recorded == {"algorithm": "rtn", "clip_search": True, "double_quant": "int8"}
    with pytest.raises(ValueError, match="quantised already"):
        lowbit.load(str(tmp_path / "saved"), quantiser=Quantiser(clip_search=True))


@pytest.mark.parametrize("dtype", Quantiser.DOUBLE_QUANT)
@pytest.mark.parametrize("name", ["nf4", "sym_int4", "asym_int4"])
def test_double_quantisation_rounds_scales_only(name, dtype):
    from lowbit.calibration._double_quant import double_quantise

    weight = weight_of(33, 320) * np.linspace(0.5, 2, 33, dtype=np.float32)[:, None]
    weight[5] = 0
    plain, twice = quantize(weight, name, 64), quantize(weight, name, 64)
    double_quantise(twice, dtype)
    (codes, scales, minima), (codes2, scales2, minima2) = (
        reference.unpack(t.format, t.layout, t.data.tobytes()) for t in (plain, twice)
    )
    assert np.array_equal(codes, codes2)
    assert np.array_equal(minima, minima2)
    assert not np.array_equal(scales, scales2)
    spread = np.ptp(scales[scales != 0].astype(np.float32))
    allowed = {"int8": 0.005, "fp8_e4m3": 0.05, "fp8_e5m2": 0.08}[dtype]
    assert np.abs(scales.astype(np.float32) - scales2).max() < allowed * spread
    assert not twice.dequantize()[5].any() or FORMATS[name].has_min


def test_importance_matrices_are_written_and_read(tmp_path):
    spec, weights = model("llama")
    source = Weights(frozenset(weights), lambda n: weights[n], lambda n, ids: weights[n][ids])
    importance = measure_importance(spec, source, [TOKENS])
    assert {n: v.shape for n, v in importance.items()} == {
        f"layers.{i}.{n}": (k,) for i in (0, 1) for n, k in (("qkv", 48), ("o", 48), ("gate_up", 48), ("down", 40))
    }
    x = Reference(spec, weights).norm("layers.0.attention_norm", weights["embedding.weight"][TOKENS])
    np.testing.assert_allclose(importance["layers.0.qkv"], np.square(x).mean(0), rtol=1e-4)
    write_imatrix(tmp_path / "imatrix.dat", importance, 7, "a text")
    again = read_imatrix(tmp_path / "imatrix.dat")
    assert set(again) == set(importance)
    for name in again:
        np.testing.assert_allclose(again[name], importance[name], rtol=1e-6)
    assert np.array_equal(lookup(again, "layers.1.up"), again["layers.1.gate_up"])
    assert lookup(again, "head") is None
    data = (tmp_path / "imatrix.dat").read_bytes()
    for cut in (0, 3, 10, 40, len(data) // 2):
        (tmp_path / "cut.dat").write_bytes(data[:cut])
        with pytest.raises(ValueError, match=r"cut\.dat"):
            read_imatrix(tmp_path / "cut.dat")
    (tmp_path / "lies.dat").write_bytes(struct.pack("<ii", 1, 2**30) + b"x" * 100)
    with pytest.raises(ValueError, match="damaged"):
        read_imatrix(tmp_path / "lies.dat")


def test_bad_settings_are_refused(demo_model):
    with pytest.raises(ValueError, match="awq, teq, gptq"):
        Quantiser("adaround")
    with pytest.raises(ValueError, match="needs text"):
        Quantiser("awq")
    with pytest.raises(TypeError, match="list of texts"):
        Quantiser("awq", calibration="one text")
    with pytest.raises(ValueError, match="double_quant"):
        Quantiser(double_quant="int4")
    with pytest.raises(ValueError, match="fewer than two tokens"):
        Quantiser("awq", calibration=[""]).sequences(lambda text: [], 64, 100)
    with pytest.raises(ValueError, match="vocabulary"):
        lowbit.load(demo_model["folder"], quantiser=Quantiser("gptq", calibration=[[1, 99999]]))


def test_sequences_are_cut_to_length_and_budget():
    quantiser = Quantiser("awq", calibration=[list(range(25)), "ab"], length=10, tokens=27)
    assert quantiser.sequences(lambda text: [7, 8, 9], 64, 100) == [
        list(range(10)), list(range(10, 20)), list(range(20, 25)), [7, 8],
    ]  # fmt: skip
    assert Quantiser(clip_search=True, imatrix=None).clips
    assert np.isclose(CLIP_RATIOS[-1], 0.805)
