"""A canonical tensor as rows gathered from source tensors: concatenated, cut, transposed, panels interleaved.

Follows a `Recipe` (models/_spec.py) and reads only the rows that are asked for. Every refusal names the tensor, its
file and what was expected.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lowbit.models._spec import Recipe
from lowbit.ops import BF16, to_fp32
from lowbit.packed import PANEL_ROWS
from lowbit.sources import Source

FLOATS = (BF16, np.dtype("<f2"), np.dtype("<f4"), np.dtype("<f8"))


@dataclass(frozen=True)
class _Piece:
    """Rows [start, stop) of one source tensor (of its transpose), in the place the list of pieces gives them."""

    name: str
    start: int
    stop: int
    transpose: bool


@dataclass(frozen=True)
class Gathered:
    """Rows of a canonical tensor. dtype: the float dtype of its sources where they agree, else float32."""

    source: Source
    recipe: Recipe
    names: tuple[str, ...]  # of the source tensors
    pieces: tuple[_Piece, ...]
    columns: tuple[int, ...]  # shape behind the rows: (k,) of a matrix, () of a vector
    dtype: np.dtype

    @property
    def source_rows(self) -> int:
        """Rows before the padding of interleaved halves."""
        return sum(piece.stop - piece.start for piece in self.pieces)

    @property
    def rows(self) -> int:
        half = -(-self.source_rows // (2 * PANEL_ROWS)) * PANEL_ROWS
        return 2 * half if self.recipe.interleave else self.source_rows

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.rows, *self.columns)

    @property
    def nbytes(self) -> int:
        """Bytes of the source tensors' rows."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    @property
    def where(self) -> str:
        """The source tensors and their file, for messages."""
        return f"{self.recipe.name} (from {', '.join(self.names)} in {self.source.file_of(self.names[0])})"

    def read(self, start: int, stop: int) -> np.ndarray:
        """Returns rows [start, stop), a view of the mapped file where they lie together, else a copy."""
        if not self.recipe.interleave:
            return self._plain(start, stop)
        half = self.source_rows // 2
        # A pair is a panel of the first half and the panel of the second half that follows it.
        pairs = range(start // (2 * PANEL_ROWS), -(-stop // (2 * PANEL_ROWS)))
        out = np.zeros((len(pairs), 2, PANEL_ROWS, *self.columns), self.dtype)
        for which in (0, 1):
            low, high = (min(n * PANEL_ROWS, half) + which * half for n in (pairs.start, pairs.stop))
            rows = self._plain(low, high)
            full = len(rows) // PANEL_ROWS
            out[:full, which] = rows[: full * PANEL_ROWS].reshape(full, PANEL_ROWS, *self.columns)
            if len(rows) % PANEL_ROWS:
                out[full, which, : len(rows) % PANEL_ROWS] = rows[full * PANEL_ROWS :]
        offset = pairs.start * 2 * PANEL_ROWS
        return out.reshape(-1, *self.columns)[start - offset : stop - offset]

    def release(self) -> None:
        """Gives the pages of the source tensors back."""
        for name in set(self.names):
            self.source.release(name)

    def _plain(self, start: int, stop: int) -> np.ndarray:
        """Returns rows of the concatenation, before any interleaving."""
        parts, offset = [], 0
        for piece in self.pieces:
            count = piece.stop - piece.start
            low, high = max(start - offset, 0), min(stop - offset, count)
            if low < high:
                parts.append(self._rows(piece, piece.start + low, piece.start + high))
            offset += count
        if not parts:
            return np.zeros((0, *self.columns), self.dtype)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _rows(self, piece: _Piece, start: int, stop: int) -> np.ndarray:
        if piece.transpose:
            array = np.ascontiguousarray(self.source.read(piece.name)[:, start:stop].T)
        else:
            array = self.source.read(piece.name, start, stop)
        return array if array.dtype == self.dtype else to_fp32(array)


def gather(recipe: Recipe, source: Source) -> Gathered:
    """Returns the rows of a recipe whose parts are named as the source names them (`Family.located` does that).

    Raises ValueError naming tensor and file for shapes that do not fit together or a dtype that is no float.
    """
    names = [part.source for part in recipe.parts]
    pieces: list[_Piece] = []
    columns: tuple[int, ...] | None = None
    dtypes = set()
    for part, name in zip(recipe.parts, names, strict=True):
        dtype, shape = source.info(name)
        where = f"tensor {name!r} in {source.file_of(name)}"
        if dtype not in FLOATS:
            raise ValueError(
                f"{where} holds {dtype} where float weights were expected; load the original, unquantised model"
            )
        if part.transpose:
            shape = shape[::-1]
        if not shape or (recipe.kind != "vector" and len(shape) != 2):
            raise ValueError(f"{where} has shape {list(shape)} where a matrix was expected")
        if columns is not None and shape[1:] != columns:
            raise ValueError(
                f"{where} has {list(shape[1:])} columns, {names[0]!r} has {list(columns)}; they form one matrix"
            )
        columns = shape[1:]
        for start, stop in part.rows or ((0, shape[0]),):
            if not 0 <= start <= stop <= shape[0]:
                raise ValueError(f"{where} has {shape[0]} rows, config.json asks for rows {start} to {stop}")
            pieces.append(_Piece(name, start, stop, part.transpose))
        dtypes.add(dtype)
    dtype = dtypes.pop() if len(dtypes) == 1 and np.dtype("<f8") not in dtypes else np.dtype("<f4")
    gathered = Gathered(source, recipe, tuple(names), tuple(pieces), columns or (), dtype)
    if recipe.interleave and gathered.source_rows % 2:
        raise ValueError(f"{gathered.where} has an odd number of rows; it must hold two halves of the same size")
    return gathered
