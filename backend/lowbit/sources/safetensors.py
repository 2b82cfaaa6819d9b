"""safetensors: one file, or shards named by `model.safetensors.index.json`.

The file is mapped and read row by row, so a model never has to fit in memory. The header is checked before any tensor
is touched, because offsets that lie would become reads outside the file: sizes, JSON, dtypes, shapes, offsets inside
the file, no overlap. The reader is written here rather than taken from the safetensors library because its numpy side
has no bf16 and no way to give pages back. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import mmap
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np

from lowbit.ops import BF16
from lowbit.sources._shards import Shards, find_files, nearest

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

MAX_HEADER_BYTES = 100_000_000  # the library's own limit

# dtype name -> numpy dtype, or the bits of one element where numpy has no such type (known, measured, not readable)
DTYPES: MappingProxyType[str, np.dtype | int] = MappingProxyType(
    {
        "F64": np.dtype("<f8"),
        "F32": np.dtype("<f4"),
        "F16": np.dtype("<f2"),
        "BF16": BF16,
        "I64": np.dtype("<i8"),
        "I32": np.dtype("<i4"),
        "I16": np.dtype("<i2"),
        "I8": np.dtype("i1"),
        "U64": np.dtype("<u8"),
        "U32": np.dtype("<u4"),
        "U16": np.dtype("<u2"),
        "U8": np.dtype("u1"),
        "BOOL": np.dtype("?"),
        "C64": np.dtype("<c8"),
        "F8_E4M3": 8,
        "F8_E5M2": 8,
        "F8_E8M0": 8,
        "F8_E4M3FNUZ": 8,
        "F8_E5M2FNUZ": 8,
        "F6_E2M3": 6,
        "F6_E3M2": 6,
        "F4": 4,
    }
)


@dataclass(frozen=True)
class Entry:
    """One tensor of a header; start and stop are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    def bits(self) -> int:
        kind = DTYPES[self.dtype]
        return kind if isinstance(kind, int) else kind.itemsize * 8


def find(folder: Path) -> tuple[list[Path], dict[str, str] | None] | None:
    """Returns the files of a folder and the shard of each tensor, or None when it holds no safetensors."""
    return find_files(folder, SINGLE, INDEX)


def open_files(files: list[Path], weight_map: dict[str, str] | None) -> Shards:
    """Returns the source over checked files. Raises ValueError naming the file and what is wrong with it."""
    return Shards([SafetensorsFile(file) for file in files], weight_map)


class SafetensorsFile:
    """One mapped file; `entries` and `metadata` are its checked header."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            self.entries, self.metadata, self.data_start = read_header(stream, size, path)
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def names(self) -> list[str]:
        return list(self.entries)

    def info(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        entry = self._entry(name)
        kind = DTYPES[entry.dtype]
        if isinstance(kind, int):
            raise ValueError(
                f"tensor {name!r} in {self.path} is stored as {entry.dtype}, which lowbit does not read; "
                "load a checkpoint with bf16, fp16 or fp32 weights"
            )
        return kind, entry.shape

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        dtype, shape = self.info(name)
        entry = self.entries[name]
        whole = (
            np.frombuffer(self._map, dtype, math.prod(shape), entry.start) if math.prod(shape) else np.empty(0, dtype)
        )
        whole = whole.reshape(shape)
        return whole if start is None and stop is None else whole[start:stop]

    def release(self, name: str) -> None:
        if not hasattr(self._map, "madvise") or not hasattr(mmap, "MADV_DONTNEED"):
            return  # the operating system has no such call; it drops clean pages by itself under pressure
        entry = self._entry(name)
        # Whole pages inside the tensor; the border pages belong to the neighbours as well and stay.
        start = -(-entry.start // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = entry.stop // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > start:
            self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def advise(self, advice: int | None) -> None:
        """Passes an `mmap.MADV_*` hint on for the whole file, where the system knows it."""
        if advice is not None and hasattr(self._map, "madvise"):
            self._map.madvise(advice)

    def buffer(self) -> memoryview:
        """Returns the bytes of the file."""
        return memoryview(self._map)

    def close(self) -> None:
        self.entries = {}
        del self._map  # unmapped when the last array that views it is gone

    def _entry(self, name: str) -> Entry:
        if name not in self.entries:
            raise KeyError(f"no tensor {name!r} in {self.path}{nearest(name, self.entries)}")
        return self.entries[name]


def read_header(stream, size: int, path: Path) -> tuple[dict[str, Entry], dict[str, str], int]:
    """Returns the tensors by name in file order, the metadata, and the byte where data starts.

    Raises ValueError, naming the file and the cause, for anything that does not describe exactly what the file holds.
    """

    def bad(cause: str) -> ValueError:
        return ValueError(f"{path} is not a sound safetensors file: {cause}; download or save it again")

    if size < 8:
        raise bad(f"it has {size} bytes, too few for a header")
    length = int.from_bytes(stream.read(8), "little")
    if length > MAX_HEADER_BYTES:
        raise bad(f"it claims a header of {length} bytes, more than the {MAX_HEADER_BYTES} the format allows")
    data_start = 8 + length
    if data_start > size:
        raise bad(f"it claims a header of {length} bytes and has only {size} bytes in all (truncated?)")
    try:
        header = json.loads(stream.read(length), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise bad(f"its header is not JSON ({error})") from None
    if not isinstance(header, dict):
        raise bad("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad("its __metadata__ is not a table of strings")
    entries = {}
    for name, value in header.items():
        try:
            entries[name] = _entry(value, data_start)
        except ValueError as error:
            raise bad(f"tensor {name!r}: {error}") from None
    end, last = data_start, None
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.stop > size:
            missing = entry.stop - size
            raise bad(f"tensor {name!r} ends {missing} bytes behind the end of the file (truncated, or a wrong offset)")
        if entry.start < end and entry.stop > entry.start:
            raise bad(f"tensors {last!r} and {name!r} overlap")
        if entry.stop > end:
            end, last = entry.stop, name
    in_order = dict(sorted(entries.items(), key=lambda item: item[1].start))
    return in_order, metadata, data_start


def _entry(value: object, data_start: int) -> Entry:
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= set(value):
        raise ValueError("needs dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}")
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape):
        raise ValueError(f"shape {shape!r} is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        raise ValueError(f"data_offsets {offsets!r} are not two byte offsets")
    entry = Entry(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])
    if (entry.stop - entry.start) * 8 != math.prod(shape) * entry.bits():
        raise ValueError(f"{dtype} {shape} does not fill its {offsets[1] - offsets[0]} bytes")
    return entry


def _is_count(n: object) -> bool:
    return isinstance(n, int) and not isinstance(n, bool) and n >= 0


def _unique(pairs: list[tuple[str, object]]) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result
