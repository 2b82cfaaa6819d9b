"""precision of transformers models: modules and native decoder compute the same matrices in bf16, reloaded ones too."""

from __future__ import annotations

import copy

import pytest
import tiny_torch as tiny
from tiny_torch import close

pytestmark = pytest.mark.torch


def with_outliers(model_type: str = "llama", **settings):
    """A tiny model; two channels of its first norms are 300 times larger, what reads them as much smaller."""
    import torch

    model = tiny.causal(model_type, **settings)
    layer = model.model.layers[0]
    attention, mlp = layer.self_attn, layer.mlp
    with torch.no_grad():
        for norm, readers in (
            (layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj)),
            (layer.post_attention_layernorm, (mlp.gate_proj, mlp.up_proj)),
        ):
            norm.weight[3:5] *= 300
            for reader in readers:
                reader.weight[:, 3:5] /= 300
    return model


def computes(model) -> dict[str, str]:
    from lowbit.torch.modules import LowBitLinear

    return {name: m.compute for name, m in model.named_modules() if isinstance(m, LowBitLinear)}


OUTLIERS = {
    f"model.layers.0.{name}"
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
}


@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": True}])
def test_modules_and_decoder_compute_alike(settings, tmp_path):
    import torch

    import lowbit
    from lowbit import optimize_model
    from lowbit.transformers import AutoModelForCausalLM

    float_model = with_outliers(**settings)
    options = {"low_bit": "sym_int8", "group_size": 32, "threads": 1, "kv_dtype": "fp32"}
    models = {
        p: optimize_model(copy.deepcopy(float_model), precision=p, **options) for p in ("fast", "auto", "bf16", "high")
    }
    kinds = {p: computes(model) for p, model in models.items()}
    assert set(kinds["fast"].values()) == {"int8"}
    assert set(kinds["bf16"].values()) == {"bf16"}
    assert set(kinds["high"].values()) == {"fp32"}
    assert {name for name, compute in kinds["auto"].items() if compute == "bf16"} == OUTLIERS
    ids = torch.arange(3, 33)[None]
    logits = {p: model(ids).logits for p, model in models.items()}
    assert close(logits["auto"], logits["high"]) < 0.1 * close(logits["fast"], logits["high"])
    assert 0 < close(logits["bf16"], logits["high"]) < 0.1 * close(logits["fast"], logits["high"])
    model = models["auto"]
    model.model.layers[1].register_forward_hook(lambda *_: None)  # the modules run
    assert close(model(ids).logits, logits["auto"]) < 0.2 * close(logits["fast"], logits["auto"])

    folder = models["auto"].save_low_bit(tmp_path / "saved")
    again = AutoModelForCausalLM.load_low_bit(folder, threads=1, kv_dtype="fp32")
    assert computes(again) == kinds["auto"]
    assert torch.equal(again(ids).logits, logits["auto"])
    assert set(computes(AutoModelForCausalLM.load_low_bit(folder, precision="fast")).values()) == {"int8"}
    assert lowbit.checkpoint.load(folder).activation_errors["layers.0.qkv"] > 0.05


def test_a_folder_of_lowbit_load_computes_alike_in_transformers(tmp_path):
    import numpy as np
    import torch

    import lowbit
    from lowbit.engine import NativeEngine
    from lowbit.loading import load_model
    from lowbit.transformers import AutoModelForCausalLM

    with_outliers().save_pretrained(tmp_path / "float")
    runtime = lowbit.Runtime(threads=1, kv_dtype="fp32").resolve()
    loaded = load_model(tmp_path / "float", "sym_int8", runtime=runtime)
    lowbit.checkpoint.save(loaded, tmp_path / "saved")
    model = AutoModelForCausalLM.load_low_bit(tmp_path / "saved", threads=1, kv_dtype="fp32")
    assert {name for name, compute in computes(model).items() if compute == "bf16"} == OUTLIERS
    ids = list(range(3, 33))
    engine = NativeEngine(loaded, runtime)
    native = engine.forward([(engine.new_cache(engine.capacity(len(ids))), np.array(ids, np.int32), True)])
    assert np.array_equal(model(torch.tensor([ids])).logits[0].numpy(), native)
    streamed = AutoModelForCausalLM.from_pretrained(tmp_path / "float", load_in_8bit=True)
    assert {name for name, compute in computes(streamed).items() if compute == "bf16"} == OUTLIERS


def test_what_cannot_be():
    from lowbit import optimize_model

    with pytest.raises(ValueError, match="contradict each other"):
        optimize_model(tiny.causal(), compute="int8", precision="high")


def test_models_without_the_decoder_compute_as_fast():
    import torch

    from lowbit import optimize_model

    model = optimize_model(torch.nn.Sequential(torch.nn.Linear(64, 64)))
    assert model[0].compute == "int8"
    assert set(computes(optimize_model(with_outliers(), "sym_int8", optimize_llm=False)).values()) == {"int8"}
