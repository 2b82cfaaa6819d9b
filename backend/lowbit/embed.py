"""Embedder: texts in, vectors out, over the native encoder (or the decoder, for embedders made of language models).

Owns prompts, batches and what happens to a vector after pooling. Safe to call from any thread.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm  # type: ignore[import-untyped]

from lowbit import checkpoint
from lowbit.engine import DecoderEmbedder, EncoderEngine
from lowbit.loading import TASKS, load_model
from lowbit.models import EncoderSpec
from lowbit.models._spec import POOLINGS
from lowbit.options import split_options
from lowbit.replaced import replacement
from lowbit.runtime import Runtime, nearest
from lowbit.sentence import read_settings
from lowbit.texts import Encoding, Reopened, check_texts, ids_of, limit, tokenizer_of

logger = logging.getLogger(__name__)

WINDOW_BATCHES = 32  # of texts that are tokenised together; bounds what a stream holds in memory
OUTPUTS = ("float32", "int8", "binary")


class Embedder(Reopened):
    """A loaded embedding model.

    id_or_path: hub id, sentence-transformers folder, plain Hugging Face folder, or a folder of `save_low_bit`. low_bit:
    a format of `lowbit.formats`, or None for the checkpoint's own float type; up to 4 bits come in groups of 32 where
    `group_size` says nothing else. max_length: longest text in tokens (None: as the model's files say). truncate:
    whether longer texts are cut (True) or refused (False); None follows the model's files, which ask for cutting where
    they are sentence-transformers'; True also lowers a max_length that the model cannot read, with a warning. pooling:
    how the rows of a text become one vector, "cls", "mean", "max", ... (None: as the model's files say);
    `save_low_bit` saves the files' own. options: those of `lowbit.load`.

    Pickled, it is opened again by the process that gets it. Raises ValueError or OSError with the cause and the fix;
    TypeError for an unknown option, with the nearest name.

    >>> embedder = Embedder("sentence-transformers/all-MiniLM-L6-v2")  # doctest: +SKIP
    >>> embedder.encode(["a text", "another"]).shape                   # doctest: +SKIP
    (2, 384)
    """

    def __init__(
        self,
        id_or_path: str | os.PathLike,
        low_bit: str | None = TASKS["embed"],
        *,
        max_length: int | None = None,
        truncate: bool | None = None,
        pooling: str | None = None,
        **options: Any,
    ) -> None:
        if pooling is not None and pooling not in POOLINGS:
            hint = nearest(str(pooling), POOLINGS)
            raise ValueError(f"unknown pooling {pooling!r}{hint} Choose from {', '.join(POOLINGS)}")
        id_or_path = replacement(id_or_path)
        self._arguments = {
            "id_or_path": id_or_path, "low_bit": low_bit, "max_length": max_length, "truncate": truncate,
            "pooling": pooling, **options,
        }  # fmt: skip
        runtime_options, load_options = split_options(options)
        self.runtime = Runtime(**runtime_options).resolve()
        loaded = load_model(id_or_path, low_bit, runtime=self.runtime, task="embed", **load_options)
        self._loaded = loaded
        self.spec = loaded.spec
        self.config: Mapping[str, Any] = loaded.config
        self.model_id = str(loaded.provenance.get("source", ""))
        self._settings = read_settings(loaded.embedding_files)
        says = "modules.json" in loaded.embedding_files
        self.configured_pooling = "+".join(self._settings.poolings) if says else None
        if pooling is not None:
            self._settings = replace(self._settings, poolings=(pooling,))
        self.tokenizer = tokenizer_of(loaded)
        if truncate and max_length is not None and max_length > self.spec.context:
            logger.warning("texts are cut at %d tokens: the model reads no more than that", self.spec.context)
            max_length = self.spec.context
        length = limit(self.spec.context, self.tokenizer, self._settings.max_length, max_length)
        cut = self._settings.truncates if truncate is None else truncate
        self._encode = Encoding(self.tokenizer, length, cut, self.model_id or str(id_or_path))
        is_encoder = isinstance(self.spec, EncoderSpec)
        self._engine: Any = (EncoderEngine if is_encoder else DecoderEmbedder)(loaded, self.runtime)
        if not is_encoder and self._settings.poolings != DecoderEmbedder.POOLINGS:
            raise ValueError(
                f"{self.model_id}: an embedder made of a {self.spec.family} language model is supported with the last "
                f"token's state only, not with {', '.join(self._settings.poolings)}"
            )

    def __repr__(self) -> str:
        return (
            f"Embedder({self.model_id!r}, family={self.spec.family!r}, dimension={self.dimension}, "
            f"max_length={self.max_length})"
        )

    @property
    def dimension(self) -> int:
        """Length of a vector, before any truncate_dim."""
        if self._settings.dense:
            return len(self._settings.dense[-1].weight)
        return self.spec.hidden_size * len(self._settings.poolings)

    @property
    def pooling(self) -> str:
        """How the rows of a text become one vector; several, joined by "+", are put side by side.

        `configured_pooling` is what the model's files say, None where they say nothing.
        """
        return "+".join(self._settings.poolings)

    @property
    def max_length(self) -> int:
        """Longest text in tokens, special ones included."""
        return self._encode.max_length

    @property
    def prompts(self) -> dict[str, str]:
        """The prompts of the model's files, by name."""
        return dict(self._settings.prompts)

    @property
    def quantization(self) -> dict[str, Any]:
        """How the weights are stored: format, group_size, embedding_format, ... as a low-bit folder records it."""
        return dict(self._loaded.quantization)

    @property
    def device(self) -> str:
        """Where the model runs, for example "cpu"."""
        return str(self.runtime.device)

    def encode(
        self,
        texts: str | Sequence[str] | Iterator[str],
        batch_size: int = 32,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        output: str = "float32",
        show_progress: bool = False,
    ) -> np.ndarray:
        """Returns the vectors of texts in their order, [n, dim]; of one string its vector, [dim].

        Of an iterator, 32 * batch_size texts are held at a time; `encode_stream` does not hold the vectors either.
        normalize: to length 1 (None: as the model's files say). prompt, or prompt_name for one of the model's own, is
        put before every text. truncate_dim: keep the first numbers of a vector, before normalising. output: "float32";
        "int8", each vector times 127 / its largest magnitude, rounded, which keeps cosines; "binary", the signs, eight
        to a byte, uint8 [n, ceil(dim / 8)].

        Raises TypeError for anything but strings and ValueError for a text that is too long and must not be cut.
        """
        if isinstance(texts, str):
            return self.encode([texts], batch_size, normalize, prompt, prompt_name, truncate_dim, output)[0]
        if isinstance(texts, bytes) or not isinstance(texts, Sequence | Iterator | np.ndarray):
            raise TypeError(
                f"texts is {'None' if texts is None else type(texts).__name__}; give a string, a list of strings or an "
                "iterator of strings"
            )
        total = None
        if not isinstance(texts, Iterator):
            check_texts(texts)
            total = len(texts)
        with tqdm(total=total, desc="Embedding", unit="text", disable=not show_progress) as bar:
            done = []
            for part in self.encode_stream(texts, batch_size, normalize, prompt, prompt_name, truncate_dim, output):
                done.append(part)
                bar.update(len(part))
        none = np.zeros((0, self.dimension), np.float32)
        return np.concatenate(done) if done else self._finish(none, False, truncate_dim, output)

    def encode_stream(
        self,
        texts: Iterable[str],
        batch_size: int = 32,
        normalize: bool | None = None,
        prompt: str | None = None,
        prompt_name: str | None = None,
        truncate_dim: int | None = None,
        output: str = "float32",
    ) -> Iterator[np.ndarray]:
        """Returns an iterator of arrays [m, dim] that together are what `encode` returns, for texts beyond memory.

        At most 32 * batch_size texts are held at a time. Arguments are checked at once, texts as they come.
        """
        if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
            raise TypeError(f"texts is {type(texts).__name__}; give an iterable of strings, for one string use encode")
        self._check(batch_size, truncate_dim, output)
        before = self._prompt(prompt, prompt_name)
        unit = self._settings.normalize if normalize is None else normalize
        return self._stream(iter(texts), batch_size, before, lambda x: self._finish(x, unit, truncate_dim, output))

    def save_low_bit(self, path: str | os.PathLike) -> Path:
        """Returns the folder it has written: weights, tokenizer and the settings of sentence-transformers, complete."""
        return checkpoint.save(self._loaded, Path(path))

    def _check(self, batch_size: int, truncate_dim: int | None, output: str) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1; got {batch_size!r}")
        is_number = isinstance(truncate_dim, int | np.integer)
        if truncate_dim is not None and not (is_number and 1 <= truncate_dim <= self.dimension):
            raise ValueError(f"truncate_dim={truncate_dim!r} is not possible: vectors have {self.dimension} numbers")
        if output not in OUTPUTS:
            raise ValueError(f"unknown output {output!r}; choose one of {', '.join(OUTPUTS)}")

    def _prompt(self, prompt: str | None, name: str | None) -> str:
        if prompt is not None and name is not None:
            raise ValueError("give prompt or prompt_name, not both")
        if prompt is not None:
            if not isinstance(prompt, str):
                raise TypeError(f"prompt is {type(prompt).__name__}, it must be a string")
            return prompt
        name = self._settings.default_prompt if name is None else name
        if name is not None and name not in self._settings.prompts:
            known = ", ".join(sorted(self._settings.prompts)) or "none"
            raise ValueError(f"{self.model_id} has no prompt named {name!r}; it has: {known}")
        return "" if name is None else self._settings.prompts[name]

    def _stream(self, texts: Iterator[str], batch_size: int, before: str, finish: Any) -> Iterator[np.ndarray]:
        first = 0
        while window := list(itertools.islice(texts, WINDOW_BATCHES * batch_size)):
            check_texts(window, first=first)
            lower = self._settings.lower_case
            given = [before + (text.lower() if lower else text) for text in window]
            ids = [ids_of(encoding) for encoding in self._encode(given, first)]
            order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # long ones first: a batch is even work
            vectors = np.empty((len(ids), self.spec.hidden_size * len(self._settings.poolings)), np.float32)
            for start in range(0, len(order), batch_size):
                batch = order[start : start + batch_size]
                vectors[batch] = self._engine.embed([ids[i] for i in batch], self._settings.poolings)
            for layer in self._settings.dense:
                vectors = layer(vectors)
            yield finish(vectors)
            first += len(window)

    def _finish(self, vectors: np.ndarray, normalize: bool, truncate_dim: int | None, output: str) -> np.ndarray:
        vectors = np.ascontiguousarray(vectors[:, :truncate_dim])
        if normalize:
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        if output == "binary":
            return np.packbits(vectors > 0, axis=1)
        if output == "int8":
            largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True, initial=0), np.finfo(np.float32).tiny)
            return np.rint(vectors * (127 / largest)).astype(np.int8)
        return vectors
