"""Tiny GPTQ and AWQ checkpoints, packed by hand after the published layouts."""

from __future__ import annotations

import json

import numpy as np

from backend import tiny_hf

GROUP = 32


def words(codes: np.ndarray, axis: int, order=range(8), bits: int = 4) -> np.ndarray:
    """Packs codes along an axis into int32, lowest bits first; order: which code stands at each place of a word."""
    codes = np.moveaxis(codes.astype(np.uint32), axis, 0)
    per = 32 // bits
    packed = np.zeros((codes.shape[0] // per, *codes.shape[1:]), np.uint32)
    for place, which in enumerate(list(order)[:per]):
        packed |= codes[which::per] << np.uint32(bits * place)
    return np.moveaxis(packed, 0, axis).astype(np.uint32).view(np.int32)


def quantised(weight: np.ndarray, symmetric: bool, bits: int = 4, group: int = GROUP):
    """Returns codes [n, k], scales fp16 [n, groups], zeros [n, groups] and the values they stand for."""
    n, k = weight.shape
    top = 2**bits - 1
    w = weight.reshape(n, k // group, group)
    low, high = np.minimum(w.min(2), 0), np.maximum(w.max(2), 0)
    if symmetric:
        scales = (np.abs(w).max(2) / (top // 2)).astype(np.float16)
        zeros = np.full(scales.shape, (top + 1) // 2)
    else:
        scales = ((high - low) / top).astype(np.float16)
        zeros = np.rint(-low / scales.astype(np.float32)).clip(0, top).astype(int)
    s = scales.astype(np.float32)[..., None]
    codes = np.rint(w / s + zeros[..., None]).clip(0, top).astype(int)
    values = (codes - zeros[..., None]) * s
    return codes.reshape(n, k), scales, zeros, values.reshape(n, k).astype(np.float32)


def write(folder, method: str, symmetric: bool, *, bits=4, order=None, config_file="config.json", **settings):
    """Writes a tiny Llama in a layout of the hub; returns the values of its weights by name."""
    config = tiny_hf.llama_config(hidden_size=64, intermediate_size=96)
    tensors, values = {}, {}
    for name, tensor in tiny_hf.llama_tensors(config, "fp16").items():
        if "_proj" not in name:
            tensors[name] = tensor
            continue
        module = name.removesuffix("weight")
        codes, scales, zeros, values[name] = quantised(tensor.astype(np.float32), symmetric, bits)
        if method == "gptq":
            if order is not None:  # groups by activation order: inputs are dealt to groups
                k = codes.shape[1]
                index = np.random.default_rng(0).permutation(np.arange(k) // GROUP).astype("<i4")
                values[name] = (codes - zeros[:, index]) * scales.astype(np.float32)[:, index]
                tensors[module + "g_idx"] = index
            stored = zeros - (0 if settings.get("checkpoint_format") == "gptq_v2" else 1)
            tensors[module + "qweight"] = words(codes.T, 0, bits=bits)
            tensors[module + "qzeros"] = words(stored.T, 1, bits=bits)
        else:
            awq = [0, 2, 4, 6, 1, 3, 5, 7]
            tensors[module + "qweight"] = words(codes.T, 1, awq)
            tensors[module + "qzeros"] = words(zeros.T, 1, awq)
        tensors[module + "scales"] = np.ascontiguousarray(scales.T)
    given = {"quant_method": method, "bits": bits, "group_size": GROUP, "desc_act": order is not None, **settings}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps(config | ({"quantization_config": given} if config_file == "config.json" else {}))
    )
    if config_file != "config.json":
        (folder / config_file).write_text(json.dumps(given))
    (folder / "model.safetensors").write_bytes(int_safetensors(tensors))
    return values


def int_safetensors(tensors) -> bytes:
    tiny_hf.NAMES["I32"] = "<i4"
    return tiny_hf.safetensors_bytes(tensors)
