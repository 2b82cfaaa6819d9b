"""Where weights come from: one small protocol, one file per kind of file.

Owns the choice of reader for a folder and the refusal, in plain words, of kinds that are not read here. A source maps
files and reads rows when asked; it never holds a model, never converts a number, and never touches the network (hub.py
does).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from lowbit.sources import safetensors, torch_bin
from lowbit.sources._foreign import refuse_foreign

READERS = (safetensors, torch_bin)  # best first: a folder that has both is read from safetensors


class Source(Protocol):
    """Named tensors that are read row by row. bf16 arrives as `ops.BF16`, all else as native numpy dtypes."""

    names: Sequence[str]

    def info(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        """Returns dtype and shape. Raises KeyError with the nearest names, ValueError for a dtype that is not read."""

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """Returns rows [start, stop) of a tensor as a read-only array, which may be a view of the mapped file."""

    def file_of(self, name: str) -> Path:
        """Returns the file a tensor is stored in, for error messages."""

    def release(self, name: str) -> None:
        """Gives the memory of a tensor's pages back; the tensor can still be read again."""

    def close(self) -> None:
        """Ends the source. Arrays that were read stay valid."""


def open_source(path: str | Path) -> Source:
    """Returns the source for a folder of Hugging Face weights: safetensors if there are any, else `pytorch_model.bin`.

    Raises FileNotFoundError when the folder or its weights are missing (naming what was looked for), ValueError when a
    file is damaged or of a kind that is not read here.
    """
    folder = Path(path).expanduser()
    if not folder.exists():
        raise FileNotFoundError(f"no folder at {folder}; give a folder that contains config.json and model.safetensors")
    if not folder.is_dir():
        refuse_foreign(folder)
        raise ValueError(f"{folder} is a file; give the folder that contains it, with config.json beside the weights")
    for reader in READERS:
        if files := reader.find(folder):
            return reader.open_files(*files)
    refuse_foreign(folder)
    looked_for = ", ".join(name for reader in READERS for name in (reader.SINGLE, reader.INDEX))
    raise FileNotFoundError(f"no weights in {folder}: looked for {looked_for}")
