"""Round-to-nearest: float weight -> PackedTensor, in native threads, whole or streamed in chunks of rows.

A quantiser chooses scales and codes; what the codes mean is the format's business (formats.py, reference.py). Refuses
weights that are not finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lowbit import ops
from lowbit.formats import FLOAT, Choice, Format, resolve
from lowbit.packed import PANEL_ROWS, PackedTensor, layout_of

# What a float format can hold before it rounds to infinity; scaled formats keep scale * code finite in fp32.
_LARGEST = {"fp16": 65504.0, "bf16": 3.3895313892515355e38}
_LARGEST_SCALED = 2.0**127
# What ITREX's mse_range searches: from the whole range of a group down to 0.805 of it. The whole comes first, so that
# it wins among equals.
CLIP_RATIOS = tuple(round(1 - 0.005 * i, 3) for i in range(40))
CHUNK_BYTES = 64 << 20  # of source weights read at a time: fits beside any model, long enough to hide seeks


def quantize(
    weight: np.ndarray,
    format: str | Format | Choice,
    group_size: int | None = None,
    *,
    full_range: bool | None = None,
    clip_ratios: Sequence[float] | None = None,
    importance: np.ndarray | None = None,
    name: str = "weight",
    threads: int | None = None,
    pool: Any = None,
) -> PackedTensor:
    """Returns a matrix [out_features, in_features] rounded to nearest in a format.

    weight is float32, float16 or bf16 (ops.BF16 or ml_dtypes.bfloat16). group_size None is the format name's own or the
    default of 64; -1 or 0 is one scale per row. full_range False leaves out the most negative code of symmetric grids;
    None is what the format name implies. clip_ratios (such as CLIP_RATIOS): each group takes the ratio of its range
    with the least squared error, errors of column k counting importance[k] times. Raises ValueError naming the tensor
    when it holds NaN or infinity or exceeds what the format can hold.

    >>> quantize(np.ones((16, 64), np.float32), "sym_int4").data.nbytes
    1088
    """
    return quantize_rows(
        lambda start, stop: weight[start:stop], weight.shape, format, group_size,
        full_range=full_range, clip_ratios=clip_ratios, importance=importance, name=name, threads=threads, pool=pool,
        chunk_rows=len(weight),
    )  # fmt: skip


def quantize_rows(
    read: Callable[[int, int], np.ndarray],
    shape: tuple[int, ...],
    format: str | Format | Choice,
    group_size: int | None = None,
    *,
    full_range: bool | None = None,
    clip_ratios: Sequence[float] | None = None,
    importance: np.ndarray | None = None,
    name: str = "weight",
    threads: int | None = None,
    pool: Any = None,
    chunk_rows: int | None = None,
) -> PackedTensor:
    """Returns the same as quantize() for a matrix that is read in chunks: read(start, stop) -> its rows [start, stop).

    Goes over the rows twice (largest magnitude, then packing straight into the final memory), once for float formats
    and when one chunk holds everything; never holds more than one chunk. chunk_rows None is about 64 MiB of float32.
    """
    choice = resolve(format)
    if len(shape) != 2:
        raise ValueError(f"{name}: only matrices are packed, got shape {list(shape)}")
    row, (rows, k) = choice.format, shape
    full_range = choice.full_range if full_range is None else full_range
    group = row.group(choice.group_size if group_size is None else group_size)
    pool = pool or ops.pool(threads)
    step = chunk_rows or max(1, CHUNK_BYTES // (4 * max(1, k)))
    step = max(PANEL_ROWS, -(-step // PANEL_ROWS) * PANEL_ROWS)

    ratios = _ratios(clip_ratios, importance)
    if importance is not None:
        importance = _importance(importance, k, name)

    def chunk(start: int) -> tuple[int, np.ndarray]:
        stop = min(rows, start + step)
        array = read(start, stop)
        if array.shape != (stop - start, k):
            raise ValueError(f"{name}: rows [{start}, {stop}) of {list(shape)} were read as {list(array.shape)}")
        return stop, array

    def largest(array: np.ndarray) -> float:
        most = ops.abs_max(array, pool)
        _check_range(most, row, name)
        return most

    one_pass = row.codes == FLOAT or step >= rows
    held = chunk(0) if one_pass and rows else None
    most = 0.0 if one_pass else max(largest(chunk(start)[1]) for start in range(0, rows, step))
    if held is not None:
        most = largest(held[1])
    multiplier = ops.scale_multiplier(row.id, most)
    packed = PackedTensor.allocate(Choice(row), (rows, k), group, multiplier)
    panel_bytes = layout_of(row, rows, k, group).panel_bytes
    for start in range(0, rows, step):
        stop, array = held if held is not None and start == 0 else chunk(start)
        if one_pass and start:
            largest(array)
        held = None
        first, last = start // PANEL_ROWS, -(-stop // PANEL_ROWS)
        out = packed.data[first * panel_bytes : last * panel_bytes]
        ops.quantize(array, row.id, group, multiplier, full_range, out, pool, ratios, importance)
    return packed


def _ratios(clip_ratios: Sequence[float] | None, importance: np.ndarray | None) -> np.ndarray | None:
    if clip_ratios is None:
        return None if importance is None else np.array(CLIP_RATIOS, np.float32)
    ratios = np.array(clip_ratios, np.float32)
    if ratios.ndim != 1 or not ratios.size or not ((ratios > 0) & (ratios <= 1)).all():
        raise ValueError(f"clip_ratios are numbers above 0 and up to 1, at least one, got {clip_ratios!r}")
    return ratios


def _importance(importance: np.ndarray, k: int, name: str) -> np.ndarray:
    importance = np.ascontiguousarray(importance, np.float32)
    if importance.shape != (k,):
        raise ValueError(f"{name}: importance has shape {list(importance.shape)}, the weight has {k} columns")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError(f"{name}: importance must be finite and not negative")
    return importance


def _check_range(abs_max: float, format: Format, name: str) -> None:
    if not math.isfinite(abs_max):
        what = "NaN" if math.isnan(abs_max) else "infinite values"
        raise ValueError(
            f"{name} contains {what}: the checkpoint is damaged or overflowed when it was saved. "
            "Download it again, or use the original in bf16 or fp32."
        )
    if abs_max > _LARGEST.get(format.name, math.inf):
        wider = "bf16" if format.name == "fp16" else "fp32"
        raise ValueError(
            f"{name} holds {abs_max:.6g}, beyond the largest {format.name} number ({_LARGEST[format.name]:.6g}); "
            f"store it as {wider}."
        )
    if format.codes != FLOAT and abs_max >= _LARGEST_SCALED:
        raise ValueError(f"{name} holds {abs_max:.6g}, beyond 2^127, where scaled formats overflow; store it as fp32.")
