"""optimize_model on many architectures: the converted model equals its float twin with the dequantised weights."""

from __future__ import annotations

import copy

import pytest
import tiny_torch as tiny
from tiny_torch import EXACT, VOCAB, close

pytestmark = pytest.mark.torch

TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}


def build(auto, model_type, **settings):
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **settings)
    return tiny.randomise(getattr(transformers, auto).from_config(config))


def text(rows=2, length=12):
    import torch

    ids = tiny.ids(rows, length)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def llama():
    return tiny.causal("llama"), text()


def gpt2():
    return tiny.causal("gpt2"), text()


def gemma2():
    return build("AutoModelForCausalLM", "gemma2", **tiny.LLAMA, head_dim=16), text()


def gpt_neox():
    settings = {k: v for k, v in tiny.LLAMA.items() if k != "num_key_value_heads"}
    return build("AutoModelForCausalLM", "gpt_neox", **settings), text()


def mixtral():
    return build("AutoModelForCausalLM", "mixtral", **tiny.LLAMA, num_local_experts=4, num_experts_per_tok=2), text()


def t5():
    sizes = {"vocab_size": VOCAB, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4}
    model = build("AutoModelForSeq2SeqLM", "t5", **sizes, feed_forward_proj="gated-gelu", decoder_start_token_id=0)
    return model, {**text(), "decoder_input_ids": tiny.ids(2, 5, seed=4)}


def bart():
    sizes = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "vocab_size": VOCAB}
    return build("AutoModelForSeq2SeqLM", "bart", **sizes, **heads, max_position_embeddings=64), text()


def whisper():
    import torch

    model = build(
        "AutoModelForSpeechSeq2Seq", "whisper", d_model=64, encoder_layers=2, decoder_layers=2, num_mel_bins=80,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96, decoder_ffn_dim=96, vocab_size=VOCAB,
        max_source_positions=50, max_target_positions=40, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, suppress_tokens=[5, 6], begin_suppress_tokens=[],
    )  # fmt: skip
    return model, {"input_features": torch.randn(2, 80, 100), "decoder_input_ids": tiny.ids(2, 6)}


def bert():
    model = build("AutoModelForSequenceClassification", "bert", **TEXT, vocab_size=VOCAB, num_labels=3)
    return model, text()


def llava():
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    vision = CLIPVisionConfig(**TEXT, image_size=28, patch_size=14)
    config = LlavaConfig(vision_config=vision, text_config=LlamaConfig(**tiny.LLAMA), image_token_index=130)
    from transformers import LlavaForConditionalGeneration

    ids = tiny.ids(1, 12)
    ids[ids == 130] = 5
    ids[0, 2:6] = 130  # four patches
    model = tiny.randomise(LlavaForConditionalGeneration(config))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": torch.randn(1, 3, 28, 28)}


def vit():
    import torch

    model = build("AutoModelForImageClassification", "vit", **TEXT, image_size=28, patch_size=14, num_labels=3)
    return model, {"pixel_values": torch.randn(2, 3, 28, 28)}


def mamba():
    return build("AutoModelForCausalLM", "mamba", vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2), text()


def wav2vec2():
    import torch

    layers = {"conv_dim": (32, 32), "conv_kernel": (10, 3), "conv_stride": (5, 2), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 32}
    return build("AutoModelForCTC", "wav2vec2", **TEXT, **layers, **positions), {"input_values": torch.randn(2, 400)}


def diffusion_transformer():
    """A block of a diffusion transformer (DiT, arXiv:2212.09748): adaptive norms from a timestep's embedding."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, width=64, heads=4):
            super().__init__()
            self.heads = heads
            self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
            self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
            self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 96), nn.GELU("tanh"), nn.Linear(96, width))

        def forward(self, x, time):
            shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(time)[:, None].chunk(6, -1)
            h = self.norm1(x) * (1 + scale1) + shift1
            q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            h = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
            x = x + gate1 * self.out(h)
            return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    return tiny.randomise(Block()), {"x": torch.randn(2, 9, 64), "time": torch.randn(2, 64)}


def torch_transformer():
    """PyTorch's own encoder: fast paths and attention that multiply with weights themselves."""
    import torch
    from torch import nn

    layer = nn.TransformerEncoderLayer(64, 4, 96, batch_first=True)
    return tiny.randomise(nn.TransformerEncoder(layer, 2)), {"src": torch.randn(2, 9, 64)}


CASES = [
    llama, gpt2, gemma2, gpt_neox, mixtral, t5, bart, whisper, bert, llava, vit, mamba, wav2vec2, diffusion_transformer,
    torch_transformer,
]  # fmt: skip


def answer(model, inputs):
    out = model(**inputs)
    return out if not hasattr(out, "keys") else out[next(k for k in ("logits", "last_hidden_state") if k in out)]


@pytest.fixture(params=CASES, ids=lambda case: case.__name__)
def case(request):
    import torch

    torch.manual_seed(0)
    return request.param()


@pytest.mark.filterwarnings("ignore")
def test_equals_dequantised_float_model(case):
    from lowbit import optimize_model

    model, inputs = case
    for low_bit in ("sym_int4", "nf4"):
        converted = optimize_model(copy.deepcopy(model), low_bit, **EXACT)
        expected = answer(tiny.dequantised(converted, model), inputs)
        assert close(answer(converted, inputs), expected) < 1e-3
        assert close(expected, answer(model, inputs)) > 1e-3  # the weights were rounded
    int8 = optimize_model(copy.deepcopy(model), "sym_int8", threads=1)  # the default: activations in int8
    error = answer(int8, inputs) - answer(model, inputs)
    assert error.norm() < 0.2 * answer(model, inputs).norm()


@pytest.mark.filterwarnings("ignore")
def test_saved_and_loaded_is_the_same(case, tmp_path):
    from lowbit import load_low_bit, low_memory_init, optimize_model

    model, inputs = case
    converted = optimize_model(copy.deepcopy(model), "sym_int4", **EXACT)
    converted.save_low_bit(tmp_path / "saved")
    loaded = load_low_bit(copy.deepcopy(model), tmp_path / "saved", **EXACT)
    assert close(answer(loaded, inputs), answer(converted, inputs)) == 0
    if hasattr(model, "config"):
        with low_memory_init():
            empty = type(model)(model.config)
        assert all(p.is_meta for p in empty.parameters())
        loaded = load_low_bit(empty, tmp_path / "saved", **EXACT)
        assert close(answer(loaded, inputs), answer(converted, inputs)) == 0
        loaded = load_low_bit(type(model), tmp_path / "saved", **EXACT)
        assert (
            close(answer(loaded, inputs), answer(converted, inputs)) < 1e-6
        )  # transformers 4 may choose another attention


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [t5, bart, whisper])
def test_sequence_to_sequence_models_generate(make):
    import torch

    from lowbit import optimize_model

    model, inputs = make()
    converted = optimize_model(copy.deepcopy(model), "nf4", **EXACT)
    inputs = {k: v for k, v in inputs.items() if not k.startswith("decoder")}
    for how in ({}, {"num_beams": 3}):
        ours, theirs = (
            m.generate(**inputs, max_new_tokens=8, do_sample=False, **how)
            for m in (converted, tiny.dequantised(converted, model))
        )
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_whisper_hears_a_tone():
    """Samples through transformers' feature extractor and generate: the same tokens as the float twin's."""
    import numpy as np
    import torch
    from transformers import WhisperFeatureExtractor

    from lowbit import optimize_model

    model, _ = whisper()
    converted = optimize_model(copy.deepcopy(model), "sym_int4", **EXACT)
    tone = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000).astype(np.float32)
    extract = WhisperFeatureExtractor(chunk_length=1)
    features = extract(tone, sampling_rate=16000, return_tensors="pt").input_features
    assert features.shape == (1, 80, 100)
    twin = tiny.dequantised(converted, model)
    ours, theirs = (m.generate(features, max_new_tokens=12, do_sample=False) for m in (converted, twin))
    assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore")
def test_t5_compiles_into_one_graph(monkeypatch):
    """It reads the dtype of a layer's weight, which neither breaks the graph nor dequantises when it runs."""
    import torch

    from lowbit import ops, optimize_model

    model, inputs = t5()
    converted = optimize_model(model, "sym_int4", **EXACT)
    calls, original = [], ops.dequantize
    monkeypatch.setattr(ops, "dequantize", lambda *arguments: calls.append(1) or original(*arguments))
    compiled = torch.compile(converted, fullgraph=True, backend="aot_eager")
    assert close(answer(compiled, {**inputs, "use_cache": False}), answer(converted, inputs)) < 1e-5
    assert not calls


def test_experts_that_stay_float_are_told_of(caplog):
    from lowbit import optimize_model

    optimize_model(mixtral()[0], **EXACT)
    assert "experts" in caplog.text or not any(p.ndim == 3 for p in mixtral()[0].parameters())
    caplog.clear()
    optimize_model(tiny.causal("llama"), **EXACT)
    assert "stay float" not in caplog.text


def test_names_that_are_not_converted():
    import torch

    from lowbit import optimize_model

    model = optimize_model(tiny.causal("llama"), modules_to_not_convert=["lm_head", "layers.1.self_attn"], **EXACT)
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["lm_head"] == "Linear"
    assert kinds["model.layers.1.self_attn.q_proj"] == "Linear"
    assert kinds["model.layers.1.mlp.up_proj"] == kinds["model.layers.0.self_attn.q_proj"] == "LowBitLinear"
    with pytest.raises(TypeError, match=r"\['lm_head'\]"):
        optimize_model(tiny.causal("llama"), modules_to_not_convert="lm_head")
    assert not any(p.requires_grad for p in model.parameters())
    assert isinstance(model.model.norm.weight, torch.nn.Parameter)


def test_formats_of_embeddings_and_head():
    from lowbit import optimize_model

    model = optimize_model(tiny.causal("llama"), "nf4", mixed_precision=True, embedding_qtype="sym_int8", **EXACT)
    assert model.lm_head.format.name == model.model.embed_tokens.format.name == "sym_int8"
    assert model.model.layers[0].mlp.gate_proj.format.name == "nf4"
    kept = optimize_model(tiny.causal("llama"), None, **EXACT)
    assert kept.lm_head.format.name == "fp32"
    assert close(kept(tiny.ids()).logits, tiny.causal("llama")(tiny.ids()).logits) < 1e-4


def test_wrong_arguments():
    import torch

    from lowbit import optimize_model
    from lowbit.torch.folder import save_low_bit

    net = torch.nn.Sequential(torch.nn.Linear(32, 32))
    with pytest.raises(ValueError, match="asym_int4"):
        optimize_model(net, "q4_k")
    with pytest.raises(ValueError, match="group_size 48"):
        optimize_model(net, "sym_int4", group_size=48)
    with pytest.raises(TypeError, match=r"nn\.Module"):
        optimize_model("a/name")
    with pytest.raises(ValueError, match="from_linear"):
        optimize_model(torch.nn.Linear(32, 32))
    with torch.device("meta"):
        elsewhere = torch.nn.Sequential(torch.nn.Linear(32, 32))
    with pytest.raises(ValueError, match="CPU memory"):
        optimize_model(elsewhere)
    assert isinstance(net[0], torch.nn.Linear)  # nothing was changed
    with pytest.raises(ValueError, match="optimize_model"):
        save_low_bit(net, "x")
