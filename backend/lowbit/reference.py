"""The formats in numpy: how weights become packed bytes and how bytes become values. The specification.

native/src/pack.cpp and unpack.cpp equal this module bit for bit (tests/native/test_pack.py), and every kernel is held
to them. Slow and clear on purpose; of the package only what chooses or takes over codes one by one uses it (GPTQ, the
readers of other projects' checkpoints). All arithmetic is float32, one rounding per operation.

    multiplier  smallest power of two >= abs_max / T, T being the largest value of the codes (half of it for asym
                formats); scales and minima are stored as fp16(x / multiplier), zero without a sign
    scale       sym_int3/4/5   m / -2^(b-1), m = the weight of largest magnitude with its sign (GGUF Q4_0, Q5_0), or
                               amax / (2^(b-1) - 1) with full_range=False (ITREX int4_clip)
                sym_int8       amax / 127 (GGUF Q8_0)
                asym           (max - min) / (2^b - 1), and min (GGUF Q4_1, Q5_1)
                codebooks      amax / T
    code        of the stored scale s = fp16 * multiplier, so that rounding the scale costs no accuracy:
                grids          rint(w / s), of asym rint((w - min) / s), clamped, plus the offset; ties to even
                nf3, nf4       number of midpoints between codebook values below w / s
                fp4, fp6, fp8  nearest small float to w / s, ties to even mantissa, saturating, zero without a sign
                scale 0        every code is the one that decodes to 0
    value       (code - offset) * s [+ min], or codebook[code] * s
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lowbit import ops
from lowbit.formats import CODEBOOK, FLOAT, Format
from lowbit.packed import ATOM_K, LINE, PANEL_ROWS, Layout, layout_of

F32 = np.float32
_FLOATS: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2"), "bf16": ops.BF16}
_PLANES = {8: (8,), 6: (4, 2), 5: (4, 1), 4: (4,), 3: (2, 1)}  # bits of each plane, low bits of the code first


def top_value(format: Format) -> float:
    """Returns T, the largest value of the codes of a scaled format."""
    if format.codes == CODEBOOK:
        return max(v for v in format.codebook if math.isfinite(v))
    if format.has_min:
        return float(2**format.bits - 1)
    return 127.0 if format.name == "sym_int8" else float(format.offset)


def zero_code(format: Format) -> int:
    """Returns the code that decodes to 0 when the scale and the minimum are 0 or the format is symmetric."""
    return format.codebook.index(0.0) if format.codes == CODEBOOK else format.offset


def scale_multiplier(format: Format, abs_max: float) -> float:
    """Returns the power of two that all scales of a tensor are divided by; 1 for zeros and float formats."""
    if format.codes == FLOAT or abs_max == 0:
        return 1.0
    largest = F32(abs_max) / F32(top_value(format) / (2 if format.has_min else 1))
    mantissa, exponent = math.frexp(float(largest))
    return math.ldexp(1.0, max(-126, exponent - (mantissa == 0.5))) if largest else 2.0**-126


def _stored(x: np.ndarray) -> np.ndarray:
    half = x.astype(np.float16)
    return np.where(half == 0, np.float16(0), half)


def choose(
    weight: np.ndarray,
    format: Format,
    group_size: int,
    multiplier: float,
    full_range: bool = True,
    ratios: Sequence[float] = (1.0,),
    importance: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (codes, scales, minima) of a finite float32 matrix [rows, k] in a scaled format.

    codes uint8 [rows, k_padded]; scales and minima float16 [rows, groups], divided by the multiplier, minima zero for
    formats without one. k beyond the matrix is zero and does not influence scales. Of several clip ratios each group
    takes the one with the least sum of importance [k] * error^2 (summed in float64 in the order of k), the first of
    equals.
    """
    rows, k = weight.shape
    layout = layout_of(format, rows, k, group_size)
    groups = layout.k_padded // layout.group_size if layout.k_padded else 0
    shape = (rows, groups, layout.group_size)
    w = np.zeros((rows, layout.k_padded), F32)
    w[:, :k] = weight
    w = w.reshape(shape)
    real = (np.arange(layout.k_padded) < k).reshape(groups, layout.group_size)
    by_column = np.zeros(layout.k_padded)  # how much the error of each column counts
    by_column[:k] = 1 if importance is None else importance
    counts = by_column.reshape(groups, layout.group_size)
    empty = ~real.any(axis=1)
    low = np.where(empty, 0, np.where(real, w, np.inf).min(axis=2, initial=np.inf)).astype(F32) / F32(multiplier)
    high = np.where(empty, 0, np.where(real, w, -np.inf).max(axis=2, initial=-np.inf)).astype(F32) / F32(multiplier)

    best: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    least = np.zeros((rows, groups))
    for ratio in ratios:
        scales, minima = _scales(format, low * F32(ratio), high * F32(ratio), full_range)
        s, base = (x.astype(F32)[:, :, None] * F32(multiplier) for x in (scales, minima))
        codes = encode(w, s, base, format, full_range)
        if len(ratios) == 1:
            best = codes, scales, minima
            break
        difference = (w - decode(codes, s, base, format)).astype(np.float64)
        error = np.add.accumulate(counts * (difference * difference), axis=2)[:, :, -1] if k else least
        if best is None:
            best, least = (codes, scales, minima), error
            continue
        better = error < least
        least = np.where(better, error, least)
        best = (
            np.where(better[:, :, None], codes, best[0]),
            np.where(better, scales, best[1]),
            np.where(better, minima, best[2]),
        )
    assert best is not None
    return best[0].reshape(rows, layout.k_padded), best[1], best[2]


def _scales(format: Format, low: np.ndarray, high: np.ndarray, full_range: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns stored scales and minima, float16, of groups between low and high (divided by the multiplier)."""
    minima = np.zeros_like(low, np.float16)
    amax = np.maximum(-low, high)
    if format.has_min:
        return _stored((high - low) / F32(2**format.bits - 1)), _stored(low)
    if format.codes == CODEBOOK:
        return _stored(amax / F32(top_value(format))), minima
    if full_range and format.name != "sym_int8":
        return _stored(np.where(-low > high, low, high) / F32(-format.offset)), minima
    return _stored(amax / F32(format.offset - 1)), minima


def encode(
    w: np.ndarray, scale: np.ndarray | F32, minimum: np.ndarray | F32, format: Format, full_range: bool = True
) -> np.ndarray:
    """Returns the codes, uint8, of float32 weights under given scales and minima (as decoding sees them; broadcast)."""
    first, last = (0, 2**format.bits - 1) if format.has_min else (-format.offset, format.offset - 1)
    if not format.has_min and (not full_range or format.name == "sym_int8"):
        first = -last
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        q = ((w - minimum) if format.has_min else w) / scale
    q = np.where(scale == 0, F32(0), q)
    if format.minifloat:
        codes = _nearest_minifloat(format, q)
    elif format.codes == CODEBOOK:
        values = np.array(format.codebook, F32)
        codes = np.searchsorted((values[:-1] + values[1:]) * F32(0.5), q, side="left")
    else:
        codes = np.rint(np.clip(q, first, last)).astype(np.int32) + format.offset
    return np.where(scale == 0, zero_code(format), codes).astype(np.uint8)


def decode(codes: np.ndarray, scale: np.ndarray | F32, minimum: np.ndarray | F32, format: Format) -> np.ndarray:
    """Returns the float32 values of codes under given scales and minima; the inverse of `encode`."""
    if format.codes == CODEBOOK:
        values = np.array(format.codebook, F32)[codes]
    else:
        values = codes.astype(F32) - F32(format.offset)
    return values * scale + minimum if format.has_min else values * scale


def _nearest_minifloat(format: Format, q: np.ndarray) -> np.ndarray:
    small = format.minifloat
    assert small is not None
    magnitudes = np.array(format.codebook[: small.max_code + 1], F32)
    middle = (magnitudes[:-1] + magnitudes[1:]) * F32(0.5)  # exact: few mantissa bits
    a = np.abs(q)
    code = np.searchsorted(middle, a, side="left")  # ties fall to the lower code ...
    tie = (code < len(middle)) & (a == middle[np.minimum(code, len(middle) - 1)])
    code = code + (tie & (code % 2 == 1))  # ... unless the upper one is even
    return code | np.where((q < 0) & (code > 0), 1 << (format.bits - 1), 0)


def pack(format: Format, layout: Layout, codes: np.ndarray, scales: np.ndarray, minima: np.ndarray) -> bytes:
    """Returns the packed bytes of chosen codes, scales and minima (shapes as choose returns them)."""
    rows = layout.panels * PANEL_ROWS
    full = np.full((rows, layout.k_padded), zero_code(format), np.uint8)
    full[: len(codes)] = codes
    tiles, groups = layout.tiles, layout.groups_per_tile
    # [panel, row in panel, tile, atom in tile, k in atom] -> [panel, tile, atom, row, k]
    atoms = full.reshape(layout.panels, PANEL_ROWS, tiles, layout.tile_k // ATOM_K if tiles else 0, ATOM_K)
    parts = [_pack_atoms(format.bits, atoms.transpose(0, 2, 3, 1, 4)).reshape(layout.panels, tiles, -1)]
    for halves in (scales, minima)[: 2 if format.has_min else 1]:
        line = np.zeros((layout.panels, tiles, LINE // 2), np.float16)
        by_row = np.zeros((rows, tiles * groups), np.float16)
        by_row[: len(halves)] = halves
        by_group = by_row.reshape(layout.panels, PANEL_ROWS, tiles, groups).transpose(0, 2, 3, 1)
        line[:, :, : groups * PANEL_ROWS] = by_group.reshape(layout.panels, tiles, -1)
        parts.append(line.view(np.uint8))
    return np.concatenate(parts, axis=2).tobytes()


def _pack_atoms(bits: int, atoms: np.ndarray) -> np.ndarray:
    """[..., 16 rows, 32 k] codes -> [..., bytes]: the planes of every atom."""
    outer = atoms.shape[:-2]
    words = atoms.reshape(*outer, PANEL_ROWS, 8, 4).swapaxes(-3, -2)  # [..., word j, row r, byte b]: k = 4j + b
    planes, shift = [], 0
    for plane in _PLANES[bits]:
        field = (words >> shift) & ((1 << plane) - 1)
        if plane == 1:  # mask j, bit 4r + b
            planes.append(np.packbits(field.reshape(*outer, -1), axis=-1, bitorder="little"))
        else:  # line j holds words (8/plane) j + i at bit plane * i of every byte
            per = 8 // plane
            lines = field.reshape(*outer, 8 // per, per, LINE)
            merged = np.zeros((*outer, 8 // per, LINE), np.uint8)
            for i in range(per):
                merged |= lines[..., i, :] << (plane * i)
            planes.append(merged.reshape(*outer, -1))
        shift += plane
    return np.concatenate(planes, axis=-1)


def unpack(format: Format, layout: Layout, data: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (codes, scales, minima) of packed bytes: the inverse of pack, padded rows included."""
    panels, tiles, groups, atoms = layout.panels, layout.tiles, layout.groups_per_tile, layout.tile_k // ATOM_K
    raw = np.frombuffer(data, np.uint8).reshape(panels, tiles, layout.tile_bytes)
    rest = raw[:, :, : atoms * layout.atom_bytes].reshape(panels, tiles, atoms, layout.atom_bytes)
    words, shift = np.zeros((panels, tiles, atoms, 8, LINE), np.uint8), 0
    field: np.ndarray
    for plane in _PLANES[format.bits]:
        size = PANEL_ROWS * ATOM_K * plane // 8
        part, rest = rest[..., :size], rest[..., size:]
        if plane == 1:
            field = np.unpackbits(part, axis=-1, bitorder="little").reshape(words.shape)
        else:
            lines = part.reshape(panels, tiles, atoms, plane, 1, LINE)
            offsets = (plane * np.arange(8 // plane, dtype=np.uint8))[:, None]
            field = ((lines >> offsets) & ((1 << plane) - 1)).reshape(words.shape)
        words |= field << shift
        shift += plane
    codes = words.reshape(panels, tiles, atoms, 8, PANEL_ROWS, 4).transpose(0, 4, 1, 2, 3, 5)
    after = raw[:, :, atoms * layout.atom_bytes :].copy()
    half_lines = after.view(np.float16).reshape(panels, tiles, -1, LINE // 2)

    def halves(i: int) -> np.ndarray:
        line = half_lines[:, :, i, : groups * PANEL_ROWS].reshape(panels, tiles, groups, PANEL_ROWS)
        return line.transpose(0, 3, 1, 2).reshape(panels * PANEL_ROWS, tiles * groups)

    scales = halves(0)
    return codes.reshape(-1, layout.k_padded), scales, halves(1) if format.has_min else np.zeros_like(scales)


def _pack_floats(format: Format, layout: Layout, weight: np.ndarray) -> bytes:
    """Float formats: an atom of 16 rows x 32 k per tile."""
    narrow = _FLOATS[format.name]
    full = np.zeros((layout.panels * PANEL_ROWS, layout.k_padded), narrow)
    rounded = ops.fp32_to_bf16(weight) if format.name == "bf16" else weight.astype(narrow)
    full[: weight.shape[0], : weight.shape[1]] = rounded
    by_k = full.reshape(layout.panels, PANEL_ROWS, layout.k_padded)
    if format.name == "bf16":  # lane r of line j = k 2j, 2j + 1
        return by_k.reshape(layout.panels, PANEL_ROWS, -1, 2).swapaxes(1, 2).tobytes()
    return by_k.swapaxes(1, 2).tobytes()  # 16 rows of each k


def quantize(
    weight: np.ndarray,
    format: Format,
    group_size: int,
    *,
    multiplier: float | None = None,
    full_range: bool = True,
    ratios: Sequence[float] = (1.0,),
    importance: np.ndarray | None = None,
) -> tuple[bytes, float]:
    """Returns (packed bytes, multiplier) of a finite matrix [rows, k] of fp32, fp16 or BF16; ratios as in `choose`."""
    w = ops.to_fp32(weight)
    layout = layout_of(format, w.shape[0], w.shape[1], group_size)
    if format.codes == FLOAT:
        return _pack_floats(format, layout, w), 1.0
    if multiplier is None:
        multiplier = scale_multiplier(format, float(np.abs(w).max(initial=0)))
    chosen = choose(w, format, group_size, multiplier, full_range, ratios, importance)
    return pack(format, layout, *chosen), multiplier


def dequantize(
    data: bytes, format: Format, shape: tuple[int, int], group_size: int, multiplier: float = 1.0
) -> np.ndarray:
    """Returns the values of packed bytes as float32 [rows, k]."""
    rows, k = shape
    layout = layout_of(format, rows, k, group_size)
    if format.codes == FLOAT:
        pair = 2 if format.name == "bf16" else 1
        raw = np.frombuffer(data, _FLOATS[format.name]).reshape(layout.panels, -1, PANEL_ROWS, pair).swapaxes(1, 2)
        return ops.to_fp32(raw.reshape(-1, layout.k_padded)[:rows, :k])
    codes, scales, minima = unpack(format, layout, data)
    s, base = (np.repeat(x.astype(F32) * F32(multiplier), layout.group_size, axis=1) for x in (scales, minima))
    return decode(codes, s, base, format)[:rows, :k]
