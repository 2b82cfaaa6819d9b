"""The native kernels as PyTorch operators of the namespace `lowbit`, with fake kernels to compile them.

Owns the crossing between tensors and numpy arrays (views, no copies, for what lies in CPU memory) and the choice of
threads, tier and compute type for a call. Knows no module and no model.
"""

from __future__ import annotations

import functools
import warnings

import numpy as np
import torch

from lowbit import ops
from lowbit.formats import BY_ID
from lowbit.packed import LINE, PANEL_ROWS, layout_of
from lowbit.runtime import Resolved, Runtime, pool

WHOLE, GATE, UP = -1, 0, 1  # which rows of an interleaved gate_up a `packed` tensor shows


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """Returns a CPU tensor as an array over the same memory; bf16 as ops.BF16."""
    tensor = tensor.detach()
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(ops.BF16)
    return tensor.numpy()


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Returns an array as a tensor over the same memory; BF16 as torch.bfloat16."""
    with warnings.catch_warnings():  # mapped files are read-only, and nothing here writes to packed weights
        warnings.filterwarnings("ignore", message=".*NumPy array is not writable.*")
        if ops.is_bf16(array.dtype):
            return torch.from_numpy(array.view("<i2")).view(torch.bfloat16)
        return torch.from_numpy(array)


@functools.cache
def resolved(tier: str, threads: int) -> Resolved:
    """Returns what a call runs with; "" and 0 leave the choice to the machine."""
    return Runtime(device="cpu", tier=tier or None, threads=threads or None).resolve()


def host_bytes(packed: torch.Tensor, part: int = WHOLE) -> np.ndarray:
    """Returns the contiguous bytes that `packed` lies in: its own, or those of a gate_up whose panels alternate.

    packed is [panels, bytes], of which GATE and UP are every second panel of a gate_up, or [2, panels, bytes], a
    gate_up in one layer: the gate's panels, then those of up.
    """
    packed = packed.detach()
    if packed.is_contiguous():
        return (packed.clone() if packed.data_ptr() % LINE else packed).reshape(-1).numpy()
    panels, size = packed.shape[-2:]
    start = packed.storage_offset() - max(part, 0) * size
    return packed.as_strided((2 * panels * size,), (1,), start).numpy()


def run_linear(
    x: torch.Tensor,
    packed: torch.Tensor,
    exponent: torch.Tensor,
    bias: torch.Tensor | None,
    format_id: int,
    rows: int,
    k: int,
    group_size: int,
    part: int,
    compute: str,
    tier: str,
    threads: int,
) -> torch.Tensor:
    """Returns x W^T (+ bias), [..., rows] in the dtype of x (float32, bfloat16, float16 or float64), x [..., k].

    packed: uint8, the bytes of a `PackedTensor` as `host_bytes` describes, whose multiplier is 2^exponent (int32
    scalar). part: WHOLE, or GATE or UP where `packed` shows every second panel of a gate_up. compute: of LowBitLinear.
    tier, threads: of `Runtime`, "" and 0 for the machine's own. Raises ValueError for shapes that do not fit and tiers
    the machine lacks.
    """
    settings = resolved(tier, threads)
    flat = x.detach().reshape(-1, k).to(torch.float32)
    if flat.shape[0] == 0:
        return x.new_empty((*x.shape[:-1], rows))
    alternates = not packed.is_contiguous()
    all_rows = 2 * PANEL_ROWS * packed.shape[-2] if alternates else rows
    weight = (format_id, all_rows, k, group_size, 2.0 ** int(exponent), host_bytes(packed, part))
    added = None if bias is None else bias.detach().to(torch.float32)
    y = torch.from_numpy(
        ops.linear(
            weight,
            flat.numpy(),
            tier=settings.tier,
            compute=compute,
            pool=pool(settings.threads),
            bias=None if added is None or alternates else added.numpy(),
        )
    )
    if alternates:
        halves = y.reshape(-1, packed.shape[-2], 2, PANEL_ROWS).transpose(1, 2)
        y = (halves if packed.dim() == 3 else halves[:, part]).reshape(flat.shape[0], -1)[:, :rows]
        y = y.contiguous() if added is None else y + added
    return y.reshape(*x.shape[:-1], rows).to(x.dtype)


def run_embedding(
    ids: torch.Tensor,
    packed: torch.Tensor,
    exponent: torch.Tensor,
    format_id: int,
    rows: int,
    k: int,
    group_size: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns the rows `ids` (any integer dtype, [...]) as [..., k] in `dtype`; IndexError for an id out of range."""
    weight = (format_id, rows, k, group_size, 2.0 ** int(exponent), host_bytes(packed))
    flat = ids.detach().reshape(-1).numpy()
    if flat.size and not (flat.min() >= 0 and flat.max() < rows):
        raise IndexError(f"id {flat.min() if flat.min() < 0 else flat.max()} is outside the embedding of {rows} rows")
    values = torch.from_numpy(ops.gather_rows(weight, flat))
    return values.reshape(*ids.shape, k).to(dtype)


def run_dequantize(
    packed: torch.Tensor,
    exponent: torch.Tensor,
    format_id: int,
    rows: int,
    k: int,
    group_size: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Returns the exact values of a packed weight, [rows, k], rounded to `dtype`."""
    out = np.empty((rows, k), np.float32)
    data = host_bytes(packed.detach().contiguous())
    settings = resolved("", 0)
    ops.dequantize((format_id, rows, k, group_size, 2.0 ** int(exponent), data), 0, out, pool(settings.threads))
    return torch.from_numpy(out).to(dtype)


# The schemas are written out: torch 2.4 cannot read them from annotations that are strings.
_WEIGHT = "Tensor packed, Tensor exponent"
_SHAPE = "int format_id, int rows, int k, int group_size"
_LINEAR = f"(Tensor x, {_WEIGHT}, Tensor? bias, {_SHAPE}, int part, str compute, str tier, int threads) -> Tensor"
_EMBEDDING = f"(Tensor ids, {_WEIGHT}, {_SHAPE}, ScalarType dtype) -> Tensor"
_DEQUANTIZE = f"({_WEIGHT}, {_SHAPE}, ScalarType dtype) -> Tensor"

linear = torch.library.custom_op("lowbit::linear", run_linear, mutates_args=(), device_types="cpu", schema=_LINEAR)
embedding = torch.library.custom_op(
    "lowbit::embedding", run_embedding, mutates_args=(), device_types="cpu", schema=_EMBEDDING
)
dequantize = torch.library.custom_op(
    "lowbit::dequantize", run_dequantize, mutates_args=(), device_types="cpu", schema=_DEQUANTIZE
)


@linear.register_fake
def _(x, packed, exponent, bias, format_id, rows, k, group_size, part, compute, tier, threads):
    return x.new_empty((*x.shape[:-1], rows))


@embedding.register_fake
def _(ids, packed, exponent, format_id, rows, k, group_size, dtype):
    return torch.empty((*ids.shape, k), dtype=dtype, device=ids.device)


@dequantize.register_fake
def _(packed, exponent, format_id, rows, k, group_size, dtype):
    return torch.empty((rows, k), dtype=dtype, device=packed.device)


def panel_shape(format_id: int, rows: int, k: int, group_size: int) -> tuple[int, int]:
    """Returns (panels, bytes per panel) of a packed weight [rows, k]."""
    layout = layout_of(BY_ID[format_id], rows, k, group_size)
    return layout.panels, layout.panel_bytes
