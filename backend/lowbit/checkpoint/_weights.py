"""The weights of a low-bit folder: one safetensors file, written streaming, read by mapping it.

Packed tensors are dtype U8 and come first; the header is padded so that the data starts on a cache line, and as every
packed tensor is whole cache lines, each of them does. What a packed tensor is (format, group size, shape, multiplier)
stands in the file's `__metadata__` under the tensor's name, as JSON. Arrays that are not packed keep their type (the
vectors of native models are F32). The file is valid for the safetensors library.
"""

from __future__ import annotations

import concurrent.futures
import json
import mmap
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.packed import PackedTensor
from lowbit.sources.safetensors import DTYPES, SafetensorsFile

LINE = 64
# One write, and the bytes behind one checksum. Writing 2 MiB and more at a time lets the kernel keep the file in large
# folios, so that even a freshly written file is mapped in 2 MiB pages (Linux 6.18, ext4: all; 1 MiB writes: none).
CHUNK_BYTES = 16 << 20
LAYOUT_KEY, LAYOUT = "lowbit", "P16K-1"
_NAMES = {dtype: name for name, dtype in DTYPES.items() if not isinstance(dtype, int)}


def write_weights(path: Path, tensors: Mapping[str, PackedTensor | np.ndarray]) -> dict[str, Any]:
    """Returns size and checksums of the file, then complete on disk. Raises OSError, early, if it does not fit."""
    packed = {name: t for name, t in tensors.items() if isinstance(t, PackedTensor)}
    arrays = [(name, t) for name, t in tensors.items() if not isinstance(t, PackedTensor)]
    arrays.sort(key=lambda item: -item[1].dtype.itemsize)  # so that each starts on a multiple of its element size
    metadata, header, offset = {LAYOUT_KEY: LAYOUT}, {}, 0
    for name, tensor in packed.items():
        metadata[name] = json.dumps(_facts(tensor))
        header[name] = _entry("U8", [tensor.data.nbytes], offset, tensor.data.nbytes)
        offset += tensor.data.nbytes
    for name, array in arrays:
        header[name] = _entry(_NAMES[array.dtype], list(array.shape), offset, array.nbytes)
        offset += array.nbytes
    text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE)
    size = 8 + len(text) + offset
    checksums: list[str] = []
    with path.open("wb", buffering=0) as stream:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, size)  # a full disk is found here, not after minutes of writing
        out = _Chunks(stream, checksums)
        out.write(memoryview(len(text).to_bytes(8, "little") + text))
        for tensor in packed.values():
            out.write(tensor.data.data.cast("B"))
        for _, array in arrays:
            out.write(memoryview(array.tobytes()))
        out.flush()
        os.fsync(stream.fileno())
    return {"bytes": size, "chunk_bytes": CHUNK_BYTES, "crc32": checksums}


def _facts(tensor: PackedTensor) -> dict[str, Any]:
    return {
        "format": tensor.format.name,
        "group_size": tensor.group_size,
        "shape": list(tensor.shape),
        "multiplier": tensor.multiplier,
    }


def _entry(dtype: str, shape: list[int], offset: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}


class _Chunks:
    """Gathers bytes into chunks, each written in one go and its checksum noted."""

    def __init__(self, stream, checksums: list[str]) -> None:
        self._stream, self._checksums = stream, checksums
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._filled = 0

    def write(self, view: memoryview) -> None:
        while view:
            n = min(len(view), CHUNK_BYTES - self._filled)
            self._buffer[self._filled : self._filled + n] = view[:n]
            self._filled += n
            view = view[n:]
            if self._filled == CHUNK_BYTES:
                self.flush()

    def flush(self) -> None:
        chunk = self._buffer[: self._filled]
        if chunk:
            self._checksums.append(f"{zlib.crc32(chunk):08x}")
        while chunk:
            chunk = chunk[self._stream.write(chunk) :]
        self._filled = 0


class WeightsFile:
    """A mapped weights file. Raises ValueError, naming file and cause, when it is not what the manifest says."""

    def __init__(self, path: Path, facts: Mapping[str, Any]) -> None:
        self.path = path
        self.bytes = path.stat().st_size
        try:
            expected, self._chunk_bytes = int(facts["bytes"]), int(facts["chunk_bytes"])
            self._checksums = [str(crc) for crc in facts["crc32"]]
        except (KeyError, TypeError, ValueError) as error:
            raise self._bad(f"its entry in the manifest is malformed ({error!r})") from None
        if self.bytes != expected:
            raise self._bad(f"it has {self.bytes} bytes and was saved with {expected}")
        if self._chunk_bytes < 1 or len(self._checksums) != -(-self.bytes // self._chunk_bytes):
            raise self._bad("its checksums do not cover it")
        self._file = SafetensorsFile(path)
        self._file.advise(getattr(mmap, "MADV_HUGEPAGE", None))
        layout = self._file.metadata.get(LAYOUT_KEY)
        if layout != LAYOUT:
            raise self._bad(f"its layout is {layout!r}, this lowbit reads {LAYOUT!r}")

    @property
    def names(self) -> list[str]:
        return self._file.names

    def facts(self, name: str) -> dict[str, Any] | None:
        """Returns format, group_size, shape and multiplier of a packed tensor, None for a vector."""
        text = self._file.metadata.get(name)
        return None if text is None else json.loads(text)

    def read(self, name: str) -> np.ndarray:
        """Returns the bytes of a packed tensor, uint8, 64-byte aligned, or an array: views of the mapping."""
        array = self._file.read(name)
        packed = name in self._file.metadata
        if packed and array.dtype != np.uint8:
            raise self._bad(f"tensor {name!r} has dtype {array.dtype}")
        if packed and array.ctypes.data % LINE:
            raise self._bad(f"tensor {name!r} does not start on a {LINE}-byte line")
        return array

    def check(self, chunks: int | None = None) -> None:
        """Compares the first `chunks` chunks (None: all) with their checksums; names damaged tensors. Uses all CPUs."""
        checked = range(len(self._checksums) if chunks is None else min(chunks, len(self._checksums)))
        view = self._file.buffer()

        def damaged(i: int) -> bool:
            chunk = view[i * self._chunk_bytes : (i + 1) * self._chunk_bytes]
            return f"{zlib.crc32(chunk):08x}" != self._checksums[i]

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # crc32 releases the GIL
            bad = [i for i, is_bad in zip(checked, pool.map(damaged, checked), strict=True) if is_bad]
        if bad:
            first, last = bad[0] * self._chunk_bytes, min((bad[-1] + 1) * self._chunk_bytes, self.bytes)
            hit = [n for n, e in self._file.entries.items() if e.start < last and e.stop > first]
            names = ", ".join(hit[:3]) + (f" and {len(hit) - 3} more" if len(hit) > 3 else "") or "its header"
            raise self._bad(f"bytes {first} to {last} do not match their checksum (in {names})")

    def _bad(self, cause: str) -> ValueError:
        return ValueError(f"{self.path} is damaged: {cause}; copy or save the folder again")
