"""GPTQ and AWQ checkpoints of the hub: integer codes, packed eight to an int32, with a scale and a zero per group.

    GPTQ  qweight int32 [k * bits / 32, n], code i of a word at bit bits * i, along k; qzeros int32 [groups,
          n * bits / 32] along n, stored less one (checkpoint_format "gptq") or as they are ("gptq_v2"); scales fp16
          [groups, n]; g_idx int32 [k], the group of each input
    AWQ   ("gemm") qweight int32 [k, n / 8] and qzeros int32 [groups, n / 8], along n in the order 0 2 4 6 1 3 5 7;
          scales fp16 [groups, n]

A weight is (code - zero) * scale. Where the format asked for is a 4-bit integer one, codes and scales are taken over
as they are: no weight is rounded again (asym_int4 rounds minima, zero * scale, to fp16). Otherwise, and where groups
follow activation order, the weights are read as floats. Layouts: AutoGPTQ and AutoAWQ, as transformers documents them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lowbit import ops, reference
from lowbit.formats import FORMATS, GROUP_SIZES, Choice
from lowbit.packed import PANEL_ROWS, PackedTensor
from lowbit.sources._foreign import ORIGINAL

logger = logging.getLogger(__name__)

METHODS = ("gptq", "awq")
PARTS = ("qweight", "qzeros", "scales", "g_idx")
_KEPT = ("sym_int4", "asym_int4")  # formats asked for that take codes over


@dataclass(frozen=True)
class Settings:
    """What a checkpoint's quantization_config says: method, bits, and what is added to a stored zero."""

    method: str
    bits: int
    zero_offset: int


def with_old_config(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a config.json with the quantization_config that AutoGPTQ once kept in a file of its own."""
    path = folder / "quantize_config.json"
    if isinstance(config.get("quantization_config"), dict) or not path.exists():
        return config
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return config
    if not isinstance(found, dict) or not {"bits", "group_size", "desc_act"} <= set(found):
        return config
    return {**config, "quantization_config": {"quant_method": "gptq", **found}}


def settings_of(config: dict[str, Any], folder: Path) -> Settings | None:
    """Returns the settings of a GPTQ or AWQ checkpoint, None for any other.

    Raises ValueError for the variants that are not read here, naming the folder and the variant.
    """
    given = config.get("quantization_config")
    method = str(given.get("quant_method", "")).lower() if isinstance(given, dict) else ""
    if method not in METHODS:
        return None
    assert isinstance(given, dict)
    bits = given.get("bits", given.get("w_bit"))
    version = str(given.get("version", "gemm") if method == "awq" else given.get("checkpoint_format", "gptq")).lower()
    readable = (4,) if method == "awq" else (4, 8)
    if not isinstance(bits, int) or bits not in readable or version not in ("gemm", "gptq", "gptq_v2"):
        raise ValueError(
            f"{folder} is {'an AWQ' if method == 'awq' else 'a GPTQ'} checkpoint of {bits} bits ({version}); read are "
            f"{' and '.join(map(str, readable))} bits ({'gemm' if method == 'awq' else 'gptq, gptq_v2'}); {ORIGINAL}"
        )
    return Settings(method, bits, 1 if method == "gptq" and version == "gptq" else 0)


class IntegerSource:
    """A source whose quantised modules appear as `<module>.weight`, float32 [n, k]; the other tensors as they are."""

    def __init__(self, inner: Any, settings: Settings) -> None:
        self._inner, self.settings = inner, settings
        self._modules = {name.removesuffix("qweight") + "weight" for name in inner.names if name.endswith(".qweight")}
        if not self._modules:
            raise ValueError(
                f"config.json says that this is a {settings.method.upper()} checkpoint, and it has no tensor called "
                "....qweight; the two are from different models: download both again"
            )
        hidden = {name.removesuffix("weight") + part for name in self._modules for part in PARTS}
        self.names: Sequence[str] = [n for n in inner.names if n not in hidden] + sorted(self._modules)

    def info(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        if name not in self._modules:
            return self._inner.info(name)
        (groups, n), k = self._inner.info(self._part(name, "scales"))[1], self._inputs(name)
        if not groups or k % groups:
            raise ValueError(f"tensor {name!r} in {self.file_of(name)} has {groups} groups for {k} inputs")
        return np.dtype(np.float32), (n, k)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        if name not in self._modules:
            return self._inner.read(name, start, stop)
        codes, scales, zeros, groups = self.integers(name, start, stop)
        k, count = codes.shape[1], scales.shape[1]
        columns = groups if groups is not None else np.arange(k) // (k // count)
        values = codes.astype(np.float32) - zeros.astype(np.float32)[:, columns]
        return values * scales.astype(np.float32)[:, columns]

    def file_of(self, name: str) -> Path:
        return self._inner.file_of(self._part(name, "qweight") if name in self._modules else name)

    def release(self, name: str) -> None:
        for part in PARTS if name in self._modules else ():
            if self._part(name, part) in self._inner.names:
                self._inner.release(self._part(name, part))
        if name not in self._modules:
            self._inner.release(name)

    def close(self) -> None:
        self._inner.close()

    # ---- integers -------------------------------------------------------------------------------------------------

    def integers(
        self, name: str, start: int | None = None, stop: int | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
        """Returns rows [start, stop) of a module: codes uint8 [n, k], scales fp16 and zeros uint8 [n, groups], and the
        group of each input where groups are not k / groups consecutive ones."""
        n, k = self.info(name)[1]
        awq = self.settings.method == "awq"
        first, last, _ = slice(start, stop).indices(n)
        codes = self._bytes(name, "qweight", "along_rows_awq" if awq else "along_k", first, last, k)
        groups = self._inner.info(self._part(name, "scales"))[1][0]
        zeros = self._bytes(name, "qzeros", "along_rows_awq" if awq else "along_rows", first, last, groups)
        zeros += np.uint8(self.settings.zero_offset)
        scales = self._inner.read(self._part(name, "scales"))[:, first:last].T
        return codes, np.ascontiguousarray(scales), zeros, self._groups(name, k, groups)

    def _bytes(self, name: str, part: str, order: str, first: int, last: int, k: int) -> np.ndarray:
        """Returns rows [first, last) of packed integers as uint8 [rows, k]."""
        bits = self.settings.bits
        aligned = first if order == "along_k" else first - first % (32 // bits)
        out = np.empty((last - aligned, k), np.uint8)
        words = self._words(name, part)
        try:
            ops.unpack_words(words, order, bits, aligned, out, ops.pool())
        except IndexError as error:
            raise ValueError(
                f"tensor {self._part(name, part)!r} in {self.file_of(name)} has another shape than the others of its "
                f"module ({error}); download it again"
            ) from None
        return out[first - aligned :]

    def packed(self, gathered: Any, choice: Choice, pool: Any = None) -> PackedTensor | None:
        """Returns the canonical tensor of gathered rows with the checkpoint's own codes, None where floats are read.

        gathered: sources.gather.Gathered over this source. choice: the format asked for. pool: whose threads pack.
        """
        pieces = gathered.pieces
        if self.settings.bits != 4 or choice.format.name not in _KEPT:
            return None
        if any(piece.name not in self._modules for piece in pieces):
            return None
        parts = [self.integers(piece.name, piece.start, piece.stop) for piece in pieces]
        if any(piece.transpose for piece in pieces) or len({part[1].shape[1] for part in parts}) > 1:
            return None
        if any(part[3] is not None for part in parts):
            logger.info("%s: its groups follow activation order; its weights are rounded again", gathered.recipe.name)
            return None
        scales, zeros = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
        codes = parts[0][0] if len(parts) == 1 else np.concatenate([part[0] for part in parts])
        k = codes.shape[1]
        group = 0 if scales.shape[1] == 1 and k not in GROUP_SIZES else k // scales.shape[1]
        halves = scales.astype(np.float16)
        if group not in GROUP_SIZES or not np.array_equal(halves, scales):
            return None
        symmetric = bool((zeros == 8).all())
        format = FORMATS["sym_int4" if symmetric else "asym_int4"]
        minima = None
        if not symmetric:
            minima = (-zeros.astype(np.float32) * scales.astype(np.float32)).astype(np.float16)
        if gathered.recipe.interleave:
            codes, halves = _alternating(codes, reference.zero_code(format)), _alternating(halves)
            minima = None if minima is None else _alternating(minima)
        return PackedTensor.from_codes(format, group, codes, halves, minima, pool=pool)

    def _part(self, name: str, part: str) -> str:
        return name.removesuffix("weight") + part

    def _inputs(self, name: str) -> int:
        rows = self._inner.info(self._part(name, "qweight"))[1][0]
        return rows if self.settings.method == "awq" else rows * (32 // self.settings.bits)

    def _words(self, name: str, part: str) -> np.ndarray:
        array = self._inner.read(self._part(name, part))
        if array.dtype != np.int32 or array.ndim != 2:
            raise ValueError(
                f"tensor {self._part(name, part)!r} in {self.file_of(name)} is {array.dtype} {list(array.shape)} where "
                "an int32 matrix was expected; download it again"
            )
        return array.view(np.uint32)

    def _groups(self, name: str, k: int, groups: int) -> np.ndarray | None:
        """Returns g_idx where it is not what consecutive groups of one size have."""
        index = self._part(name, "g_idx")
        if index not in self._inner.names:
            return None
        found = self._inner.read(index)
        return None if np.array_equal(found, np.arange(k) // (k // groups)) else found


def _alternating(rows: np.ndarray, filler: int = 0) -> np.ndarray:
    """Returns the two halves of the rows as alternating panels, each padded to whole ones."""
    half = len(rows) // 2
    panels = -(-half // PANEL_ROWS)
    out = np.full((2, panels * PANEL_ROWS, rows.shape[1]), filler, rows.dtype)
    out[0, :half], out[1, :half] = rows[:half], rows[half:]
    return out.reshape(2, panels, PANEL_ROWS, -1).swapaxes(0, 1).reshape(-1, rows.shape[1])
