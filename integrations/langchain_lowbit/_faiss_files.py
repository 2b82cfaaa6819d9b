"""Folders of a vector store: our own (FAISS file, JSON lines, manifest; no pickle), and langchain-community's to read.

A save writes new files, then replaces the manifest, then removes the files that the old manifest named: whenever it is
interrupted, the folder holds one complete store.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from langchain_lowbit._faiss import VectorIndex, require_faiss

MANIFEST = "manifest.json"
FORMAT, VERSION = "lowbit-faiss", 1


def save(folder: Path, index: VectorIndex, documents: Iterable[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Writes a store's folder. documents: {"key", "id", "text", "metadata"}, a JSON line each. about: for the manifest.

    Raises TypeError for metadata that JSON cannot hold, naming the document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = _read_manifest(folder) if (folder / MANIFEST).exists() else {}
    generation = int(old.get("generation", 0)) + 1
    paths = {
        "index": folder / f"index-{generation}.faiss",
        "documents": folder / f"documents-{generation}.jsonl",
    }
    index.write(paths["index"])
    with paths["documents"].open("w", encoding="utf-8") as lines:
        for document in documents:
            lines.write(_line(document) + "\n")
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "generation": generation,
        "count": len(index),
        "index": index.state(),
        **about,
        "files": {what: {"name": path.name, "sha256": _sha256(path)} for what, path in paths.items()},
    }
    fresh = folder / (MANIFEST + ".new")
    fresh.write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, folder / MANIFEST)
    for entry in old.get("files", {}).values():
        (folder / Path(entry["name"]).name).unlink(missing_ok=True)


def _line(document: Mapping[str, Any]) -> str:
    try:
        return json.dumps(document, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the metadata of document {document['id']!r} does not fit into JSON ({error}): "
            "use texts, numbers, booleans, None, lists and dicts"
        ) from error


def load(folder: Path) -> tuple[VectorIndex, list[dict[str, Any]], dict[str, Any]]:
    """Returns (index, documents, manifest) of a folder that `save` wrote.

    Raises FileNotFoundError when it is none, ValueError when a file is damaged or from a newer version.
    """
    if not (folder / MANIFEST).exists():
        hint = ""
        if (folder / "index.pkl").exists():
            hint = ": it looks like langchain-community's; read it once with FaissVectorStore.load_community_folder"
        raise FileNotFoundError(f"{folder} is not a folder that FaissVectorStore.save_local wrote{hint}")
    manifest = _read_manifest(folder)
    paths = {what: folder / Path(entry["name"]).name for what, entry in manifest["files"].items()}
    for what, path in paths.items():
        if not path.exists():
            raise ValueError(f"{folder} is incomplete: {path.name} is missing")
        if _sha256(path) != manifest["files"][what]["sha256"]:
            raise ValueError(f"{path} is damaged: its checksum is not the manifest's; build the store again")
    index = VectorIndex.read(paths["index"], manifest["index"])
    with paths["documents"].open(encoding="utf-8") as lines:
        documents = [json.loads(line) for line in lines]
    if not len(index) == len(documents) == manifest["count"]:
        raise ValueError(
            f"{folder} is inconsistent: {len(index)} vectors, {len(documents)} documents, {manifest['count']} in its "
            "manifest; build the store again"
        )
    return index, documents, manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{path} is not a manifest of FaissVectorStore; choose another folder")
    missing = {"version", "generation", "count", "index", "files"} - set(manifest)
    if missing:
        raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: build the store again")
    if manifest["version"] > VERSION:
        raise ValueError(f"{path} is of version {manifest['version']}, this lowbit reads up to {VERSION}: upgrade it")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- langchain-community's folder: index.faiss and a pickle of (docstore, {position: id}) ----


class _Stored:
    """Stands in for a pickled object: keeps its state, runs none of its code."""

    state: dict[str, Any]

    def __init__(self, *_: Any) -> None:
        self.state = {}

    def __setstate__(self, state: Any) -> None:
        self.state = dict(state)


# What such a pickle may name: the classes of its documents, as stand-ins, and values that occur in metadata.
_DOCSTORES = {
    ("langchain_community.docstore.in_memory", "InMemoryDocstore"),
    ("langchain.docstore.in_memory", "InMemoryDocstore"),
}
_DOCUMENTS = {
    ("langchain_core.documents.base", "Document"),
    ("langchain.schema.document", "Document"),
    ("langchain.schema", "Document"),
    ("langchain.docstore.document", "Document"),
}
_VALUES = {
    *(("datetime", name) for name in ("datetime", "date", "time", "timedelta", "timezone")),
    ("decimal", "Decimal"),
    ("uuid", "UUID"),
    ("collections", "OrderedDict"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _DOCSTORES | _DOCUMENTS:
            return _Stored
        if (module, name) in _VALUES:
            return super().find_class(module, name)
        raise ValueError(
            f"the pickle names {module}.{name}, which no folder of documents needs: it is not read. "
            "If it is in the metadata of your own documents, remove it there and save the folder again"
        )


def load_community(folder: Path, index_name: str) -> tuple[np.ndarray, str, list[dict[str, Any]]]:
    """Returns (vectors fp32 [n, dimension], metric, documents) of a folder that langchain-community's FAISS saved.

    The pickle is read by an unpickler that knows documents and plain values and refuses every other class. Raises
    FileNotFoundError when a file is missing, ValueError for a pickle of anything else or an index that does not hold
    the vectors themselves.
    """
    faiss = require_faiss()
    for suffix in (".faiss", ".pkl"):
        if not (folder / (index_name + suffix)).exists():
            raise FileNotFoundError(f"{folder} has no {index_name}{suffix}: it is not a folder of langchain-community")
    index = faiss.read_index(str(folder / f"{index_name}.faiss"))
    if not isinstance(index, faiss.IndexFlat):
        raise ValueError(f"{folder} holds a {type(index).__name__}; only flat indexes keep the vectors: embed again")
    with (folder / f"{index_name}.pkl").open("rb") as file:
        try:
            docstore, ids = _Unpickler(file).load()
        except (pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / index_name}.pkl is not langchain-community's: {error}") from error
    if not (isinstance(docstore, _Stored) and isinstance(ids, dict) and len(ids) == index.ntotal):
        raise ValueError(f"{folder / index_name}.pkl does not hold the documents of {index.ntotal} vectors")
    metric = "inner_product" if index.metric_type == faiss.METRIC_INNER_PRODUCT else "l2"
    return index.reconstruct_n(0, index.ntotal), metric, list(_community_documents(docstore, ids))


def _community_documents(docstore: _Stored, ids: Mapping[int, str]) -> Iterator[dict[str, Any]]:
    stored = docstore.state.get("_dict", {})
    for position in range(len(ids)):
        document = stored.get(ids.get(position))
        fields = document.state.get("__dict__") if isinstance(document, _Stored) else None  # pydantic's state
        if not isinstance(fields, Mapping):
            raise ValueError(f"the pickle has no document for vector {position}: embed again")
        yield {"id": ids[position], "text": fields["page_content"], "metadata": dict(fields.get("metadata") or {})}
