"""FaissVectorStore: texts found by their vectors, in memory, on faiss-cpu; saved without pickle.

The class of that purpose in langchain-community is archived and pickles its documents. This one keeps them as JSON
lines, says which metric its scores are, filters before it ranks, and checks that folder and embedding fit together.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables.config import run_in_executor
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

from langchain_lowbit._chunks import chunks
from langchain_lowbit._community_faiss import load_community
from langchain_lowbit._filters import Filter, predicate
from lowbit import vector_folder
from lowbit.vector_index import METRICS, VectorIndex, choose, kind_options

# Cosine between the stored vector of a document and a fresh one, below which the embedding is another model. Measured
# with all-MiniLM-L6-v2 against fp32: from 0.999 in sym_int8, 0.94 in 4 and 0.85 in 3 bits; other pooling, up to 0.65.
SAME_MODEL = 0.8

_RELEVANCE: dict[str, Callable[[float], float]] = {
    "cosine": lambda score: max(0.0, score),
    "l2": lambda score: 1.0 / (1.0 + score),
}


class FaissVectorStore(VectorStore):
    """Documents in memory, found by the vectors of an embedding model.

    embedding: any LangChain embeddings. metric: what scores are: "cosine" (-1 to 1), "inner_product" (both: more is
    better) or "l2" (Euclidean distance, not squared: less is better). index: "flat" compares with every vector; "ivf"
    (options nlist, nprobe) and "hnsw" (m, ef_construction, ef_search) look at a part, for some 100 000 texts and more.
    relevance_score_fn: score -> 0 to 1 for `score_threshold`, if not the metric's own (cosine: negative ones become
    0; l2: 1 / (1 + distance); inner_product has none).

    Adding a text under an id that exists replaces it. `filter` is a dict of conditions on the metadata or a function
    of it (see `_filters.predicate`); a filtered search looks at every document that passes. Safe to use from several
    threads.

        store = FaissVectorStore.from_texts(["a fox", "a house"], embeddings, [{"page": 1}, {"page": 2}])
        store.similarity_search_with_score("animal", k=1, filter={"page": [1, 2]})
        store.save_local("./store")
        store = FaissVectorStore.load_local("./store", embeddings)
    """

    def __init__(
        self,
        embedding: Embeddings,
        *,
        metric: str = "cosine",
        index: str = "flat",
        index_options: dict[str, int] | None = None,
        relevance_score_fn: Callable[[float], float] | None = None,
    ) -> None:
        choose(METRICS, "metric", metric)
        self.embedding = embedding
        self.metric = metric
        self._kind, self._kind_options = index, kind_options(index, index_options)
        self._relevance = relevance_score_fn
        self._lock = threading.RLock()
        self._index: VectorIndex | None = None  # made by the first vectors, which tell the dimension
        self._documents: dict[int, Document] = {}
        self._keys: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._documents)

    @property
    def embeddings(self) -> Embeddings:
        """The embedding model of texts and queries."""
        return self.embedding

    @property
    def dimension(self) -> int | None:
        """Length of the vectors; None while there has been none."""
        return None if self._index is None else self._index.dimension

    # ---- adding and removing ----

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Returns the ids of the texts, which can be found from now on; a text under an existing id replaces it.

        texts may be a generator: it is embedded and added in pieces of 1024. ids: None, as a whole or for some, makes
        new ones. Raises ValueError when metadatas or ids are fewer or more than the texts, and when the embedding's
        dimension is not the index's.
        """
        _refuse(kwargs)
        added: list[str] = []
        for rows in chunks(texts, metadatas, ids, show_progress):
            added += self._insert(rows, self._embed([text for text, _, _ in rows]))
        return added

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """The same as `add_texts`, leaving the event loop free."""
        _refuse(kwargs)
        added: list[str] = []
        for rows in chunks(texts, metadatas, ids, show_progress):
            vectors = await self.embedding.aembed_documents([text for text, _, _ in rows])
            added += await run_in_executor(None, self._insert, rows, vectors)
        return added

    def add_embeddings(
        self,
        text_embeddings: Iterable[tuple[str, Sequence[float]]],
        metadatas: Iterable[dict[str, Any]] | None = None,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Returns the ids of (text, vector) pairs whose vectors exist already; otherwise as `add_texts`."""
        added: list[str] = []
        for rows in chunks(text_embeddings, metadatas, ids, False):
            added += self._insert(
                [(text, metadata, id_) for (text, _), metadata, id_ in rows], [vector for (_, vector), _, _ in rows]
            )
        return added

    def _embed(self, texts: list[str]) -> Any:
        # Our own classes hand over an array; a list of lists of Python floats takes ten times its memory.
        as_array = getattr(self.embedding, "embed_documents_array", None)
        return as_array(texts) if as_array is not None else self.embedding.embed_documents(texts)

    def _insert(self, rows: Sequence[tuple[str, dict[str, Any], str | None]], vectors: Any) -> list[str]:
        array = np.asarray(vectors, dtype=np.float32)
        if array.ndim != 2 or len(array) != len(rows) or array.shape[1] == 0:
            raise ValueError(f"the embedding gave an array of shape {array.shape} for {len(rows)} texts")
        ids = [id_ or str(uuid.uuid4()) for _, _, id_ in rows]
        with self._lock:
            if self._index is None:
                self._index = VectorIndex(array.shape[1], self.metric, self._kind, self._kind_options)
            replaced = []
            # Vectors first: when they are refused, nothing has changed.
            for key, id_, (text, metadata, _) in zip(self._index.add(array).tolist(), ids, rows, strict=True):
                if id_ in self._keys:
                    replaced.append(self._keys[id_])
                self._keys[id_] = key
                self._documents[key] = Document(id=id_, page_content=text, metadata=dict(metadata))
            self._drop(replaced)
        return ids

    def _drop(self, keys: list[int]) -> None:
        if self._index is None or not keys:
            return
        for key in keys:
            del self._documents[key]
        renumbered = self._index.remove(keys)
        if renumbered is not None:
            self._documents = {renumbered[key]: document for key, document in self._documents.items()}
            self._keys = {id_: renumbered[key] for id_, key in self._keys.items()}

    def delete(self, ids: Sequence[str] | None = None, **kwargs: Any) -> bool:
        """Returns True; the documents of these ids are gone (None: all). Ids that do not exist are passed over."""
        _refuse(kwargs)
        with self._lock:
            if ids is None:
                self._index, self._documents, self._keys = None, {}, {}
            else:
                self._drop([self._keys.pop(id_) for id_ in dict.fromkeys(ids) if id_ in self._keys])
        return True

    # ---- reading and searching ----

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Returns the documents of the ids that exist, in the order asked for."""
        with self._lock:
            return [_copy(self._documents[self._keys[id_]]) for id_ in ids if id_ in self._keys]

    def _nearest(self, vector: Sequence[float], k: int, filter: Filter | None) -> tuple[np.ndarray, np.ndarray]:
        """(keys, scores) of the k nearest documents that pass the filter; the caller holds the lock."""
        if k < 0:
            raise ValueError(f"k must not be negative; got {k}")
        if self._index is None:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        among = None
        if filter is not None:
            passes = predicate(filter)
            among = [key for key, document in self._documents.items() if passes(document.metadata)]
        return self._index.search(vector, k, among)

    def similarity_search_with_score_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Returns the k nearest documents of a vector with their scores, best first; what a score is says the metric.

        Raises ValueError for a vector of another dimension than the index's.
        """
        _refuse(kwargs)
        with self._lock:
            keys, scores = self._nearest(embedding, k, filter)
            found = [_copy(self._documents[key]) for key in keys.tolist()]
        return list(zip(found, scores.tolist(), strict=True))

    def similarity_search_by_vector(
        self, embedding: Sequence[float], k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """Returns the k nearest documents of a vector, best first."""
        return _without_scores(self.similarity_search_with_score_by_vector(embedding, k, filter, **kwargs))

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """Returns the k nearest documents of a text with their scores, best first; what a score is says the metric."""
        vector = self.embedding.embed_query(query)
        return self.similarity_search_with_score_by_vector(vector, k, filter, **kwargs)

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The same as `similarity_search_with_score`, leaving the event loop free."""
        vector = await self.embedding.aembed_query(query)
        return await run_in_executor(None, self.similarity_search_with_score_by_vector, vector, k, filter, **kwargs)

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any) -> list[Document]:
        """Returns the k nearest documents of a text, best first."""
        return _without_scores(self.similarity_search_with_score(query, k, filter, **kwargs))

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """The same as `similarity_search`, leaving the event loop free."""
        return _without_scores(await self.asimilarity_search_with_score(query, k, filter, **kwargs))

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: Sequence[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Returns k of the fetch_k nearest documents of a vector that differ from each other, most relevant first.

        lambda_mult: 1 weighs only nearness, 0 only difference (both as cosines, in every metric).
        """
        _refuse(kwargs)
        with self._lock:
            keys, _ = self._nearest(embedding, max(k, fetch_k), filter)
            if len(keys) == 0 or self._index is None:
                return []
            vectors = self._index.vectors(keys)
            found = [_copy(self._documents[key]) for key in keys.tolist()]
        query = np.asarray(embedding, dtype=np.float32)
        chosen = maximal_marginal_relevance(query, list(vectors), lambda_mult=lambda_mult, k=k)
        return [found[i] for i in chosen]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Returns k of the fetch_k nearest documents of a text that differ from each other, most relevant first."""
        vector = self.embedding.embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter, **kwargs)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """The same as `max_marginal_relevance_search`, leaving the event loop free."""
        vector = await self.embedding.aembed_query(query)
        return await run_in_executor(
            None, self.max_marginal_relevance_search_by_vector, vector, k, fetch_k, lambda_mult, filter, **kwargs
        )

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        if self._relevance is not None:
            return self._relevance
        if self.metric not in _RELEVANCE:
            raise ValueError(
                f"scores of metric {self.metric!r} have no scale from 0 to 1: build the store with metric='cosine', "
                "or pass relevance_score_fn"
            )
        return _RELEVANCE[self.metric]

    # ---- building ----

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings,
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> FaissVectorStore:
        """Returns a store of texts. options: those of the class (`metric`, `index`, ...). See `add_texts`."""
        store = cls(embedding, **options)
        store.add_texts(texts, metadatas, ids=ids, show_progress=show_progress)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings,
        metadatas: Iterable[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        show_progress: bool = False,
        **options: Any,
    ) -> FaissVectorStore:
        """The same as `from_texts`, leaving the event loop free."""
        store = cls(embedding, **options)
        await store.aadd_texts(texts, metadatas, ids=ids, show_progress=show_progress)
        return store

    @classmethod
    def from_embeddings(
        cls,
        text_embeddings: Iterable[tuple[str, Sequence[float]]],
        embedding: Embeddings,
        metadatas: Iterable[dict[str, Any]] | None = None,
        ids: Sequence[str | None] | None = None,
        **options: Any,
    ) -> FaissVectorStore:
        """Returns a store of (text, vector) pairs; embedding is for queries. options: those of the class."""
        store = cls(embedding, **options)
        store.add_embeddings(text_embeddings, metadatas, ids)
        return store

    # ---- folders ----

    def save_local(self, folder_path: str | Path) -> None:
        """Writes the store into a folder: a FAISS file, documents as JSON lines, a manifest with checksums.

        Interrupted at any moment, the folder holds the old store or the new one. Raises TypeError for metadata that
        does not fit into JSON (tuples come back as lists), ValueError for a store without documents.
        """
        with self._lock:
            if self._index is None:
                raise ValueError("an empty store has nothing to save: its dimension is not known yet")
            rows = (
                {"key": key, "id": document.id, "text": document.page_content, "metadata": document.metadata}
                for key, document in self._documents.items()
            )
            about = {"embedding": _name_of(self.embedding)}
            vector_folder.save(Path(folder_path), self._index, rows, about)

    @classmethod
    def load_local(
        cls,
        folder_path: str | Path,
        embeddings: Embeddings,
        *,
        check: bool = True,
        relevance_score_fn: Callable[[float], float] | None = None,
    ) -> FaissVectorStore:
        """Returns the store of a folder of `save_local` or of `lowbit embed`, with the metric and index it has.

        check: whether one stored text is embedded again and compared with its vector, which tells another model apart
        even when its vectors are of the same length. Raises ValueError for a damaged folder and for embeddings of
        another model, FileNotFoundError when it is no such folder.
        """
        index, rows, manifest = vector_folder.load(Path(folder_path))
        store = cls(
            embeddings,
            metric=index.metric.name,
            index=index.kind,
            index_options=index.options,
            relevance_score_fn=relevance_score_fn,
        )
        for row in rows:
            store._documents[row["key"]] = Document(id=row["id"], page_content=row["text"], metadata=row["metadata"])
            store._keys[row["id"]] = row["key"]
        store._index = index
        if check and rows:
            store._check_embedding(rows[0]["key"], rows[0]["text"], manifest.get("embedding"))
        return store

    def _check_embedding(self, key: int, text: str, built_with: str | None) -> None:
        assert self._index is not None
        fresh = self._index.prepared(self._embed([text]))[0]
        kept = self._index.vectors([key])[0]
        lengths = float(np.linalg.norm(fresh) * np.linalg.norm(kept))
        cosine = float(fresh @ kept) / lengths if lengths else 0.0
        if cosine < SAME_MODEL:
            raise ValueError(
                f"this store was built with {built_with or 'another embedding model'}, its vectors are not those of "
                f"{_name_of(self.embedding) or type(self.embedding).__name__} (cosine {cosine:.2f} for the same text): "
                "pass the embeddings it was built with, or check=False if they are random"
            )

    @classmethod
    def load_community_folder(
        cls,
        folder_path: str | Path,
        embeddings: Embeddings,
        *,
        allow_pickle: bool = False,
        index_name: str = "index",
        metric: str | None = None,
        **options: Any,
    ) -> FaissVectorStore:
        """Returns a store with the documents and vectors of a folder that langchain-community's FAISS saved.

        allow_pickle must be True: such a folder contains a pickle. It is read by an unpickler that accepts documents
        and plain values and refuses every other class; still, read only folders that you trust. `save_local` then
        writes a folder without one. metric: None keeps that of the file (the community class knew no cosine there).
        """
        if not allow_pickle:
            raise ValueError(
                f"{folder_path} holds a pickle: pass allow_pickle=True if you trust where it comes from, "
                "then save the store with save_local"
            )
        vectors, stored_metric, rows = load_community(Path(folder_path), index_name)
        pairs = [(row["text"], vector) for row, vector in zip(rows, vectors, strict=True)]
        return cls.from_embeddings(
            pairs,
            embeddings,
            [row["metadata"] for row in rows],
            [row["id"] for row in rows],
            metric=metric or stored_metric,
            **options,
        )


def _refuse(kwargs: dict[str, Any]) -> None:
    """fetch_k is what langchain-community's filter needed; here a filter looks at every document without it."""
    unknown = sorted(set(kwargs) - {"fetch_k"})
    if unknown:
        raise TypeError(f"unknown argument {unknown[0]!r} of FaissVectorStore")


def _copy(document: Document) -> Document:
    """What a caller does to a result must not change the store."""
    return Document(id=document.id, page_content=document.page_content, metadata=dict(document.metadata))


def _without_scores(found: list[tuple[Document, float]]) -> list[Document]:
    return [document for document, _ in found]


def _name_of(embedding: Embeddings) -> str | None:
    names = (getattr(embedding, name, None) for name in ("model_name", "model_name_or_path", "model"))
    return next((name for name in names if isinstance(name, str)), None)
