"""Tiny Hugging Face folders written by hand: numpy, safetensors files of our own making, no torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from lowbit.models._spec import Family, ModelSpec, Part, Recipe, Rope
from lowbit.ops import BF16, fp32_to_bf16

NAMES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "U8": "u1"}


def safetensors_bytes(tensors: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> bytes:
    """Returns a safetensors file, made by the published layout and not by the code under test."""
    header: dict = {"__metadata__": metadata} if metadata else {}
    data, stop = [], 0
    for name, array in tensors.items():
        dtype = "BF16" if array.dtype == BF16 else next(k for k, v in NAMES.items() if array.dtype == np.dtype(v))
        start, stop = stop, stop + array.nbytes
        data.append(array.tobytes())
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(8, "little"), text, *data])


def write_sharded(folder: Path, tensors: dict[str, np.ndarray], shards: int = 2) -> None:
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[i::shards]}
        (folder / file).write_bytes(safetensors_bytes(part))
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def llama_config(**changes) -> dict:
    """Returns the config.json of a Llama of two layers; hidden 64, ffn 72 (not a multiple of 16), vocab 96, 4 heads on
    2.
    """
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 72,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 96,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    return config | changes


def llama_tensors(config: dict, dtype: str = "bf16", seed: int = 0) -> dict[str, np.ndarray]:
    """Returns seeded random weights under the Hugging Face names, in "bf16", "fp16" or "fp32"."""
    rng = np.random.default_rng(seed)
    hidden, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    kv = hidden // config["num_attention_heads"] * config["num_key_value_heads"]
    shapes = {"model.embed_tokens.weight": (vocab, hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "input_layernorm.weight": (hidden,),
            layer + "self_attn.q_proj.weight": (hidden, hidden),
            layer + "self_attn.k_proj.weight": (kv, hidden),
            layer + "self_attn.v_proj.weight": (kv, hidden),
            layer + "self_attn.o_proj.weight": (hidden, hidden),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "mlp.gate_proj.weight": (ffn, hidden),
            layer + "mlp.up_proj.weight": (ffn, hidden),
            layer + "mlp.down_proj.weight": (hidden, ffn),
        }
    shapes["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    convert = {"bf16": fp32_to_bf16, "fp16": lambda a: a.astype("<f2"), "fp32": lambda a: a}[dtype]
    return {name: convert(rng.normal(0, 0.05, shape).astype(np.float32)) for name, shape in shapes.items()}


def write_llama(
    folder: Path, *, dtype: str = "bf16", shards: int = 1, seed: int = 0, **changes
) -> dict[str, np.ndarray]:
    """Writes a complete tiny Llama folder and returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    config = llama_config(**changes)
    tensors = llama_tensors(config, dtype, seed)
    if shards == 1:
        (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    else:
        write_sharded(folder, tensors, shards)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 3]}))
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "LICENSE").write_text("a licence")
    return tensors


def hand_made_family(config: dict) -> Family:
    """Returns the graph and recipes of the tiny Llama without the family files: their tests are elsewhere."""
    hidden, ffn, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    tied = config["tie_word_embeddings"]
    recipes = [Recipe("embedding.weight", (Part("embed_tokens.weight"),), "embedding")]
    for i in range(layers):
        layer, hf = f"layers.{i}.", f"layers.{i}."
        attention = tuple(Part(f"{hf}self_attn.{p}_proj.weight") for p in "qkv")
        recipes += [
            Recipe(layer + "attention_norm.weight", (Part(hf + "input_layernorm.weight"),), "vector"),
            Recipe(layer + "qkv.weight", attention),
            Recipe(
                layer + "qkv.bias", tuple(Part(f"{hf}self_attn.{p}_proj.bias") for p in "qkv"), "vector", optional=True
            ),
            Recipe(layer + "o.weight", (Part(hf + "self_attn.o_proj.weight"),)),
            Recipe(layer + "ffn_norm.weight", (Part(hf + "post_attention_layernorm.weight"),), "vector"),
            Recipe(
                layer + "gate_up.weight",
                (Part(hf + "mlp.gate_proj.weight"), Part(hf + "mlp.up_proj.weight")),
                interleave=True,
            ),
            Recipe(layer + "down.weight", (Part(hf + "mlp.down_proj.weight"),)),
        ]
    recipes.append(Recipe("final_norm.weight", (Part("norm.weight"),), "vector"))
    if not tied:
        recipes.append(Recipe("head.weight", (Part("lm_head.weight"),), "head"))
    heads = config["num_attention_heads"]
    dim = hidden // heads
    spec = ModelSpec(
        family="llama",
        vocab_size=config["vocab_size"],
        hidden_size=hidden,
        layers=layers,
        heads=heads,
        kv_heads=config["num_key_value_heads"],
        head_dim=dim,
        ffn_size=ffn,
        context=config["max_position_embeddings"],
        ropes=(Rope("half", dim, tuple(10000.0 ** (-2 * i / dim) for i in range(dim // 2))),),
        layer_rope=(0,) * layers,
        attention_scale=0.25,
        tied_head=tied,
    )
    return Family(spec, tuple(recipes), ("model.", ""))
