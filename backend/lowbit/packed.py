"""PackedTensor: one weight in one format, [out_features, in_features], in the packed layout of docs/formats.md.

Owns the layout's sizes (the mirror of layout_of in native/include/lowbit/formats.h) and the memory the weight lies in.
Knows no model, no file and no device.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit import ops
from lowbit.formats import FLOAT, Choice, Format, resolve

PANEL_ROWS = 16
ATOM_K = 32
LINE = 64
HUGE_PAGE = 2 << 20


@dataclass(frozen=True)
class Layout:
    """Sizes of a packed tensor; all in elements of k, rows or bytes."""

    rows: int
    k: int
    group_size: int  # k per group; k_padded when per row; 32 for float formats (no scales)
    groups_per_tile: int
    panels: int
    tiles: int  # per panel
    k_padded: int
    atom_bytes: int
    tile_bytes: int
    panel_bytes: int
    bytes: int

    @property
    def tile_k(self) -> int:
        return self.group_size * self.groups_per_tile


def layout_of(format: Format, rows: int, k: int, group_size: int) -> Layout:
    """Returns the layout of a [rows, k] tensor; group_size 0 is per row (and what float formats have)."""
    scaled = format.codes != FLOAT
    if not scaled or group_size == 0:
        groups_per_tile, group = 1, (-(-k // ATOM_K) * ATOM_K if scaled else ATOM_K)
    else:
        groups_per_tile, group = 2, group_size
    tile_k = group * groups_per_tile
    tiles = -(-k // tile_k) if tile_k else 0
    panels = -(-rows // PANEL_ROWS)
    atom_bytes = PANEL_ROWS * ATOM_K * format.bits // 8
    tile_bytes = atom_bytes * (tile_k // ATOM_K) + LINE * (scaled + format.has_min)
    panel_bytes = tiles * tile_bytes
    return Layout(
        rows, k, group, groups_per_tile, panels, tiles, tiles * tile_k, atom_bytes, tile_bytes, panel_bytes,
        panels * panel_bytes,
    )  # fmt: skip


def empty(size: int) -> np.ndarray:
    """Returns uninitialised bytes, uint8 [size], on a 64-byte boundary; from one huge page on, on a huge-page boundary.

    Large ones are anonymous memory advised MADV_HUGEPAGE, so that kernels stream it with few page walks; nothing is
    touched before somebody writes it.
    """
    if size < HUGE_PAGE:
        block = np.empty(size + LINE, np.uint8)
        start = -block.ctypes.data % LINE
        return block[start : start + size]
    region = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block = np.frombuffer(region, np.uint8)
    start = -block.ctypes.data % HUGE_PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        try:
            region.madvise(mmap.MADV_HUGEPAGE, start, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE)
        except OSError:  # a kernel built without transparent huge pages: slower, not wrong
            ops.logger.debug("huge pages are not available for %d bytes", size)
    return block[start : start + size]


@dataclass(frozen=True, eq=False)
class PackedTensor:
    """A weight [out_features, in_features] as packed bytes.

    `data` is uint8, exactly the layout's bytes, starting on a 64-byte boundary; immutable once filled and shared by all
    sessions. `group_size` is 0 for per row and for float formats. Scales are stored divided by `multiplier`, a power of
    two.
    """

    format: Format
    group_size: int
    shape: tuple[int, int]
    multiplier: float
    data: np.ndarray

    def __post_init__(self) -> None:
        expected = self.layout.bytes
        if self.data.dtype != np.uint8 or self.data.shape != (expected,):
            raise ValueError(
                f"packed {self.format.name} {list(self.shape)} with group_size {self.group_size} takes {expected} "
                f"bytes, got {self.data.dtype} {list(self.data.shape)}"
            )

    @classmethod
    def allocate(
        cls,
        format: str | Format | Choice,
        shape: tuple[int, int],
        group_size: int | None = None,
        multiplier: float = 1.0,
    ) -> PackedTensor:
        """Returns a tensor over fresh, uninitialised memory."""
        choice = resolve(format)
        group = choice.format.group(choice.group_size if group_size is None else group_size)
        rows, k = shape
        return cls(choice.format, group, (rows, k), multiplier, empty(layout_of(choice.format, rows, k, group).bytes))

    @classmethod
    def from_codes(
        cls,
        format: Format,
        group_size: int,
        codes: np.ndarray,
        scales: np.ndarray,
        minima: np.ndarray | None = None,
        multiplier: float = 1.0,
        pool: Any = None,
    ) -> PackedTensor:
        """Returns a tensor of codes that somebody else chose: uint8 [rows, k]; scales, minima: float16 [rows, groups].

        Scales and minima are divided by `multiplier` already. Raises ValueError for codes beyond the format's bits.
        """
        packed = cls.allocate(format, (codes.shape[0], codes.shape[1]), group_size, multiplier)
        ops.pack_codes(codes, scales, minima, format.id, packed.group_size, packed.data, pool or ops.pool())
        return packed

    @property
    def layout(self) -> Layout:
        return layout_of(self.format, *self.shape, self.group_size)

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @property
    def bits_per_weight(self) -> float:
        """Bytes really held, padding included, in bits per logical weight."""
        return 8 * self.data.nbytes / max(1, self.shape[0] * self.shape[1])

    def native(self) -> tuple[int, int, int, int, float, np.ndarray]:
        """Returns (format id, rows, k, group_size, multiplier, bytes), which the bindings take."""
        return (self.format.id, *self.shape, self.group_size, self.multiplier, self.data)

    def dequantize(self, first: int = 0, count: int | None = None, *, pool: Any = None) -> np.ndarray:
        """Returns the exact values of rows [first, first + count) as float32 [count, in_features].

        Raises IndexError for rows that are not there.
        """
        count = self.shape[0] - first if count is None else count
        if first < 0 or count < 0 or first + count > self.shape[0]:
            raise IndexError(f"rows [{first}, {first + count}) of a packed tensor with {self.shape[0]} rows")
        out = np.empty((count, self.shape[1]), np.float32)
        ops.dequantize(self.native(), first, out, pool or ops.pool())
        return out

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Returns the rows `ids` as float32 [len(ids), in_features]; IndexError when an id is out of range."""
        return ops.gather_rows(self.native(), np.asarray(ids))

    def __repr__(self) -> str:
        group = "per row" if self.format.codes != FLOAT and self.group_size == 0 else f"group {self.group_size}"
        kind = self.format.name if self.format.codes == FLOAT else f"{self.format.name}, {group}"
        return f"PackedTensor({kind}, {list(self.shape)}, {self.nbytes} bytes)"
