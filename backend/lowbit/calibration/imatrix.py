"""Importance matrices: the mean square of every linear layer's inputs, as llama.cpp computes, stores and names them.

File (llama.cpp's `imatrix.dat`, little-endian): int32 number of entries; of each int32 length of its name, the name,
int32 number of passes, int32 number of values, float32 values (summed over the passes); then int32 number of chunks,
int32 length of the data set's name, the name. Newer files are GGUF: `<name>.in_sum2` over `<name>.counts`.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np

Importance = dict[str, np.ndarray]  # canonical module name ("layers.0.qkv") -> float32 [k]

# llama.cpp's name of a tensor -> ours; layers that share their inputs share an entry.
_NAMES = {
    "attn_q": "qkv", "attn_k": "qkv", "attn_v": "qkv", "attn_qkv": "qkv", "attn_output": "o",
    "ffn_gate": "gate_up", "ffn_up": "gate_up", "ffn_down": "down",
}  # fmt: skip
_STORED = {"qkv": ("attn_q", "attn_k", "attn_v"), "o": ("attn_output",), "down": ("ffn_down",), "up": ("ffn_up",)}
_STORED["gate_up"] = ("ffn_gate", "ffn_up")
_SANE = 1 << 24  # no name, count or width of a real file is larger


def read_imatrix(path: str | Path) -> Importance:
    """Returns the importance matrix of a file of llama.cpp (imatrix.dat or GGUF) or of `write_imatrix`.

    Raises ValueError naming the file where it is cut off, is something else, or holds values that are not finite;
    ImportError naming the extra where a GGUF file needs the gguf package.
    """
    path = Path(path)
    data = path.read_bytes()
    raw = _gguf(path) if data[:4] == b"GGUF" else _dat(data, path)
    result: Importance = {}
    for name, values in raw.items():
        canonical = _canonical(name)
        if canonical is None:
            continue
        if not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(f"{path}: {name} holds values that are negative or not finite; compute the file again")
        result.setdefault(canonical, values.astype(np.float32))
    if not result:
        raise ValueError(f"{path} holds no importance of a layer this project knows; is it an imatrix file?")
    return result


def write_imatrix(path: str | Path, importance: Importance, passes: int, source: str) -> None:
    """Writes an importance matrix as llama.cpp's imatrix.dat; passes: chunks of text, source: what they are from."""
    entries = []
    for name, values in importance.items():
        layer, _, module = name.removeprefix("layers.").partition(".")
        for stored in _STORED[module]:
            label = f"blk.{layer}.{stored}.weight".encode()
            head = struct.pack("<i", len(label)) + label + struct.pack("<ii", passes, len(values))
            entries.append(head + (values.astype("<f4") * np.float32(passes)).tobytes())
    label = source.encode()
    tail = struct.pack("<ii", passes, len(label)) + label
    Path(path).write_bytes(struct.pack("<i", len(entries)) + b"".join(entries) + tail)


def lookup(importance: Importance, name: str) -> np.ndarray | None:
    """Returns the entry for a canonical module; `up` of a plain MLP is what llama.cpp calls ffn_up too."""
    if name.endswith(".up"):
        name = name.removesuffix(".up") + ".gate_up"
    return importance.get(name)


def _canonical(name: str) -> str | None:
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    return f"layers.{match[1]}.{_NAMES[match[2]]}" if match and match[2] in _NAMES else None


def _dat(data: bytes, path: Path) -> dict[str, np.ndarray]:
    at = 0

    def number(what: str) -> int:
        nonlocal at
        if at + 4 > len(data):
            raise ValueError(f"{path} ends where {what} should stand: it is cut off or not an imatrix file")
        (value,) = struct.unpack_from("<i", data, at)
        at += 4
        if not 0 <= value <= _SANE:
            raise ValueError(f"{path} gives {value} as {what}: it is damaged or not an imatrix file")
        return int(value)

    def take(size: int, what: str) -> bytes:
        nonlocal at
        if at + size > len(data):
            raise ValueError(f"{path} ends within {what}: it is cut off")
        at += size
        return data[at - size : at]

    entries: dict[str, np.ndarray] = {}
    for _ in range(number("the number of entries")):
        name = take(number("the length of a name"), "a name").decode(errors="replace")
        passes, count = number("the number of passes"), number("the number of values")
        values = np.frombuffer(take(4 * count, f"the values of {name}"), "<f4")
        entries[name] = values / np.float32(max(1, passes))
    return entries


def _gguf(path: Path) -> dict[str, np.ndarray]:
    try:
        from gguf import GGUFReader  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise ImportError(f"{path} is an importance matrix in GGUF form: pip install gguf to read it") from None
    tensors = {tensor.name: np.asarray(tensor.data, np.float32) for tensor in GGUFReader(path).tensors}
    entries = {}
    for name, sums in tensors.items():
        if name.endswith(".in_sum2") and (counts := tensors.get(name.removesuffix("in_sum2") + "counts")) is not None:
            entries[name.removesuffix(".in_sum2")] = sums.ravel() / max(1.0, float(counts.sum()))
    return entries
