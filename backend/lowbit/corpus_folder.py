"""The folder of an embedded corpus: read when it is finished, written chunk by chunk until then. Knows no model.

    corpus.json       what was embedded how, and how far it got
    vectors.npy       float32 [passages, dimension]
    documents.jsonl   {"key", "id", "text", "metadata"} of each row, as a vector store keeps them

A chunk counts once it is on the disk and corpus.json, replaced in one step, says so; what lies behind it is cut off.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from lowbit.passages import Passage
from lowbit.vector_folder import checked_manifest, line_of, replace_json

MANIFEST, VECTORS, DOCUMENTS = "corpus.json", "vectors.npy", "documents.jsonl"
FORMAT, VERSION = "lowbit-corpus", 1


@dataclass(frozen=True)
class Corpus:
    """A folder of embedded passages. about: its manifest. vectors: float32 [passages, dimension], mapped read-only."""

    folder: Path
    about: Mapping[str, Any]
    vectors: np.ndarray

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Returns a finished corpus. Raises FileNotFoundError for another folder, ValueError for an unfinished one."""
        folder = Path(folder).expanduser()
        if not (folder / MANIFEST).exists():
            raise FileNotFoundError(f"{folder} holds no embedded corpus; make one with `lowbit embed` or embed_corpus")
        about = _read(folder)
        if not about["complete"]:
            raise ValueError(f"{folder} is not finished ({about['passages']} passages so far): embed again to go on")
        _check_files(folder, about)
        return cls(folder, about, np.load(folder / VECTORS, mmap_mode="r"))

    def __len__(self) -> int:
        return int(self.about["passages"])

    def documents(self) -> Iterator[dict[str, Any]]:
        """Returns an iterator of {"key", "id", "text", "metadata"}, key being the row of the vector."""
        with (self.folder / DOCUMENTS).open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)


def checksum(passage: Passage, before: int) -> int:
    """Returns the CRC-32 of passages so far, from that of those before."""
    return zlib.crc32(f"{passage.id}\0{passage.text}\0".encode("utf-8", "surrogatepass"), before)


class CorpusWriter:
    """A corpus while it grows, locked against other processes. Use as a context; one that exists is gone on with.

    asked: what must be the same to go on, {"source", "model", "options"}, each a JSON-ready dict. Raises ValueError
    naming what differs, FileExistsError for a folder of other things, BlockingIOError while another process writes.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Mapping[str, Any]], dimension: int) -> None:
        self.folder = folder
        self._asked = json.loads(json.dumps(asked))  # as it will be read back
        self._dimension = dimension
        self._open = ExitStack()

    @property
    def complete(self) -> bool:
        """Whether nothing can be added any more."""
        return bool(self._about["complete"])

    @property
    def passages(self) -> int:
        """How many are on the disk."""
        return int(self._about["passages"])

    @property
    def checksum(self) -> int:
        """The `checksum` of those."""
        return int(self._about["crc32"])

    def __enter__(self) -> CorpusWriter:
        with ExitStack() as opening:
            self._lock(opening)
            if (self.folder / MANIFEST).exists():
                self._about = _read(self.folder)
                _refuse_change(self.folder, self._about, self._asked)
                _check_files(self.folder, self._about)
            else:
                self._begin()
            self._vectors = self._opened(VECTORS, opening)
            self._documents = self._opened(DOCUMENTS, opening)
            if not self.complete:
                header = self._write_header(0)  # rows are told at the end: nobody takes a part for the whole
                self._vectors.truncate(header + self.passages * self._dimension * 4)
                self._documents.truncate(self._about["documents_bytes"])
                for file in (self._vectors, self._documents):
                    file.seek(0, os.SEEK_END)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _lock(self, opening: ExitStack) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.folder, os.O_RDONLY)
        opening.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process embeds into {self.folder}; wait for it, or choose another folder"
            ) from None

    def _begin(self) -> None:
        if any(self.folder.iterdir()):
            raise FileExistsError(f"{self.folder} exists and holds no corpus: it is left alone; choose another name")
        for name in (VECTORS, DOCUMENTS):
            (self.folder / name).touch()
        self._about = {
            "format": FORMAT, "version": VERSION, **self._asked, "dimension": self._dimension, "passages": 0,
            "documents_bytes": 0, "crc32": 0, "complete": False,
        }  # fmt: skip
        replace_json(self.folder / MANIFEST, self._about)

    def _opened(self, name: str, opening: ExitStack) -> BinaryIO:
        return opening.enter_context((self.folder / name).open("r+b"))

    def _write_header(self, rows: int) -> int:
        """Returns the bytes of the .npy header, which has room for any number of rows."""
        self._vectors.seek(0)
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows, self._dimension)}
        np.lib.format.write_array_header_1_0(self._vectors, header)
        return self._vectors.tell()

    def first_vector(self) -> np.ndarray:
        """Returns the vector of the first passage, float32 [dimension]."""
        end = self._vectors.seek(0, os.SEEK_END)
        self._vectors.seek(end - self.passages * self._dimension * 4)
        vector = np.frombuffer(self._vectors.read(self._dimension * 4), "<f4")
        self._vectors.seek(end)
        return vector

    def add(self, chunk: Sequence[Passage], vectors: np.ndarray) -> None:
        """Appends passages and their vectors [len(chunk), dimension]; they count when this returns.

        Raises TypeError for metadata that JSON cannot hold, OSError when the disk is full.
        """
        first, crc32, lines = self.passages, self.checksum, []
        for key, passage in enumerate(chunk, first):
            row = {"key": key, "id": passage.id, "text": passage.text, "metadata": passage.metadata}
            lines.append(line_of(row).encode())
            crc32 = checksum(passage, crc32)
        try:
            self._vectors.write(np.ascontiguousarray(vectors, "<f4").data)
            self._documents.write(b"".join(lines))
            self._keep(passages=first + len(chunk), crc32=crc32, documents_bytes=self._documents.tell())
        except OSError as error:
            raise type(error)(
                error.errno,
                f"could not write to {self.folder}: {error.strerror}; {first} passages are kept, the same call goes on "
                "when there is room",
            ) from error

    def finish(self) -> None:
        """Makes the corpus complete. Raises ValueError for one without passages."""
        if not self.passages:
            raise ValueError(f"there are no passages with text to embed; nothing is in {self.folder}")
        self._write_header(self.passages)
        self._keep(complete=True)

    def _keep(self, **changes: Any) -> None:
        for file in (self._vectors, self._documents):
            file.flush()
            os.fsync(file.fileno())
        about = self._about | changes
        replace_json(self.folder / MANIFEST, about)
        self._about = about


def _read(folder: Path) -> dict[str, Any]:
    names = {"source", "model", "options", "dimension", "passages", "documents_bytes", "crc32", "complete"}
    remedy = f"remove {folder} and embed again"
    return checked_manifest(folder / MANIFEST, FORMAT, VERSION, names, "an embedded corpus", remedy)


def _check_files(folder: Path, about: Mapping[str, Any]) -> None:
    """Raises ValueError when the files hold less than the manifest says."""
    needed = {VECTORS: about["passages"] * about["dimension"] * 4, DOCUMENTS: about["documents_bytes"]}
    for name, size in needed.items():
        path = folder / name
        if not path.exists():
            raise ValueError(f"{path} is gone (a store saved into the folder replaced it); embed into another folder")
        if path.stat().st_size < size:
            raise ValueError(f"{path} is shorter than {MANIFEST} says; remove {folder} and embed again")


def _refuse_change(folder: Path, about: Mapping[str, Any], asked: Mapping[str, Mapping[str, Any]]) -> None:
    for part, wanted in asked.items():
        for name in sorted({*about[part], *wanted} - {"file"}):  # a renamed file is the same passages
            old, new = about[part].get(name), wanted.get(name)
            if old != new:
                raise ValueError(
                    f"{folder} was begun with {part} {name} {old!r}, it is {new!r} now; give the same again to go on, "
                    "or another folder"
                )
