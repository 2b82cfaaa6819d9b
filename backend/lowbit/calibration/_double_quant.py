"""Double quantisation: the scales themselves in 8 bits (Dettmers et al., QLoRA, arXiv:2305.14314, section 3).

The mean of all scales is taken off, and what remains is rounded in blocks of 256 with one fp32 scale each. The packed
layout has 16 bits for a scale and keeps them: the values are those of double quantisation, the size is not.
"""

from __future__ import annotations

import numpy as np

from lowbit import reference
from lowbit.formats import FLOAT, FORMATS
from lowbit.packed import LINE, PANEL_ROWS, PackedTensor

BLOCK = 256
TYPES = ("int8", "fp8_e4m3", "fp8_e5m2")


def double_quantise(tensor: PackedTensor, dtype: str = "int8") -> None:
    """Rounds the scales of a freshly packed tensor in place; tensors of float formats have none."""
    if tensor.format.codes == FLOAT or not tensor.nbytes:
        return
    layout = tensor.layout
    tiles = tensor.data.reshape(layout.panels * layout.tiles, layout.tile_bytes)
    at = layout.tile_bytes - LINE * (1 + tensor.format.has_min)
    used = 2 * layout.groups_per_tile * PANEL_ROWS
    stored = np.ascontiguousarray(tiles[:, at : at + used]).view(np.float16)
    scales = stored.astype(np.float32).ravel()
    real = scales != 0  # padding rows and groups of zeros stay what they are
    values = scales[real]
    if not values.size:
        return
    mean = values.mean(dtype=np.float64).astype(np.float32)
    rest = values - mean
    blocks = np.zeros(-(-rest.size // BLOCK) * BLOCK, np.float32)
    blocks[: rest.size] = rest
    blocks = blocks.reshape(-1, BLOCK)
    largest = np.abs(blocks).max(1, keepdims=True)
    if dtype == "int8":
        step = largest / np.float32(127)
        rounded = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step > 0)) * step
    else:
        format = FORMATS[dtype]
        step = largest / np.float32(reference.top_value(format))
        zero = np.float32(0)
        rounded = reference.decode(reference.encode(blocks, step, zero, format), step, zero, format)
    scales[real] = rounded.ravel()[: rest.size] + mean
    tiles[:, at : at + used] = scales.astype(np.float16).reshape(stored.shape).view(np.uint8)
