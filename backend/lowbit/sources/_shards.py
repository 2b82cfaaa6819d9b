"""Several weight files as one source; the index file that names them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np


class Shards:
    """A source over files that each hold some of the tensors; weight_map is tensor -> file name, None for one file.

    Raises ValueError when the index and the files contradict each other, or two files hold the same tensor.
    """

    def __init__(self, files: Sequence, weight_map: dict[str, str] | None) -> None:
        self.files = list(files)
        self._by_name: dict = {}
        by_file_name = {file.path.name: file for file in self.files}
        if weight_map is None:
            weight_map = {name: file.path.name for file in self.files for name in file.names}
        held = {name: set(file.names) for name, file in by_file_name.items()}
        for name, file_name in weight_map.items():
            if name not in held[file_name]:
                raise ValueError(
                    f"the index says tensor {name!r} is in {by_file_name[file_name].path}, but it is not there; "
                    "the shards are from different models or incomplete: download the folder again"
                )
            self._by_name[name] = by_file_name[file_name]

    @property
    def names(self) -> list[str]:
        return list(self._by_name)

    def file_of(self, name: str) -> Path:
        return self._file(name).path

    def info(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        return self._file(name).info(name)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        return self._file(name).read(name, start, stop)

    def release(self, name: str) -> None:
        self._file(name).release(name)

    def close(self) -> None:
        for file in self.files:
            file.close()
        self._by_name = {}

    def _file(self, name: str):
        if name not in self._by_name:
            where = ", ".join(str(file.path) for file in self.files[:3]) or "a closed source"
            raise KeyError(f"no tensor {name!r} in {where}{nearest(name, self._by_name)}")
        return self._by_name[name]


def find_files(folder: Path, single: str, index: str) -> tuple[list[Path], dict[str, str] | None] | None:
    """Returns (files, tensor -> file name or None) of a folder, or None when it has neither `single` nor `index`.

    Raises FileNotFoundError naming the listed shards that the folder lacks, ValueError for a damaged index.
    """
    if (folder / single).exists():
        return [folder / single], None
    path = folder / index
    if not path.exists():
        return None
    weight_map = read_index(path)
    names = sorted(set(weight_map.values()))
    if missing := [name for name in names if not (folder / name).exists()]:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise FileNotFoundError(
            f"{len(missing)} of the {len(names)} shards listed in {path} are missing: {listed}; "
            f"download them into {folder}"
        )
    return [folder / name for name in names], weight_map


def read_index(path: Path) -> dict[str, str]:
    """Returns tensor -> file name of an index file. Raises ValueError when it is damaged or points elsewhere."""
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError("weight_map is not a table of names")
        if not all(isinstance(name, str) and Path(name).name == name for name in weight_map.values()):
            raise ValueError("weight_map names files outside the folder")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); download it again") from None
    return weight_map


def nearest(name: str, names: Collection[str]) -> str:
    """Returns '; nearest: ...' with the names closest to a wrong one, or an empty string."""
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"; nearest: {', '.join(close)}" if close else ""
