"""The key-value cache of a native decoder in the shape transformers' generation expects: a `Cache` per batch.

Owns which tokens each row holds and the native session of each row. Rows are reordered and repeated by forking their
sessions, and cropped by their tokens. Code that wants keys and values as
tensors gets a DynamicCache, made from the tokens by the model's modules.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from lowbit.engine import NativeEngine


class NativeCache(DynamicCache):
    """Tokens [batch, length] seen so far, which of them are real (mask), their positions, and a session per row."""

    is_compileable = False  # type: ignore[assignment]
    is_croppable = True  # type: ignore[assignment]

    def _begin(self, model: Any, engine: NativeEngine) -> None:
        """Makes an empty cache native; DynamicCache's own state stays as it is, for the way back."""
        self._native_model, self._native_engine = model, engine
        self._ids = np.empty((0, 0), np.int64)
        self._real = np.empty((0, 0), bool)
        self._positions = np.empty((0, 0), np.int64)
        self._sessions: list[Any] = []

    # ---- what the native forward needs ----------------------------------------------------------------------------

    @property
    def native_state(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, real and positions, each [batch, length]."""
        return self._ids, self._real, self._positions

    def advance(self, ids: np.ndarray, real: np.ndarray, positions: np.ndarray, last_only: bool) -> list[np.ndarray]:
        """Appends tokens [batch, n] and returns, for each row, the logits of its new real tokens (or of the last one).

        Nothing is changed when the engine raises.
        """
        past = len(self._ids) > 0
        all_ids = np.concatenate([self._ids, ids], 1) if past else ids
        all_real = np.concatenate([self._real, real], 1) if past else real
        rows = [all_ids[i][all_real[i]].astype(np.int32) for i in range(len(all_ids))]
        capacity = self._native_engine.capacity(max(1, max(row.size for row in rows)))
        sessions = list(self._sessions) or [None] * len(rows)
        parts, wanted, twins = [], [], {}
        first: dict[bytes, int] = {}  # rows that begin alike, as the beams of a prompt do, are computed once
        for i, row in enumerate(rows):
            fresh = int(real[i].sum())
            session = sessions[i]
            if session is None or session.capacity != capacity:  # another capacity may encode positions otherwise
                twin = first.setdefault(row.tobytes(), i)
                if twin != i and fresh == row.size:
                    twins[i] = twin
                    continue
                session = sessions[i] = self._native_engine.new_cache(capacity)
            session.truncate(min(session.length, row.size - fresh))
            if fresh:
                parts.append((session, row[session.length :], not last_only))
                wanted.append((i, fresh, row.size - session.length))
        engine = self._native_engine
        logits = engine.forward(parts) if parts else np.empty((0, engine.vocab_size), np.float32)
        result = [logits[:0] for _ in rows]
        at = 0
        for i, fresh, pending in wanted:
            count = 1 if last_only else pending
            result[i] = logits[at + count - (1 if last_only else fresh) : at + count]
            at += count
        for i, twin in twins.items():
            result[i], sessions[i] = result[twin], sessions[twin].fork(sessions[twin].length)
        self._ids, self._real, self._sessions = all_ids, all_real, sessions
        self._positions = np.concatenate([self._positions, positions], 1) if past else positions
        return result

    # ---- the Cache interface of transformers ----------------------------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0, *_: Any) -> int:
        """Returns how many tokens were seen, padding included."""
        return self._ids.shape[1]

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Returns -1: no maximum but the model's own."""
        return -1

    def get_max_cache_shape(self, layer_idx: int = 0) -> Any:
        """Returns None (the name of `get_max_length` in transformers 4)."""
        return None

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Returns (keys a mask covers, offset of the first one)."""
        new = query_length if isinstance(query_length, int) else int(query_length.shape[0])
        return self.get_seq_length() + new, 0

    def has_previous_state(self, *_: Any) -> bool:
        """Returns whether any token was seen."""
        return self.get_seq_length() > 0

    @property
    def batch_size(self) -> int:  # type: ignore[override]
        """Number of rows."""
        return len(self._ids)

    @property
    def is_initialized(self) -> bool:
        """True: there is nothing to allocate."""
        return True

    def activate_past_recording(self) -> None:
        """Nothing to do: earlier tokens are never dropped."""

    def is_recording_past(self, layer_idx: int = 0) -> bool:
        """True: earlier tokens are never dropped."""
        return True

    def reset(self) -> None:
        """Forgets all tokens."""
        self._begin(self._native_model, self._native_engine)

    def crop(self, tokens: int) -> None:
        """Removes the last -tokens tokens (transformers 5), or keeps the first `tokens` (transformers 4)."""
        length = self.get_seq_length()
        keep = length + tokens if tokens <= 0 else min(tokens, length)
        self._ids, self._real, self._positions = (a[:, : max(keep, 0)] for a in self.native_state)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Makes row i what row beam_idx[i] was."""
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times in place."""
        self._select([i for i in range(len(self._ids)) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps the rows `indices` (ids, or a mask)."""
        self._select(indices.nonzero().reshape(-1).tolist() if indices.dtype == torch.bool else indices.tolist())

    def _select(self, sources: list[int]) -> None:
        """Makes row i what row sources[i] was; the second row of a source gets a fork, which shares its memory."""
        if not len(self._ids):
            return
        taken: set[int] = set()
        sessions = []
        for source in sources:
            session = self._sessions[source]
            sessions.append(session.fork(session.length) if source in taken and session is not None else session)
            taken.add(source)
        self._sessions = sessions
        self._ids, self._real, self._positions = (a[sources] for a in self.native_state)

    # ---- the way back ---------------------------------------------------------------------------------------------

    def to_modules(self) -> None:
        """Becomes a DynamicCache with the same content, computed by the model's modules from the tokens."""
        model, (ids, real, positions) = self._native_model, self.native_state
        for name in ("_native_model", "_native_engine", "_ids", "_real", "_positions", "_sessions"):
            delattr(self, name)
        self.__class__ = DynamicCache  # type: ignore[assignment]
        if ids.size:
            model.run_modules(ids, real, positions, self)

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Takes keys and values of a layer, as a DynamicCache: somebody runs the modules with this cache."""
        self.to_modules()
        return self.update(*args, **kwargs)

    def __len__(self) -> int:
        return self._native_engine.spec.layers

    def __iter__(self) -> Any:
        self.to_modules()
        return iter(self)

    def __getitem__(self, layer: int) -> Any:
        self.to_modules()
        return self[layer]  # type: ignore[index]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Returns a cache of the same tokens whose sessions share memory with this one's."""
        other = copy.copy(self)
        other._sessions = [None if s is None else s.fork(s.length) for s in self._sessions]
        memo[id(self)] = other
        return other


def take_over(cache: DynamicCache | None, model: Any, engine: NativeEngine) -> NativeCache:
    """Returns an empty cache of the user's, or a new one, as a NativeCache: the same object in another class."""
    cache = DynamicCache() if cache is None else cache
    cache.__class__ = NativeCache
    assert isinstance(cache, NativeCache)
    cache._begin(model, engine)
    return cache
