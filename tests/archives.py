"""Low-bit folders as ipex-llm wrote them, encoded by hand after the published byte layouts: blocks of 64."""

from __future__ import annotations

import json

import numpy as np

from backend import tiny_hf
from lowbit.formats import FORMATS

BLOCK = 64


def _nibbles(codes: np.ndarray) -> np.ndarray:
    """[blocks, 64] codes -> [blocks, 32]: element j in the low half of byte j, element j + 32 in the high half."""
    return (codes[:, :32] & 15 | (codes[:, 32:] & 15) << 4).astype(np.uint8)


def _half(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.astype("<f2")[:, None]).view(np.uint8)


def _bits(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits.astype(np.uint8), axis=1, bitorder="little")


def _extreme(w: np.ndarray) -> np.ndarray:
    return w[np.arange(len(w)), np.abs(w).argmax(1)]


def _grid(w: np.ndarray, bits: int) -> bytes:
    half = 1 << (bits - 1)
    d = (_extreme(w) / -half).astype(np.float16).astype(np.float32)
    codes = np.rint(w / d[:, None] + half).clip(0, 2 * half - 1).astype(np.uint8)
    high = [_bits(codes >> 4)] if bits == 5 else []
    return np.concatenate([_half(d), *high, _nibbles(codes)], 1).tobytes()


def _affine(w: np.ndarray, bits: int) -> bytes:
    top = (1 << bits) - 1
    low = w.min(1).astype(np.float16).astype(np.float32)
    d = ((w.max(1) - w.min(1)) / top).astype(np.float16).astype(np.float32)
    codes = np.rint((w - low[:, None]) / d[:, None]).clip(0, top).astype(np.uint8)
    high = [_bits(codes >> 4)] if bits == 5 else []
    return np.concatenate([_half(d), _half(low), *high, _nibbles(codes)], 1).tobytes()


def _nearest(w: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.abs(w[:, :, None] - values).argmin(2).astype(np.uint8)


def _codebook(w: np.ndarray, format: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.array(FORMATS[format].codebook)
    finite = np.where(np.isfinite(values), values, 1e9)
    scale = (np.abs(w).max(1) / values[np.isfinite(values)].max()).astype(np.float16).astype(np.float32)
    return _nearest(w / scale[:, None], finite), scale


def _nf4(w: np.ndarray) -> bytes:
    codes, scale = _codebook(w, "nf4")
    return np.concatenate([_half(scale), _nibbles(np.roll(codes, 32, 1))], 1).tobytes()


def _nf3(w: np.ndarray) -> bytes:
    codes, scale = _codebook(w, "nf3")
    low = (codes & 3).reshape(len(w), 16, 4)
    packed = (low[:, :, 0] << 6 | low[:, :, 1] << 4 | low[:, :, 2] << 2 | low[:, :, 3]).astype(np.uint8)
    return np.concatenate([_half(scale), _bits(codes >> 2), packed], 1).tobytes()


def _fp4(w: np.ndarray) -> bytes:
    codes, scale = _codebook(w, "fp4")
    return np.concatenate([_half(scale), _nibbles(codes)], 1).tobytes()


def _single(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values.astype("<f4")[:, None]).view(np.uint8)


def _sym_int8(w: np.ndarray) -> bytes:
    d = np.abs(w).max(1) / 127
    return np.concatenate([_single(d), np.rint(w / d[:, None]).astype(np.int8).view(np.uint8)], 1).tobytes()


def _fp8_e4m3(w: np.ndarray) -> bytes:
    codes, scale = _codebook(w, "fp8_e4m3")
    return np.concatenate([_single(scale * 256), codes], 1).tobytes()


def _fp8_e5m2(w: np.ndarray) -> bytes:
    upper = (w.astype("<f2").view("<u2") >> 8).astype(np.uint8)
    return np.concatenate([_single(np.ones(len(w))), upper], 1).tobytes()


ENCODERS = {
    "sym_int4": lambda w: _grid(w, 4), "asym_int4": lambda w: _affine(w, 4), "sym_int5": lambda w: _grid(w, 5),
    "asym_int5": lambda w: _affine(w, 5), "sym_int8": _sym_int8, "nf4": _nf4, "nf3": _nf3, "fp4": _fp4,
    "fp8_e4m3": _fp8_e4m3, "fp8_e5m2": _fp8_e5m2,
}  # fmt: skip


def encode(weight: np.ndarray, format: str) -> np.ndarray:
    """Returns the blocks of a matrix as ipex-llm stores them: one flat vector of bytes."""
    return np.frombuffer(ENCODERS[format](weight.astype(np.float32).reshape(-1, BLOCK)), np.uint8)


def write_llama(folder, format: str, *, merged: bool = True, route: str = "config.json"):
    """Writes a tiny Llama as ipex-llm saved it; returns its float weights by name. merged: q, k and v in one."""
    import torch

    config = tiny_hf.llama_config(hidden_size=64, intermediate_size=128, torch_dtype="float32")
    weights = {n: np.asarray(t, np.float32) for n, t in tiny_hf.llama_tensors(config, "fp32").items()}
    stored = {}
    for name, weight in weights.items():
        if "_proj" not in name and name != "lm_head.weight":
            stored[name] = torch.from_numpy(weight)
            continue
        if merged and name.endswith(("k_proj.weight", "v_proj.weight")):
            continue
        if merged and name.endswith("q_proj.weight"):
            weight = np.concatenate([weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"])
            name = name.replace("q_proj", "qkv_proj")
        blocks = torch.from_numpy(encode(weight, format).copy())
        stored[name] = blocks.view(torch.bfloat16) if format == "nf4" else blocks
    folder.mkdir(exist_ok=True)
    torch.save(stored, folder / "pytorch_model.bin")
    mark = {"bigdl_transformers_low_bit": format}
    (folder / "config.json").write_text(json.dumps(config | (mark if route == "config.json" else {})))
    if route != "config.json":
        (folder / "bigdl_config.json").write_text(json.dumps(mark))
    return weights
