"""The folder of a vector store: a FAISS file, documents as JSON lines, a manifest with checksums; no pickle.

Knows no framework: `lowbit embed` writes such folders, LangChain's FaissVectorStore writes and opens them. A save
writes new files, then replaces the manifest, then removes the files that the old manifest named: whenever it is
interrupted, the folder holds one complete store.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lowbit.vector_index import VectorIndex

MANIFEST = "manifest.json"
FORMAT, VERSION = "lowbit-faiss", 1


def save(
    folder: Path, index: VectorIndex, documents: Iterable[Mapping[str, Any]] | Path, about: Mapping[str, Any]
) -> None:
    """Writes a store's folder. about: for the manifest. documents: {"key", "id", "text", "metadata"}, a JSON line each.

    documents may be a file of such lines that is in the folder already: it becomes the store's own. Raises TypeError
    for metadata that JSON cannot hold, naming the document.
    """
    folder.mkdir(parents=True, exist_ok=True)
    old = read_manifest(folder) if (folder / MANIFEST).exists() else {}
    generation = int(old.get("generation", 0)) + 1
    paths = {"index": folder / f"index-{generation}.faiss", "documents": folder / f"documents-{generation}.jsonl"}
    index.write(paths["index"])
    if isinstance(documents, Path):
        paths["documents"] = documents
    else:
        with paths["documents"].open("w", encoding="utf-8") as lines:
            for document in documents:
                lines.write(line_of(document))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "generation": generation,
        "count": len(index),
        "index": index.state(),
        **about,
        "files": {what: {"name": path.name, "sha256": _sha256(path)} for what, path in paths.items()},
    }
    replace_json(folder / MANIFEST, manifest)
    kept = {path.name for path in paths.values()}
    for name in {Path(entry["name"]).name for entry in old.get("files", {}).values()} - kept:
        (folder / name).unlink(missing_ok=True)


def replace_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file in one step: whoever opens the name finds the old file or the new one, also after a crash."""
    fresh = path.with_name(path.name + ".new")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, path)


def line_of(document: Mapping[str, Any]) -> str:
    """Returns the line of a document in a store's file. Raises TypeError naming the document for bad metadata."""
    try:
        line = json.dumps(document, ensure_ascii=False)
        return (line if _is_utf8(line) else json.dumps(document)) + "\n"
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the metadata of document {document['id']!r} does not fit into JSON ({error}): "
            "use texts, numbers, booleans, None, lists and dicts"
        ) from error


def _is_utf8(line: str) -> bool:
    """Whether a line holds no half of a surrogate pair, which survives only escaped."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def load(folder: Path) -> tuple[VectorIndex, list[dict[str, Any]], dict[str, Any]]:
    """Returns (index, documents, manifest) of a folder that `save` wrote.

    Raises FileNotFoundError when it is none, ValueError when a file is damaged or from a newer version.
    """
    if not (folder / MANIFEST).exists():
        hint = ""
        if (folder / "index.pkl").exists():
            hint = ": it looks like langchain-community's; read it once with FaissVectorStore.load_community_folder"
        if (folder / "corpus.json").exists():
            hint = ": it holds embeddings without an index; run `lowbit embed` again with --index flat, ivf or hnsw"
        raise FileNotFoundError(
            f"{folder} is not a folder that FaissVectorStore.save_local or `lowbit embed` wrote{hint}"
        )
    manifest = read_manifest(folder)
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """Returns the manifest of a store's folder. Raises ValueError for one of something else or of a newer version."""
    names = {"generation", "count", "index", "files"}
    return checked_manifest(folder / MANIFEST, FORMAT, VERSION, names, "FaissVectorStore", "build the store again")


def checked_manifest(path: Path, format: str, version: int, names: set[str], owner: str, remedy: str) -> dict[str, Any]:
    """Returns a manifest that has these names, of this format and at most this version.

    Raises ValueError for any other file. owner, remedy: for its text, whose manifest was expected and what to do.
    """
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {remedy}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != format:
        raise ValueError(f"{path} is not a manifest of {owner}; choose another folder")
    if manifest.get("version", 0) > version:
        raise ValueError(f"{path} is of version {manifest['version']}, this lowbit reads up to {version}: upgrade it")
    if missing := sorted(names - set(manifest)):
        raise ValueError(f"{path} lacks {', '.join(missing)}: {remedy}")
    return manifest


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
