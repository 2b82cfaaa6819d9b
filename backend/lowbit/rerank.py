"""Reranker: a query and passages in, scores out, over the native encoder with its classification head."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from lowbit import checkpoint
from lowbit.engine import EncoderEngine
from lowbit.loading import TASKS, load_model
from lowbit.options import split_options
from lowbit.runtime import Runtime
from lowbit.sentence import read_settings
from lowbit.texts import Encoding, Reopened, check_texts, ids_of, limit, tokenizer_of

ACTIVATIONS = ("sigmoid", "none")
WINDOW_BATCHES = 32  # of pairs that are tokenised together


class Reranker(Reopened):
    """A loaded cross-encoder.

    id_or_path, low_bit, max_length, truncate and options are those of `Embedder`; truncate None means True, because a
    cross-encoder reads two texts within one limit. activation: what a score is, "sigmoid" (0 to 1) or "none" (the
    logit); None follows config.json, and is "sigmoid" where that says nothing, as in sentence-transformers.

    Raises ValueError or OSError with the cause and the fix; TypeError for an unknown option, with the nearest name.

    >>> Reranker("BAAI/bge-reranker-base").score("what is a panda?", ["a bear", "a bus"])  # doctest: +SKIP
    """

    def __init__(
        self,
        id_or_path: str | os.PathLike,
        low_bit: str | None = TASKS["rerank"],
        *,
        max_length: int | None = None,
        truncate: bool | None = None,
        activation: str | None = None,
        **options: Any,
    ) -> None:
        if activation is not None and activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
        self._arguments = {
            "id_or_path": id_or_path, "low_bit": low_bit, "max_length": max_length, "truncate": truncate,
            "activation": activation, **options,
        }  # fmt: skip
        runtime_options, load_options = split_options(options)
        self.runtime = Runtime(**runtime_options).resolve()
        loaded = load_model(id_or_path, low_bit, runtime=self.runtime, task="rerank", **load_options)
        self._loaded = loaded
        self.spec: Any = loaded.spec  # an EncoderSpec with labels: load_model has seen to it
        self.config: Mapping[str, Any] = loaded.config
        self.model_id = str(loaded.provenance.get("source", ""))
        self.activation = activation or _configured_activation(loaded.config)
        self.tokenizer = tokenizer_of(loaded)
        configured = read_settings(loaded.embedding_files).max_length
        length = limit(self.spec.context, self.tokenizer, configured, max_length)
        self._encode = Encoding(
            self.tokenizer, length, True if truncate is None else truncate, self.model_id or str(id_or_path), pairs=True
        )
        self._engine = EncoderEngine(loaded, self.runtime)

    def __repr__(self) -> str:
        return f"Reranker({self.model_id!r}, family={self.spec.family!r}, max_length={self.max_length})"

    @property
    def max_length(self) -> int:
        """Longest pair in tokens, special ones included."""
        return self._encode.max_length

    @property
    def quantization(self) -> dict[str, Any]:
        """How the weights are stored, as a low-bit folder records it."""
        return dict(self._loaded.quantization)

    def score(
        self,
        query: str | Iterable[tuple[str, str]],
        passages: Iterable[str] | None = None,
        batch_size: int = 32,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Returns the score of each passage for the query, or of each (query, passage) pair, float32 [n], in order.

        Raises TypeError for anything but strings, ValueError for a model with more than one label (see `logits`).
        """
        if self.spec.labels != 1:
            raise ValueError(
                f"{self.model_id} has {self.spec.labels} labels, a reranker has one; take logits() of this classifier"
            )
        scores = self.logits(query, passages, batch_size, show_progress)[:, 0]
        if self.activation == "sigmoid":  # in a form that overflows nowhere
            small = np.exp(-np.abs(scores))
            scores = np.where(scores >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
        return scores

    def logits(
        self,
        query: str | Iterable[tuple[str, str]],
        passages: Iterable[str] | None = None,
        batch_size: int = 32,
        show_progress: bool = False,
    ) -> np.ndarray:
        """Returns what the classification head says of each pair, float32 [n, labels], in their order."""
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1; got {batch_size!r}")
        pairs = _pairs(query, passages)
        out = np.empty((len(pairs), self.spec.labels), np.float32)
        with tqdm(total=len(pairs), desc="Scoring", unit="pair", disable=not show_progress) as bar:
            for first in range(0, len(pairs), WINDOW_BATCHES * batch_size):
                encodings = self._encode(pairs[first : first + WINDOW_BATCHES * batch_size], first)
                order = sorted(range(len(encodings)), key=lambda i: -len(encodings[i]))
                for start in range(0, len(order), batch_size):
                    batch = order[start : start + batch_size]
                    ids = [ids_of(encodings[i]) for i in batch]
                    types = [np.array(encodings[i].type_ids, np.int32) for i in batch]
                    out[[first + i for i in batch]] = self._engine.classify(ids, types)
                    bar.update(len(batch))
        return out

    def save_low_bit(self, path: str | os.PathLike) -> Path:
        """Returns the folder it has written: weights, configuration and tokenizer, complete."""
        return checkpoint.save(self._loaded, Path(path))


def _pairs(query: str | Iterable[tuple[str, str]], passages: Iterable[str] | None) -> list[tuple[str, str]]:
    if isinstance(query, str):
        if passages is None or isinstance(passages, str):
            raise TypeError("score(query, passages) takes a list of passages; for one passage give a list of one")
        passages = list(passages)
        check_texts(passages, "passages")
        return [(query, passage) for passage in passages]
    if passages is not None or not isinstance(query, Iterable):
        raise TypeError("give score(query, passages), or score(pairs) with (query, passage) pairs and nothing else")
    pairs = []
    for i, pair in enumerate(query):
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise TypeError(f"pairs[{i}] must be a pair (query, passage) of strings")
        check_texts(pair, f"pairs[{i}]")
        pairs.append((pair[0], pair[1]))
    return pairs


def _configured_activation(config: Mapping[str, Any]) -> str:
    """The activation config.json names, in the places sentence-transformers writes it to."""
    own = config.get("sentence_transformers") or {}
    name = str(own.get("activation_fn") or config.get("sbert_ce_default_activation_function") or "Sigmoid")
    kinds = {"Sigmoid": "sigmoid", "Identity": "none"}
    kind = name.rpartition(".")[2]
    if kind not in kinds:
        raise ValueError(f"config.json asks for the activation {name!r}; pass activation='sigmoid' or 'none'")
    return kinds[kind]
