"""A rival of quality_rivals.py in an environment of its own: its own quantisation of a model, its own logits.

Started by quality_rivals.py with a folder and a kind. The folder holds `request.json` (the path of a Hugging Face model
and sequences of token ids), `exact.npy` (the original's logits for them) and perhaps `imatrix.npz` (mean squares of
inputs by GGUF tensor name, for llama.cpp). Prints one JSON line for each way of quantising: mean loss, mean divergence
from the original's predictions, predictions, bytes and weights by tensor type.

llama.cpp: needs gguf, llama-cpp-python, safetensors. bitsandbytes: needs it, torch, transformers, accelerate.
"""

import ctypes
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

# ---- llama.cpp -------------------------------------------------------------------------------------------------------

LLAMA_CPP = ("ALL_F32", "MOSTLY_Q4_0", "MOSTLY_Q4_K_M")  # LLAMA_FTYPE_...
_LLAMA = {
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
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


def by_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q or k from the halves that Hugging Face rotates to the pairs that llama.cpp rotates."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(folder: Path, config: dict):
    """Yields (GGUF name, float32 array)."""
    from safetensors.numpy import load_file

    for name, array in load_file(folder / "model.safetensors").items():
        array = array.astype(np.float32)
        if config["model_type"] == "gpt2":
            path, _, part = name.removeprefix("transformer.").rpartition(".")
            at, _, inside = path.removeprefix("h.").partition(".")
            if path.startswith("h."):
                array = array.T if array.ndim == 2 else array  # Conv1D
                yield f"blk.{at}.{_GPT2[inside]}.{part}", np.ascontiguousarray(array)
            else:
                yield f"{_GPT2[path]}.{part}", array
            continue
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for projection, count in heads.items():
            if projection in name:
                array = by_halves(array, count)
        if name.startswith("model.layers."):
            _, _, layer, inside = name.split(".", 3)
            yield f"blk.{layer}.{_LLAMA[inside]}", array
        else:
            yield _LLAMA[name], array


def write_gguf(folder: Path, path: Path) -> None:
    """Writes the model in float32, without a tokenizer: it is fed with ids."""
    import gguf

    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] not in ("llama", "gpt2"):
        raise SystemExit(f"llama.cpp does not run {config['model_type']} models")
    llama = config["model_type"] == "llama"
    hidden = config["hidden_size"] if llama else config["n_embd"]
    heads = config["num_attention_heads"] if llama else config["n_head"]
    writer = gguf.GGUFWriter(str(path), config["model_type"])
    writer.add_context_length(config["max_position_embeddings"] if llama else config["n_positions"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"] if llama else config["n_layer"])
    writer.add_feed_forward_length(config["intermediate_size"] if llama else config.get("n_inner") or 4 * hidden)
    writer.add_head_count(heads)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    if llama:
        size = config.get("head_dim") or hidden // heads
        parameters = config.get("rope_parameters") or {}
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(config.get("rope_theta") or parameters.get("rope_theta") or 10000.0)
        writer.add_rope_dimension_count(size)
        writer.add_key_length(size)
        writer.add_value_length(size)
    else:
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    for name, array in tensors_of(folder, config):
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def importance_of(path: Path):
    """Returns llama.cpp's array of importance vectors, and what must outlive it."""
    import llama_cpp

    arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in np.load(path).items()}
    table = (llama_cpp.llama_model_imatrix_data * (len(arrays) + 1))()
    for i, (name, array) in enumerate(arrays.items()):
        table[i].name = name.encode()
        table[i].data = array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        table[i].size = array.size
    return table, arrays  # the last entry, all zero, ends it


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


def run_llama_cpp(work: Path, request: dict):
    import llama_cpp

    llama_cpp.llama_backend_init()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p())
    exact = work / "exact.gguf"
    write_gguf(Path(request["model"]), exact)
    matrix = work / "imatrix.npz"
    for importance in (None, matrix) if matrix.exists() else (None,):
        for kind in LLAMA_CPP:
            path = exact
            if kind != "ALL_F32":
                path = work / f"{kind}.gguf"
                options = llama_cpp.llama_model_quantize_default_params()
                options.ftype, options.nthread = getattr(llama_cpp, f"LLAMA_FTYPE_{kind}"), 1
                if importance is not None:
                    table, kept = importance_of(importance)
                    options.imatrix = ctypes.cast(table, type(options.imatrix))
                if llama_cpp.llama_model_quantize(str(exact).encode(), str(path).encode(), ctypes.byref(options)):
                    raise SystemExit(f"llama.cpp could not quantise to {kind}")
            elif importance is not None:
                continue
            name = kind.removeprefix("MOSTLY_").removeprefix("ALL_") + (" imatrix" if importance else "")
            yield name, sizes(path), llama_cpp_logits(path, request["vocab_size"])
            if importance is not None:
                del kept


def llama_cpp_logits(path: Path, vocab_size: int):
    import llama_cpp

    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp could not open {path.name}")
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = options.n_batch = options.n_ubatch = llama_cpp.llama_model_n_ctx_train(model)
    options.n_threads = options.n_threads_batch = 1
    context = llama_cpp.llama_init_from_model(model, options)

    def logits(ids: list[int]) -> np.ndarray:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit("llama.cpp could not decode")
        found = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (len(ids), vocab_size)).copy()
        llama_cpp.llama_batch_free(batch)
        return found

    return logits


# ---- bitsandbytes ----------------------------------------------------------------------------------------------------


def in_float(model, folder: str):
    """Returns the quantised model with its weights in float32.

    Its product for CPUs refuses widths that its blocks of 64 do not divide, and its decoding (0.50.2) gets them wrong:
    there the codes are decoded here, as its format says.
    """
    import bitsandbytes.functional as F
    import torch
    from transformers import AutoModelForCausalLM

    packed = {name: m.weight for name, m in model.named_modules() if hasattr(getattr(m, "weight", None), "quant_state")}
    if all(weight.quant_state.shape[1] % weight.quant_state.blocksize == 0 for weight in packed.values()):
        return model.dequantize()
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for name, weight in packed.items():
        state = weight.quant_state
        scales = state.absmax
        if state.nested:
            scales = F.dequantize_blockwise(state.absmax, state.state2) + state.offset
        count = state.shape.numel()
        pairs = weight.data.view(torch.uint8).flatten()
        codes = torch.stack([pairs >> 4, pairs & 15], 1).flatten()[:count].long()
        values = state.code[codes] * scales.float().repeat_interleave(state.blocksize)[:count]
        plain.get_submodule(name).weight.data = values.reshape(state.shape)
    return plain


def run_bitsandbytes(work: Path, request: dict):
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    torch.set_num_threads(1)
    for double in (False, True):
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(
            request["model"], quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
        ).eval()
        found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for module in model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, torch.nn.Embedding) or weight is None or (weight.ndim != 2):
                continue
            if (state := getattr(weight, "quant_state", None)) is None:
                continue
            count = state.shape.numel()
            scales = count // state.blocksize * 4
            if double:
                scales = state.absmax.numel() + 4 * state.state2.absmax.numel()
            entry = found["nf4"]
            entry[0] += weight.numel() * weight.element_size() + scales
            entry[1] += count
        outer = {id(m.weight): m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings())}
        for weight in outer.values():
            entry = found["outer fp16"]  # as it is stored and as bitsandbytes leaves it; computed in fp32 here
            entry[0] += 2 * weight.numel()
            entry[1] += weight.numel()

        plain = in_float(model, request["model"])

        def logits(ids: list[int], model=plain) -> np.ndarray:
            with torch.inference_mode():
                return model(torch.tensor([ids])).logits[0].float().numpy()

        yield "nf4 double quant" if double else "nf4", dict(found), logits


KINDS = {"llama.cpp": run_llama_cpp, "bitsandbytes": run_bitsandbytes}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Returns log-probabilities, float64."""
    rows = logits.astype(np.float64)
    rows = rows - rows.max(1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(1, keepdims=True))


def main() -> None:
    work, kind = Path(sys.argv[1]), sys.argv[2]
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    request = json.loads((work / "request.json").read_text())
    exact = np.load(work / "exact.npy", mmap_mode="r")
    for name, stored, logits in KINDS[kind](work, request):
        loss, divergence, count, row = 0.0, 0.0, 0, 0
        for ids in request["sequences"]:
            found, true = (log_softmax(x[:-1]) for x in (logits(ids), exact[row : row + len(ids)]))
            loss -= float(found[np.arange(len(ids) - 1), ids[1:]].sum())
            divergence += float((np.exp(true) * (true - found)).sum())
            count += len(ids) - 1
            row += len(ids)
        result = {"rival": kind, "kind": name, "loss": loss / count, "divergence": divergence / count, "tokens": count}
        print(json.dumps(result | {"stored": stored}), file=answers)


if __name__ == "__main__":
    main()
