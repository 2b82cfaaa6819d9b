"""Tiny random models of many architectures, made from transformers' configs: nothing is downloaded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

VOCAB = 131
LLAMA = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2 = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "bos_token_id": 1}
OPT = {
    "vocab_size": VOCAB, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "word_embed_proj_dim": 64,
}  # fmt: skip
DEFAULTS: dict[str, dict[str, Any]] = {"gpt2": GPT2, "opt": OPT}
# Families younger than the oldest transformers that is supported, and those that got a Cache, which the native decoder
# needs, after it: model_type -> the first version. (OPT got its Cache in 4.52, which scales its queries twice.)
KNOWN_SINCE = {"qwen3": "4.51"}
CACHED_SINCE = {"gpt2": "4.52", "opt": "4.53"}
EXACT = {"compute": "fp32", "kv_dtype": "fp32", "threads": 1}  # no rounding but the weights'


def randomise(model: Any, seed: int = 0) -> Any:
    """Returns the model with weights that make activations of size one, so that errors show."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                values = 0.2 * noise + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0)
            else:
                values = noise * (1.0 / parameter.shape[1:].numel()) ** 0.5
            parameter.copy_(values)
    return model.float().eval()


def needs(version: str, what: str) -> None:
    """Skips the test where transformers is older than `version`. what: the reason, said of that transformers."""
    import pytest
    import transformers

    if tuple(map(int, transformers.__version__.split(".")[:2])) < tuple(map(int, version.split("."))):
        pytest.skip(f"transformers {transformers.__version__} {what}; {version} and newer ones do")


def needs_native(model_type: str) -> None:
    """Skips the test where this transformers has no such family, or none that generates with a Cache."""
    needs(KNOWN_SINCE.get(model_type, "0.0"), f"does not know {model_type}")
    needs(CACHED_SINCE.get(model_type, "0.0"), f"does not generate with a Cache in {model_type}")


def causal(model_type: str = "llama", seed: int = 0, **settings: Any) -> Any:
    """Returns a causal language model that never ends by itself."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(model_type, **{**DEFAULTS.get(model_type, LLAMA), **settings})
    model = randomise(AutoModelForCausalLM.from_config(config), seed)
    for table in ("embed_tokens", "wte"):
        for name, parameter in model.named_parameters():
            if table in name:
                parameter.data.mul_(8)  # words tell more apart than positions
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def dequantised(converted: Any, original: Any) -> Any:
    """Returns a copy of the original float model with the exact values of the converted model's packed weights."""
    import torch

    from lowbit.torch.modules import LowBitEmbedding, LowBitLinear, is_conv1d

    model = copy.deepcopy(original)
    for name, module in converted.named_modules():
        if isinstance(module, (LowBitLinear, LowBitEmbedding)):
            target = model.get_submodule(name)
            values = module.dequantize().float()
            target.weight = torch.nn.Parameter(values.t().contiguous() if is_conv1d(target) else values)
    return model.eval()


def close(ours: Any, theirs: Any) -> float:
    """Returns the largest difference, relative to the largest value."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


def ids(rows: int = 1, length: int = 20, seed: int = 1) -> Any:
    """Returns random token ids [rows, length]."""
    import torch

    return torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


Case = tuple[Callable[[], Any], Callable[[], dict[str, Any]], str]
