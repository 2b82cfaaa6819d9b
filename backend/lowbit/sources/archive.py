"""Low-bit folders of ipex-llm and bigdl-llm, whose development has ended: their blocks of 64 weights as floats.

Two routes wrote them: AutoModel's save_low_bit (the format in config.json) and optimize_model's (in bigdl_config.json).
Weights are a pickle, read with weights_only; a quantised matrix is one flat vector of blocks under its usual name, its
shape nowhere. The byte layouts were decoded from what the library wrote. Rounding a decoded matrix to the same format
in groups of 64 gives the same codes, except that sym_int8 scales become fp16 and fp8_e5m2 gets a scale. Refuses the
formats whose blocks nobody has decoded (k-quants, fp6).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.formats import FORMATS
from lowbit.models._spec import Family, ModelSpec
from lowbit.ops import is_bf16
from lowbit.sources._foreign import ORIGINAL

KEY, FILE = "bigdl_transformers_low_bit", "bigdl_config.json"
BLOCK = 64
ALIASES = {"woq_int4": "sym_int4", "fp8": "fp8_e5m2"}  # fp8 was e4m3 in bigdl-llm: its blocks hold a scale, e5m2's 1.0
# format -> bytes of a block
BLOCK_BYTES = {
    "sym_int4": 34, "asym_int4": 36, "sym_int5": 42, "asym_int5": 44, "sym_int8": 68, "nf4": 34, "nf3": 26, "fp4": 34,
    "fp8_e4m3": 68, "fp8_e5m2": 68,
}  # fmt: skip
FLOATS = ("bf16", "fp16")


def format_of(config: dict[str, Any], folder: Path) -> str | None:
    """Returns the format of an archived low-bit folder, None for any other folder.

    Raises ValueError for a format whose bytes are not known, naming the folder and what to do.
    """
    name = config.get(KEY)
    if name is None and (folder / FILE).exists():
        try:
            name = json.loads((folder / FILE).read_bytes()).get(KEY)
        except (ValueError, AttributeError):
            raise ValueError(f"{folder / FILE} is damaged; copy it again, or {ORIGINAL}") from None
    if name is None:
        return None
    format = ALIASES.get(name, name)
    if format not in (*BLOCK_BYTES, *FLOATS):
        raise ValueError(f"{folder} was saved by ipex-llm as {name}, whose byte layout is not known; {ORIGINAL}")
    return format


def without_marks(config: dict[str, Any]) -> dict[str, Any]:
    """Returns a config.json without what ipex-llm wrote into it: for a model that is saved again."""
    return {name: value for name, value in config.items() if not name.startswith("bigdl_")}


def decode(data: np.ndarray, format: str) -> np.ndarray:
    """Returns the values of blocks, float32 [weights], from a flat vector (uint8, or bf16 as nf4 was saved).

    Raises ValueError when the bytes are not whole blocks.
    """
    raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
    size = BLOCK_BYTES[format]
    if raw.size % size:
        raise ValueError(f"{raw.size} bytes are not whole blocks of {size} bytes, as {format} has")
    blocks = raw.reshape(-1, size)
    return _DECODERS[format](blocks).astype(np.float32).reshape(-1)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _single(blocks: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(blocks[:, :4]).view("<f4")


def _nibbles(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.concatenate([blocks[:, at : at + 32] & 15, blocks[:, at : at + 32] >> 4], axis=1)


def _bits(blocks: np.ndarray, at: int) -> np.ndarray:
    return np.unpackbits(blocks[:, at : at + 8], axis=1, bitorder="little")


def _values(format: str, codes: np.ndarray) -> np.ndarray:
    return np.array(FORMATS[format].codebook, np.float32)[codes]


def _sym_int4(b: np.ndarray) -> np.ndarray:
    return (_nibbles(b, 2).astype(np.float32) - 8) * _half(b, 0)


def _asym_int4(b: np.ndarray) -> np.ndarray:
    return _nibbles(b, 4) * _half(b, 0) + _half(b, 2)


def _sym_int5(b: np.ndarray) -> np.ndarray:
    return (_nibbles(b, 10) + 16.0 * _bits(b, 2) - 16) * _half(b, 0)


def _asym_int5(b: np.ndarray) -> np.ndarray:
    return (_nibbles(b, 12) + 16.0 * _bits(b, 4)).astype(np.float32) * _half(b, 0) + _half(b, 2)


def _sym_int8(b: np.ndarray) -> np.ndarray:
    return b[:, 4:].view(np.int8) * _single(b)


def _nf4(b: np.ndarray) -> np.ndarray:  # the halves are in the other order
    return _values("nf4", np.roll(_nibbles(b, 2), 32, axis=1)) * _half(b, 0)


def _nf3(b: np.ndarray) -> np.ndarray:
    low = (b[:, 10:26, None] >> np.array([6, 4, 2, 0])) & 3
    return _values("nf3", low.reshape(len(b), BLOCK) + 4 * _bits(b, 2)) * _half(b, 0)


def _fp4(b: np.ndarray) -> np.ndarray:
    return _values("fp4", _nibbles(b, 2)) * _half(b, 0)


def _fp8_e4m3(b: np.ndarray) -> np.ndarray:  # an exponent bias of 15
    return _values("fp8_e4m3", b[:, 4:]) * (_single(b) / 256)


def _fp8_e5m2(b: np.ndarray) -> np.ndarray:  # the upper byte of an fp16
    return (b[:, 4:].astype("<u2") << 8).view("<f2").astype(np.float32) * _single(b)


_DECODERS = {
    "sym_int4": _sym_int4, "asym_int4": _asym_int4, "sym_int5": _sym_int5, "asym_int5": _asym_int5,
    "sym_int8": _sym_int8, "nf4": _nf4, "nf3": _nf3, "fp4": _fp4, "fp8_e4m3": _fp8_e4m3, "fp8_e5m2": _fp8_e5m2,
}  # fmt: skip


def is_packed(dtype: np.dtype, shape: tuple[int, ...], format: str) -> bool:
    """Returns whether a linear layer's stored weight is a vector of blocks."""
    return len(shape) == 1 and (dtype == np.uint8 or (format == "nf4" and is_bf16(dtype)))


class ArchiveSource:
    """A source whose blocks appear as float32 matrices, and the parts of merged q, k, v projections by themselves."""

    def __init__(self, inner: Any, format: str, family: Family) -> None:
        self._inner, self._format = inner, format
        spec = family.spec
        assert isinstance(spec, ModelSpec)
        inputs = {"o": spec.heads * spec.head_dim, "down": spec.ffn_size}
        self._k = {
            part.source: inputs.get(recipe.name.split(".")[-2], spec.hidden_size)
            for recipe in family.recipes
            if recipe.kind in ("matrix", "head")
            for part in recipe.parts
        }
        self._wanted = {part.source for recipe in family.recipes for part in recipe.parts}
        sizes = [n * spec.head_dim for n in (spec.heads, spec.kv_heads, spec.kv_heads)]
        self._places: dict[str, tuple[str, int, int]] = {}  # name -> (stored name, first row, rows)
        for name in inner.names:
            parts = [name.replace(".qkv_proj.", f".{letter}_proj.") for letter in "qkv"]
            if ".qkv_proj." in name and any(parts[0].endswith(wanted) for wanted in self._wanted):
                for part, first, rows in zip(parts, np.cumsum([0, *sizes]).tolist(), sizes, strict=False):
                    self._places[part] = (name, first, rows)
        merged = {name for name, _, _ in self._places.values()}
        self.names: Sequence[str] = [n for n in inner.names if n not in merged] + list(self._places)

    def info(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        stored, _, rows = self._places.get(name, (name, 0, None))
        dtype, shape = self._inner.info(stored)
        if (k := self._inputs(name)) is not None and is_packed(dtype, shape, self._format):
            weights = shape[0] * dtype.itemsize // BLOCK_BYTES[self._format] * BLOCK
            if weights % k:
                raise ValueError(f"tensor {stored!r} in {self.file_of(name)} holds {weights} weights for {k} inputs")
            return np.dtype(np.float32), (rows or weights // k, k)
        return dtype, shape if rows is None else (rows, *shape[1:])

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        stored, first, _ = self._places.get(name, (name, 0, None))
        dtype, shape = self._inner.info(stored)
        low, high, _ = slice(start, stop).indices(self.info(name)[1][0])
        low, high = low + first, high + first
        k = self._inputs(name)
        if k is None or not is_packed(dtype, shape, self._format):
            return self._inner.read(stored, low, high)
        size = k // BLOCK * BLOCK_BYTES[self._format] // dtype.itemsize  # of a row
        return decode(self._inner.read(stored, low * size, high * size), self._format).reshape(-1, k)

    def file_of(self, name: str) -> Path:
        return self._inner.file_of(self._places.get(name, (name,))[0])

    def release(self, name: str) -> None:
        self._inner.release(self._places.get(name, (name,))[0])

    def close(self) -> None:
        self._inner.close()

    def _inputs(self, name: str) -> int | None:
        return next((k for source, k in self._k.items() if name.endswith(source)), None)
