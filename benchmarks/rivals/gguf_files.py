"""GGUF files of Hugging Face models, for llama.cpp as a rival: written without a tokenizer (it is fed with ids),
quantised by llama.cpp itself, and what is in them. Needs gguf and llama-cpp-python.
"""

import ctypes
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_LLAMA = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
_GPT2 = {
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
}
FAMILIES = ("llama", "qwen2", "gpt2")
_DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


def _stored(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields (name, safetensors dtype, mapped array); bf16 as the uint16 it is stored in."""
    data = np.memmap(path, np.uint8, "r")
    end = 8 + int(data[:8].view("<u8")[0])
    header = json.loads(bytes(data[8:end]))
    header.pop("__metadata__", None)
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        array = data[end + first : end + last].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        yield name, entry["dtype"], array


def _float32(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def _by_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from the halves that Hugging Face rotates to the pairs that llama.cpp rotates."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def _tensors(folder: Path, config: dict) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yields (GGUF name, safetensors dtype, array)."""
    llama = config["model_type"] == "llama"
    for name, dtype, array in _stored(folder / "model.safetensors"):
        path, _, part = name.removeprefix("transformer.").rpartition(".")
        if config["model_type"] == "gpt2":
            at, _, inside = path.removeprefix("h.").partition(".")
            if path.startswith("h."):
                array = np.ascontiguousarray(array.T) if array.ndim == 2 else array  # Conv1D
                yield f"blk.{at}.{_GPT2[inside]}.{part}", dtype, array
            else:
                yield f"{_GPT2[path]}.{part}", dtype, array
            continue
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(path.rpartition(".")[2])
        if llama and heads and array.ndim == 2:
            array = _by_halves(array, config[heads])
        if path.startswith("model.layers."):
            _, _, layer, inside = path.split(".", 3)
            yield f"blk.{layer}.{_LLAMA[inside]}.{part}", dtype, array
        else:
            yield f"{_LLAMA[path]}.{part}", dtype, array


def write_gguf(folder: Path, path: Path, keep_bf16: bool = False) -> None:
    """Writes a model of FAMILIES, in float32, or with its bf16 matrices as they are. Rope scaling is left out."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] not in FAMILIES:
        raise SystemExit(f"llama.cpp is not given {config['model_type']} models here, only {', '.join(FAMILIES)}")
    gpt2 = config["model_type"] == "gpt2"
    hidden = config["n_embd"] if gpt2 else config["hidden_size"]
    heads = config["n_head"] if gpt2 else config["num_attention_heads"]
    writer = gguf.GGUFWriter(str(path), config["model_type"])
    writer.add_context_length(config["n_positions"] if gpt2 else config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["n_layer"] if gpt2 else config["num_hidden_layers"])
    writer.add_feed_forward_length((config.get("n_inner") or 4 * hidden) if gpt2 else config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    if gpt2:
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        size = config.get("head_dim") or hidden // heads
        parameters = config.get("rope_parameters") or {}
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config.get("rope_theta") or parameters.get("rope_theta") or 10000.0)
        writer.add_rope_dimension_count(size)
        writer.add_key_length(size)
        writer.add_value_length(size)
    for name, dtype, array in _tensors(folder, config):
        if keep_bf16 and dtype == "BF16" and array.ndim == 2:
            raw = np.ascontiguousarray(array).view(np.uint8)
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
        else:
            writer.add_tensor(name, _float32(array, dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _importance_of(path: Path):
    """Returns llama.cpp's array of importance vectors, and what must outlive it."""
    import llama_cpp

    arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in np.load(path).items()}
    table = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
    for i, (name, array) in enumerate(arrays.items()):
        table[i].name = name.encode()
        table[i].data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        table[i].size = array.size
    return table, arrays  # the last entry, all zero, ends it


def quantise(source: Path, target: Path, kind: str, importance: Path | None = None, head: str | None = None) -> None:
    """Writes a GGUF file in LLAMA_FTYPE_MOSTLY_<kind>, by llama.cpp on one thread; `head`: embedding and head in it."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}"), 1
    if head is not None:
        options.output_tensor_type = options.token_embedding_type = getattr(llama_cpp, f"GGML_TYPE_{head}")
    if importance is not None:
        table, kept = _importance_of(importance)
        options.imatrix = ctypes.cast(table, type(options.imatrix))
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(options))
    if importance is not None:
        del kept
    if failed:
        raise SystemExit(f"llama.cpp could not quantise to {kind}")


def sizes(path: Path) -> dict[str, list[int]]:
    """Returns type -> [bytes, weights] of a GGUF file's matrices, those of embedding and head under "outer TYPE"."""
    import gguf

    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for tensor in gguf.GGUFReader(str(path)).tensors:
        if len(tensor.shape) == 2 and not tensor.name.startswith("position_embd"):
            outer = "outer " if not tensor.name.startswith("blk.") else ""
            entry = found[outer + tensor.tensor_type.name]
            entry[0] += int(tensor.n_bytes)
            entry[1] += int(np.prod(tensor.shape))
    return dict(found)
