"""The low-bit folders of ipex-llm and bigdl-llm open in lowbit.load and as transformers models."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_torch as tiny
from tiny_torch import close

import archives

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

# format -> largest error of a decoded weight, in units of its group's largest weight
ERRORS = {
    "sym_int4": 0.13, "asym_int4": 0.08, "sym_int5": 0.07, "asym_int5": 0.04, "sym_int8": 0.005, "nf4": 0.16,
    "nf3": 0.27, "fp4": 0.17, "fp8_e4m3": 0.04, "fp8_e5m2": 0.26,
}  # fmt: skip


@pytest.mark.parametrize("format", ERRORS)
def test_blocks_decode_to_what_was_encoded(format):
    from lowbit.quantize import quantize
    from lowbit.sources.archive import BLOCK_BYTES, decode

    weight = np.random.default_rng(0).normal(0, 0.02, (32, 128)).astype(np.float32)
    data = archives.encode(weight, format)
    assert data.size == weight.size // 64 * BLOCK_BYTES[format]
    values = decode(data, format).reshape(weight.shape)
    largest = np.abs(weight.reshape(-1, 64)).max(1).repeat(64).reshape(weight.shape)
    assert (np.abs(values - weight) / largest).max() < ERRORS[format]
    again = quantize(values, format, 64).dequantize()
    if format != "fp8_e5m2":  # which has no scale there and one here
        assert np.abs(again - values).max() <= 1e-3 * np.abs(values).max()
    if format in ("sym_int4", "sym_int5", "nf4", "nf3", "fp4"):
        assert np.array_equal(again, values)


@pytest.mark.parametrize(
    ("format", "merged", "route"),
    [
        ("sym_int4", True, "config.json"),
        ("asym_int4", False, "config.json"),
        ("nf4", True, "bigdl_config.json"),
        ("sym_int8", False, "bigdl_config.json"),
    ],
)
def test_llama_folders(tmp_path, format, merged, route):
    import lowbit.loading
    from lowbit import load_low_bit
    from lowbit.transformers import AutoModelForCausalLM

    weights = archives.write_llama(tmp_path / "old", format, merged=merged, route=route)
    loaded = lowbit.loading.load_model(tmp_path / "old", saved_only=True)
    expected = np.concatenate([weights[f"model.layers.1.self_attn.{n}_proj.weight"] for n in "qkv"])
    packed = loaded.tensors["layers.1.qkv.weight"]
    assert (packed.format.name, packed.group_size) == (format, 64)
    assert np.abs(packed.dequantize() - expected).max() < ERRORS[format] * np.abs(expected).max()

    ids = tiny.ids() % 90
    model = AutoModelForCausalLM.load_low_bit(tmp_path / "old", compute="fp32")
    assert hasattr(model, "native_graph")
    assert model.model.layers[0].mlp.up_proj.format.name == model.lm_head.format.name == format
    saved = model.save_low_bit(tmp_path / "new")
    assert close(AutoModelForCausalLM.load_low_bit(saved, compute="fp32")(ids).logits, model(ids).logits) == 0
    if not merged:
        modules = load_low_bit(type(model).__mro__[2], tmp_path / "old", optimize_llm=False, compute="fp32")
        assert close(modules(ids).logits, model(ids).logits) < 5e-3  # fp16 sessions and sym_int8 scales


def test_a_model_without_a_native_graph(tmp_path):
    import torch
    import transformers

    from lowbit.transformers import AutoModelForSequenceClassification

    config = transformers.BertConfig(
        vocab_size=tiny.VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    model = tiny.randomise(transformers.BertForSequenceClassification(config))
    state = {
        name: torch.from_numpy(archives.encode(value.numpy(), "sym_int5").copy())
        if value.ndim == 2 and "embeddings" not in name
        else value
        for name, value in model.state_dict().items()
    }
    model.config.save_pretrained(tmp_path)
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "bigdl_config.json").write_text(json.dumps({"bigdl_transformers_low_bit": "sym_int5"}))
    loaded = AutoModelForSequenceClassification.load_low_bit(tmp_path, compute="fp32")
    assert loaded.bert.encoder.layer[0].output.dense.format.name == "sym_int5"
    assert close(loaded(tiny.ids()).logits, tiny.dequantised(loaded, model)(tiny.ids()).logits) < 1e-4


def test_what_cannot_be_read_is_named(tmp_path):
    import lowbit
    from lowbit.transformers import AutoModelForCausalLM

    archives.write_llama(tmp_path, "sym_int4")
    config = json.loads((tmp_path / "config.json").read_text())
    for open_it in (lowbit.load, AutoModelForCausalLM.load_low_bit):
        (tmp_path / "config.json").write_text(json.dumps(config | {"bigdl_transformers_low_bit": "q4_k"}))
        with pytest.raises(ValueError, match=r"q4_k.*original"):
            open_it(tmp_path)
