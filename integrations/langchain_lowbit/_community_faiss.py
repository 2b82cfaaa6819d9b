"""Reads folders that langchain-community's FAISS saved: index.faiss and a pickle of (docstore, {position: id})."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowbit.vector_index import require_faiss


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
