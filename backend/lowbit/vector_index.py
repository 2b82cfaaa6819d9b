"""Vectors under whole-number keys in one FAISS index: metrics, kinds, searching. Knows no text and no framework.

Three kinds: "flat" compares with every vector and is exact; "ivf" and "hnsw" look at a part, for corpora where that is
too slow. A search among given keys is exact in every kind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lowbit.runtime import nearest


@dataclass(frozen=True)
class Metric:
    """How two vectors are compared. score: what a search returns; `descending`: whether more of it is better."""

    name: str
    score: str
    descending: bool
    unit_vectors: bool


METRICS = {
    metric.name: metric
    for metric in (
        Metric("cosine", "cosine of the angle, -1 to 1, more is better", descending=True, unit_vectors=True),
        Metric("inner_product", "inner product, more is better", descending=True, unit_vectors=False),
        Metric("l2", "Euclidean distance (not squared), less is better", descending=False, unit_vectors=False),
    )
}

# kind -> its options with their defaults
KINDS: dict[str, dict[str, int]] = {
    "flat": {},
    "ivf": {"nlist": 256, "nprobe": 16},
    "hnsw": {"m": 32, "ef_construction": 128, "ef_search": 64},
}
# FAISS asks for at least this many training vectors per cell of an IVF index.
VECTORS_PER_CELL = 39


def choose(table: Mapping[str, Any], what: str, name: str) -> Any:
    """Returns the entry of a table; ValueError for an unknown name, with the nearest one."""
    if name not in table:
        raise ValueError(f"unknown {what} {name!r}{nearest(str(name), table)} Choices: {', '.join(table)}")
    return table[name]


def kind_options(kind: str, options: Mapping[str, int] | None) -> dict[str, int]:
    """Returns all options of a kind. ValueError for an unknown kind or a bad value, TypeError for an unknown name."""
    complete = dict(choose(KINDS, "index", kind))
    for name, value in (options or {}).items():
        if name not in complete:
            known = f" It has {', '.join(complete)}." if complete else " It has none."
            raise TypeError(f"unknown option {name!r} of index {kind!r}{nearest(name, complete)}{known}")
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"option {name!r} of index {kind!r} must be a whole number of at least 1; got {value!r}")
        complete[name] = value
    return complete


def require_faiss() -> ModuleType:
    """Returns the faiss module; ImportError with the command that installs it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError("an index of vectors needs faiss: pip install 'lowbit[faiss]'") from error
    return faiss


class VectorIndex:
    """fp32 vectors of one dimension under int64 keys that count up from 0 and are never used twice.

    Not thread-safe: the store locks around it. An "ivf" index is flat until it holds enough vectors to be trained
    (39 per cell); vectors removed from an "hnsw" index, which cannot forget, are passed over and dropped when they
    are the majority, which renumbers the others (see `remove`).
    """

    def __init__(self, dimension: int, metric: str = "cosine", kind: str = "flat", options: Any = None) -> None:
        self.dimension = dimension
        self.metric: Metric = choose(METRICS, "metric", metric)
        self.kind, self.options = kind, kind_options(kind, options)
        self._faiss = require_faiss()
        self._removed: set[int] = set()
        self._next_key = 0
        self._index = self._new_hnsw() if kind == "hnsw" else self._new_flat()

    def __len__(self) -> int:
        return self._index.ntotal - len(self._removed)

    @property
    def is_trained_ivf(self) -> bool:
        """Whether this is an "ivf" index that has become one."""
        return isinstance(self._index, self._faiss.IndexIVF)

    # ---- building ----

    def _faiss_metric(self) -> int:
        return self._faiss.METRIC_INNER_PRODUCT if self.metric.descending else self._faiss.METRIC_L2

    def _new_flat(self) -> Any:
        return self._faiss.IndexIDMap2(self._faiss.IndexFlat(self.dimension, self._faiss_metric()))

    def _new_hnsw(self) -> Any:
        index = self._faiss.IndexHNSWFlat(self.dimension, self.options["m"], self._faiss_metric())
        index.hnsw.efConstruction = self.options["ef_construction"]
        return index

    def prepared(self, vectors: Any) -> np.ndarray:
        """Returns vectors [n, dimension] as the index holds them: fp32, and of unit length for the cosine.

        Raises ValueError for another dimension and for values that are not finite.
        """
        array: np.ndarray = np.ascontiguousarray(vectors, dtype=np.float32)
        if array.ndim != 2 or array.shape[1] != self.dimension:
            got = array.shape[1] if array.ndim == 2 else f"shape {array.shape}"
            raise ValueError(
                f"this index holds vectors of {self.dimension} dimensions, the embedding gave {got}: "
                "use the embedding model that the index was built with, or build a new index"
            )
        if not np.isfinite(array).all():
            raise ValueError("the embedding gave values that are not finite (NaN or infinity)")
        if self.metric.unit_vectors:
            lengths = np.linalg.norm(array, axis=1, keepdims=True)
            array = array / np.where(lengths > 0, lengths, np.float32(1))
        return array

    def add(self, vectors: Any) -> np.ndarray:
        """Returns the keys, int64 [n], under which vectors [n, dimension] are found from now on."""
        array = self.prepared(vectors)
        keys = np.arange(self._next_key, self._next_key + len(array), dtype=np.int64)
        if self.kind == "hnsw":
            self._index.add(array)
        else:
            self._index.add_with_ids(array, keys)
        self._next_key += len(array)
        if self.kind == "ivf" and not self.is_trained_ivf:
            self._train_when_enough()
        return keys

    def _train_when_enough(self) -> None:
        if self._index.ntotal < self.options["nlist"] * VECTORS_PER_CELL:
            return
        vectors = self._index.index.reconstruct_n(0, self._index.ntotal)
        trained = self._trained(vectors)
        trained.add_with_ids(vectors, self._faiss.vector_to_array(self._index.id_map))
        self._index = trained

    def train(self, sample: Any) -> None:
        """Chooses the cells of an empty "ivf" index by vectors [n, dimension] like those to come; which are not added.

        Worth it where the first vectors are not like the others. Raises ValueError for other kinds, for an index with
        vectors and for fewer than 39 vectors per cell.
        """
        if self.kind != "ivf" or len(self):
            raise ValueError(f"only an empty 'ivf' index is trained; this is {self.kind!r} of {len(self)} vectors")
        array, needed = self.prepared(sample), self.options["nlist"] * VECTORS_PER_CELL
        if len(array) < needed:
            raise ValueError(f"{self.options['nlist']} cells need {needed} vectors to train with; got {len(array)}")
        self._index = self._trained(array)

    def _trained(self, vectors: np.ndarray) -> Any:
        faiss, metric = self._faiss, self._faiss_metric()
        cells = faiss.IndexFlat(self.dimension, metric)
        trained = faiss.IndexIVFFlat(cells, self.dimension, self.options["nlist"], metric)
        trained.cp.seed = 1234  # the same corpus gives the same cells
        trained.set_direct_map_type(faiss.DirectMap.Hashtable)  # key -> place, for `vectors` and quick removal
        trained.train(vectors)
        return trained

    def remove(self, keys: Any) -> dict[int, int] | None:
        """Removes vectors. Returns None, or {old key: new key} of those that stay when the keys were renumbered."""
        array = np.fromiter(keys, dtype=np.int64)
        if self.kind != "hnsw":
            # A trained index finds places in its map only for an array; flat compares every key, quickly in a batch.
            selector = self._faiss.IDSelectorArray if self.is_trained_ivf else self._faiss.IDSelectorBatch
            self._index.remove_ids(selector(array))
            return None
        self._removed.update(array.tolist())
        if len(self._removed) * 2 <= self._index.ntotal:
            return None
        kept = np.setdiff1d(np.arange(self._index.ntotal), np.fromiter(self._removed, dtype=np.int64))
        vectors = self._index.reconstruct_batch(kept) if len(kept) else np.empty((0, self.dimension), np.float32)
        self._index, self._removed, self._next_key = self._new_hnsw(), set(), len(kept)
        if len(kept):
            self._index.add(vectors)
        return {int(old): new for new, old in enumerate(kept)}

    # ---- searching ----

    def search(self, vector: Any, k: int, among: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Returns (keys int64 [n], scores fp32 [n]) of the n <= k nearest vectors, best first.

        vector: [dimension]. among: keys to search within (exactly, in every kind of index); None searches all. The
        scores are those of the metric.
        """
        query = self.prepared(np.asarray(vector, dtype=np.float32)[None])
        allowed = None if among is None else np.fromiter(among, dtype=np.int64)
        k = min(k, len(self) if allowed is None else len(allowed))
        if k < 1:
            return np.empty(0, np.int64), np.empty(0, np.float32)
        index, parameters = self._plan(k, allowed)
        scores, keys = index.search(query, k, params=parameters)
        found = keys[0] >= 0
        scores = scores[0][found]
        if not self.metric.descending:
            scores = np.sqrt(np.maximum(scores, 0))  # FAISS gives the square
        return keys[0][found], scores

    def vectors(self, keys: Any) -> np.ndarray:
        """Returns the vectors under keys, fp32 [n, dimension], as the index holds them."""
        found = [self._index.reconstruct(int(key)) for key in keys]
        return np.stack(found) if found else np.empty((0, self.dimension), np.float32)

    def _plan(self, k: int, allowed: np.ndarray | None) -> tuple[Any, Any]:
        """Returns (the FAISS index to ask, the parameters of the search)."""
        faiss = self._faiss
        chosen = None if allowed is None else faiss.IDSelectorBatch(allowed)
        if self.is_trained_ivf:
            probes = self.options["nprobe"] if chosen is None else self._index.nlist
            return self._index, faiss.SearchParametersIVF(nprobe=min(probes, self._index.nlist), sel=chosen)
        if self.kind == "hnsw" and chosen is None:
            if self._removed:
                chosen = faiss.IDSelectorNot(faiss.IDSelectorBatch(np.fromiter(self._removed, dtype=np.int64)))
            width = max(k, self.options["ef_search"])
            return self._index, faiss.SearchParametersHNSW(efSearch=width, sel=chosen)
        index = faiss.downcast_index(self._index.storage) if self.kind == "hnsw" else self._index
        return index, faiss.SearchParameters(sel=chosen) if chosen is not None else None

    # ---- files ----

    def write(self, path: Path) -> None:
        """Writes the index; removed vectors are still in an "hnsw" file, `state` names them."""
        self._faiss.write_index(self._index, str(path))

    def state(self) -> dict[str, Any]:
        """Returns what the FAISS file does not tell, as JSON-ready data; `read` takes it back."""
        return {
            "dimension": self.dimension,
            "metric": self.metric.name,
            "kind": self.kind,
            "options": self.options,
            "next_key": self._next_key,
            "removed": sorted(self._removed),
        }

    @classmethod
    def read(cls, path: Path, state: Mapping[str, Any]) -> VectorIndex:
        """Returns the index of a file and its state. Raises ValueError when the two do not fit."""
        self = cls(state["dimension"], state["metric"], state["kind"], state["options"])
        try:
            index = self._faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is not a FAISS index that can be read: {error}") from error
        allowed = {"hnsw": (self._faiss.IndexHNSWFlat,), "ivf": (self._faiss.IndexIVFFlat, self._faiss.IndexIDMap2)}
        if (
            not isinstance(index, allowed.get(self.kind, (self._faiss.IndexIDMap2,)))
            or index.d != self.dimension
            or index.metric_type != self._faiss_metric()
        ):
            raise ValueError(
                f"{path} holds a {type(index).__name__} of {index.d} dimensions, "
                f"its manifest says {self.kind!r}, {self.dimension} and {self.metric.name!r}"
            )
        self._index, self._next_key, self._removed = index, state["next_key"], set(state["removed"])
        return self
