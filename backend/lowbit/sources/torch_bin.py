"""`pytorch_model.bin`, single or sharded: pickles, read by torch with `weights_only=True` (nothing in them is
executed).

Needs the extra `lowbit[torch]`. The storages are mapped where the file allows it (zip files, torch 1.6 and later).
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from lowbit.ops import BF16
from lowbit.sources._shards import Shards, find_files, nearest

SINGLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"

REOPEN_BYTES = 256 << 20  # torch keeps one mapping per file: it is dropped and made anew after reading this much


def find(folder: Path) -> tuple[list[Path], dict[str, str] | None] | None:
    """Returns the files of a folder and the shard of each tensor, or None when it holds no `pytorch_model.bin`."""
    return find_files(folder, SINGLE, INDEX)


def open_files(files: list[Path], weight_map: dict[str, str] | None) -> Shards:
    """Returns the source over the files. Raises ImportError without torch, ValueError for a damaged or unsafe file."""
    try:
        import torch  # noqa: F401  (checked here so that the message comes before any file is opened)
    except ImportError:
        raise ImportError(
            f"{files[0]} is a PyTorch pickle and needs torch to be read: pip install 'lowbit[torch]', "
            "or use a safetensors version of the model"
        ) from None
    return Shards([TorchFile(file) for file in files], weight_map)


class TorchFile:
    """One pickle of tensors; opened lazily, and again after REOPEN_BYTES so that pages read are given back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._tensors: dict | None = None
        self._read_bytes = 0
        self.names = [name for name, value in self._open().items() if hasattr(value, "untyped_storage")]

    def info(self, name: str) -> tuple[np.dtype, tuple[int, ...]]:
        tensor = self._tensor(name)
        return self._dtype(name, tensor), tuple(tensor.shape)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        import torch

        tensor = self._tensor(name)
        dtype = self._dtype(name, tensor)
        part = tensor.detach()
        if start is not None or stop is not None:
            part = part[start:stop]
        part = part.contiguous()
        self._read_bytes += part.nbytes
        array = part.view(torch.int16).numpy().view(BF16) if dtype == BF16 else part.numpy()
        array.flags.writeable = False
        return array

    def release(self, name: str) -> None:
        if self._read_bytes >= REOPEN_BYTES:
            self._tensors = None

    def close(self) -> None:
        self._tensors = None
        self.names = []

    def _open(self) -> dict:
        if self._tensors is None:
            self._tensors = _load(self.path)
            self._read_bytes = 0
        return self._tensors

    def _tensor(self, name: str):
        if name not in self.names:
            raise KeyError(f"no tensor {name!r} in {self.path}{nearest(name, self.names)}")
        return self._open()[name]

    def _dtype(self, name: str, tensor) -> np.dtype:
        import torch

        if tensor.dtype == torch.bfloat16:
            return BF16
        try:
            return torch.empty(0, dtype=tensor.dtype).numpy().dtype
        except TypeError:
            raise ValueError(
                f"tensor {name!r} in {self.path} is stored as {tensor.dtype}, which lowbit does not read; "
                "load a checkpoint with bf16, fp16 or fp32 weights"
            ) from None


def _load(path: Path) -> dict:
    import torch

    def load(**options) -> object:
        return torch.load(path, map_location="cpu", weights_only=True, **options)

    path.open("rb").close()  # a file that may not be read is not a damaged one
    try:
        try:
            tensors = load(mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            tensors = load()  # the format from before torch 1.6 cannot be mapped
    except pickle.UnpicklingError as error:
        cause = str(error).splitlines()[0]
        raise ValueError(
            f"{path} holds more than tensors, or is damaged ({cause}); it was refused because loading it could run "
            "code. Use a safetensors version of the model"
        ) from None
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} is not a sound PyTorch file ({cause}); download it again") from None
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict):
        raise ValueError(f"{path} holds a {type(tensors).__name__} where a table of tensors was expected")
    return tensors
