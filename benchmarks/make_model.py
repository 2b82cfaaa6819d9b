"""Writes Hugging Face folders of real shapes with random weights: bf16 safetensors, config, byte-level tokenizer.

    python benchmarks/make_model.py llama-1b /tmp/llama-1b

The weights are seeded and written row by row, so memory stays small whatever the shape. Needs no torch.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CHUNK = 1 << 24  # weights drawn at a time
COMMON = {
    "bos_token_id": 256,
    "eos_token_id": 257,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
SHAPES = {
    # Qwen2.5-0.5B
    "qwen2-0.5b": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "use_sliding_window": False,
    },
    # Llama-3.2-1B
    "llama-1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    },
    # Llama-2-7B: 13.5 GB
    "llama-7b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
    },
}


def tensor_shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Returns the tensors of a Llama-shaped checkpoint by their Hugging Face names."""
    hidden, ffn, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // heads)
    rows = {"q": heads * head_dim, "k": config["num_key_value_heads"] * head_dim}
    rows["v"] = rows["k"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes[layer + "input_layernorm.weight"] = (hidden,)
        for name, count in rows.items():
            shapes[f"{layer}self_attn.{name}_proj.weight"] = (count, hidden)
            if config["model_type"] == "qwen2":
                shapes[f"{layer}self_attn.{name}_proj.bias"] = (count,)
        shapes[layer + "self_attn.o_proj.weight"] = (hidden, rows["q"])
        shapes[layer + "post_attention_layernorm.weight"] = (hidden,)
        shapes[layer + "mlp.gate_proj.weight"] = (ffn, hidden)
        shapes[layer + "mlp.up_proj.weight"] = (ffn, hidden)
        shapes[layer + "mlp.down_proj.weight"] = (hidden, ffn)
    shapes["model.norm.weight"] = (hidden,)
    if not config.get("tie_word_embeddings", True):
        shapes["lm_head.weight"] = shapes["model.embed_tokens.weight"]
    return shapes


def write_weights(path: Path, shapes: dict[str, tuple[int, ...]], seed: int) -> None:
    """Writes bf16 tensors: norms 1, biases 0, matrices normal with deviation 0.02, as models start."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            left = math.prod(shape)
            while left:
                count = min(left, CHUNK)
                if len(shape) == 2:
                    values = rng.standard_normal(count, np.float32) * np.float32(0.02)
                else:
                    values = np.full(count, 0.0 if name.endswith("bias") else 1.0, np.float32)
                stream.write((values.view(np.uint32) >> 16).astype("<u2"))  # truncated to bf16: random either way
                left -= count


def write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer whose tokens are the 256 bytes, <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    special = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(special, indent=1))


def make_model(shape: str, folder: Path, seed: int = 0) -> Path:
    """Returns the folder, filled with a random model of a shape in SHAPES."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = COMMON | SHAPES[shape]
    write_weights(folder / "model.safetensors", tensor_shapes(config), seed)
    write_tokenizer(folder)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=1))
    (folder / "config.json").write_text(json.dumps(config, indent=1))  # last: whoever sees it finds the rest
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(make_model(arguments.shape, arguments.folder, arguments.seed))
