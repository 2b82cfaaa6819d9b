"""Embedders made of language models (Qwen3-Embedding and the like) against transformers: tiny random ones, in fp32."""

from __future__ import annotations

import json

import numpy as np
import pytest

import lowbit

pytestmark = pytest.mark.torch

SIZES = {
    "vocab_size": 96, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
# id -> (model_type, settings, whether the checkpoint is of the causal model, with its names and head)
CASES = {
    "qwen3": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}, False),  # as Qwen3-Embedding is stored
    "qwen3-untied": ("qwen3", {"head_dim": 16, "tie_word_embeddings": False}, False),
    "qwen3-causal": ("qwen3", {"head_dim": 16, "tie_word_embeddings": True}, True),
    "qwen2": ("qwen2", {"tie_word_embeddings": False}, False),  # gte-Qwen2
    "mistral": ("mistral", {"sliding_window": None}, False),  # e5-mistral
    "llama": ("llama", {}, True),
}
PROMPTS = {"query": "w7 w8 : ", "document": ""}
TEXTS = ["w5 w6 w9", "w10", "", " ".join(f"w{i}" for i in range(11, 61)), "w5 w6 w9"]


def write_tokenizer(folder):
    """As Qwen3-Embedding's: no token before a text, an end token behind it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    backend = Tokenizer(models.WordLevel({"<end>": 0, "<unk>": 1, **{f"w{i}": i + 2 for i in range(90)}}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<end>"])
    backend.post_processor = processors.TemplateProcessing(
        single="$A <end>", pair="$A <end> $B <end>", special_tokens=[("<end>", 0)]
    )
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<end>", "model_max_length": 131072}))
    return backend


def write_sentence_files(folder):
    kinds = ("Transformer", "Pooling", "Normalize")
    listed = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False, "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    about = {"prompts": PROMPTS, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(about))


@pytest.fixture(scope="module", params=CASES, ids=CASES)
def pair(request, tmp_path_factory):
    """(folder, function from texts to transformers' vectors)."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    model_type, settings, causal = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(3)
    config = AutoConfig.for_model(model_type, **SIZES, **settings)
    model = (AutoModelForCausalLM if causal else AutoModel).from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
            parameter.copy_(noise + (parameter.ndim == 1))
    model.save_pretrained(folder)
    tokenizer = write_tokenizer(folder)
    write_sentence_files(folder)
    body = model.model if causal else model

    def reference(texts):
        with torch.no_grad():
            rows = [body(torch.tensor([tokenizer.encode(text).ids])).last_hidden_state[0, -1] for text in texts]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1).numpy()

    return folder, reference


def test_vectors_and_prompts(pair):
    folder, reference = pair
    model = lowbit.Embedder(folder, "fp32", compute="fp32", kv_dtype="fp32")
    assert (model.pooling, model.dimension, model.prompts) == ("last", 48, {"query": "w7 w8 : "})
    assert np.abs(model.encode(TEXTS, batch_size=2) - reference(TEXTS)).max() <= 1e-5
    asked = reference([PROMPTS["query"] + text for text in TEXTS])
    assert np.abs(asked - reference(TEXTS)).max() > 0.1
    assert np.abs(model.encode(TEXTS, prompt_name="query") - asked).max() <= 1e-5
    assert np.abs(model.encode(TEXTS, prompt=PROMPTS["query"]) - asked).max() <= 1e-5


def test_a_quantised_one_is_close_and_complete_when_saved(pair, tmp_path):
    folder, reference = pair
    model = lowbit.Embedder(folder)
    assert model.quantization["format"] == "sym_int8"
    vectors = model.encode(TEXTS, prompt_name="query")
    cosines = (vectors * reference([PROMPTS["query"] + text for text in TEXTS])).sum(axis=1)
    assert cosines.min() > 0.995
    model.save_low_bit(tmp_path / "saved")
    assert (lowbit.Embedder(tmp_path / "saved").encode(TEXTS, prompt_name="query") == vectors).all()
    if not model.spec.tied_head:
        with pytest.raises(ValueError, match=r"saved by lowbit\.Embedder, without the head"):
            lowbit.load(tmp_path / "saved")
