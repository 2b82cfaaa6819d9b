"""A rival of quality_rivals.py in an environment of its own: its own quantisation of a model, its own logits.

Started by quality_rivals.py with a folder and a kind. The folder holds `request.json` (the path of a Hugging Face model
and sequences of token ids), `exact.npy` (the original's logits for them) and perhaps `imatrix.npz` (mean squares of
inputs by GGUF tensor name, for llama.cpp). Prints one JSON line for each way of quantising: the sums of loss and of
divergence from the original's predictions over each sequence, bytes and weights by tensor type.

llama.cpp: needs gguf, llama-cpp-python, safetensors. bitsandbytes: needs it, torch, transformers, accelerate.
"""

import ctypes
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
from gguf_files import quantise, sizes, write_gguf

# ---- llama.cpp -------------------------------------------------------------------------------------------------------

LLAMA_CPP = (None, "Q4_0", "Q4_K_M")  # None: as it is, in float32


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
            if importance is not None and kind is None:
                continue
            path = exact if kind is None else work / f"{kind}.gguf"
            if kind is not None:
                quantise(exact, path, kind, importance)
            name = (kind or "F32") + (" imatrix" if importance else "")
            yield name, sizes(path), llama_cpp_logits(path, request["vocab_size"])


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
        sums: dict[str, list[float]] = {"loss": [], "divergence": []}
        row = 0
        for ids in request["sequences"]:
            found, true = (log_softmax(x[:-1]) for x in (logits(ids), exact[row : row + len(ids)]))
            sums["loss"].append(-float(found[np.arange(len(ids) - 1), ids[1:]].sum()))
            sums["divergence"].append(float((np.exp(true) * (true - found)).sum()))
            row += len(ids)
        print(json.dumps({"rival": kind, "kind": name, "sums": sums, "stored": stored}), file=answers)


if __name__ == "__main__":
    main()
