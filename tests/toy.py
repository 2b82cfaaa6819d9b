"""A toy engine and a byte tokenizer: generation without weights, in milliseconds.

`ToyEngine` follows the protocol `lowbit.generate.Engine`; its logits come from a function of the token ids so far.
`text_model` makes a `TextModel` of it: by default one that answers known prompts with known replies.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from lowbit.text import TextModel
from lowbit.tokenizer import Tokenizer

BOS, EOS = 256, 257
VOCAB = 258


def byte_tokenizer(chat_template: str | None = None) -> Tokenizer:
    """Returns a tokenizer with one id per byte (id = byte value), <s> = 256 put before a text, </s> = 257."""
    names = {byte: char for char, byte in _byte_characters().items()}
    backend = Backend(models.BPE(vocab={names[i]: i for i in range(256)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    backend.post_processor = processors.TemplateProcessing(single="<s>:0 $A:0", special_tokens=[("<s>", BOS)])
    return Tokenizer(backend, {}, {"bos_token": "<s>", "eos_token": "</s>"}, chat_template)


def _byte_characters() -> dict[str, int]:
    """GPT-2's table: printable bytes stand for themselves, the others for characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {**{chr(b): b for b in printable}, **{chr(256 + n): b for n, b in enumerate(others)}}


class ToyCache:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.ids: list[int] = []

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> None:
        assert 0 <= length <= len(self.ids)
        del self.ids[length:]

    def fork(self, length: int) -> ToyCache:
        assert 0 <= length <= len(self.ids)
        other = ToyCache(self.capacity)
        other.ids = self.ids[:length]
        return other


class ToyEngine:
    """logits: (ids so far) -> float array [vocab_size]. Counts passes and tokens; `delay` seconds per pass. A cache
    costs a byte per token. exact_tokens: 1 = speculation has no room."""

    def __init__(
        self,
        logits: Callable[[list[int]], np.ndarray],
        vocab_size: int = VOCAB,
        context: int = 512,
        delay: float = 0.0,
        exact_tokens: int = 1,
    ) -> None:
        self.vocab_size = vocab_size
        self.context = context
        self.token_bytes = 1
        self.exact_tokens = exact_tokens
        self.logits = logits
        self.delay = delay
        self.passes: list[list[int]] = []  # tokens per part of every pass
        self.caches = 0
        self.in_use: set[int] = set()
        self._lock = threading.Lock()

    def capacity(self, tokens: int) -> int:
        return self.context

    def new_cache(self, capacity: int) -> ToyCache:
        self.caches += 1
        return ToyCache(capacity)

    def kv_bytes(self, caches: Sequence[ToyCache]) -> int:
        return sum(cache.length for cache in caches)

    def forward(self, parts: list[tuple[Any, np.ndarray, bool]]) -> np.ndarray:
        caches = {id(cache) for cache, _, _ in parts}
        with self._lock:
            assert len(caches) == len(parts), "a session appears twice in one pass"
            assert not caches & self.in_use, "a session is used by two passes at once"
            self.in_use |= caches
            self.passes.append([len(tokens) for _, tokens, _ in parts])
        try:
            return self._logits(parts)
        finally:
            with self._lock:
                self.in_use -= caches

    def _logits(self, parts: list[tuple[Any, np.ndarray, bool]]) -> np.ndarray:
        if self.delay:
            time.sleep(self.delay)
        rows = []
        for cache, tokens, all_logits in parts:
            assert len(tokens) >= 1
            assert cache.length + len(tokens) <= cache.capacity
            for i, token in enumerate(tokens):
                cache.ids.append(int(token))
                if all_logits or i == len(tokens) - 1:
                    rows.append(np.asarray(self.logits(cache.ids), np.float32))
        return np.stack(rows)


def favour(token: int, vocab_size: int = VOCAB) -> np.ndarray:
    """Returns logits that leave no doubt about the next token."""
    logits = np.full(vocab_size, -20, np.float32)
    logits[token] = 20
    return logits


def replies(texts: Mapping[str, str | Sequence[int]]) -> Callable[[list[int]], np.ndarray]:
    """Returns logits that answer each prompt with its reply (text or ids) and then </s>, after <s> and the prompt's
    bytes."""
    table = {
        (BOS, *prompt.encode()): (*(reply.encode() if isinstance(reply, str) else reply), EOS)
        for prompt, reply in texts.items()
    }

    def logits(ids: list[int]) -> np.ndarray:
        for prompt, reply in table.items():
            done = tuple(ids[len(prompt) :])
            if tuple(ids[: len(prompt)]) == prompt and done == reply[: len(done)] and len(done) < len(reply):
                return favour(reply[len(done)])
        return favour(EOS)

    return logits


def babble(seed: int = 0, vocab_size: int = VOCAB, memory: int = 3) -> Callable[[list[int]], np.ndarray]:
    """Returns logits that look random but depend only on the last few ids."""

    def logits(ids: list[int]) -> np.ndarray:
        return np.random.default_rng([seed, *ids[-memory:]]).normal(0, 2, vocab_size).astype(np.float32)

    return logits


def text_model(
    logits: Callable[[list[int]], np.ndarray] | Mapping[str, str | Sequence[int]],
    *,
    generation_config: Mapping[str, Any] | None = None,
    chat_template: str | None = None,
    **engine: Any,
) -> TextModel:
    """Returns a TextModel over a toy engine: `logits` is a function of ids, or a table prompt -> reply."""
    make = replies(logits) if isinstance(logits, Mapping) else logits
    loaded = SimpleNamespace(
        spec=SimpleNamespace(family="toy", vocab_size=VOCAB),
        tensors={},
        config={"model_type": "toy"},
        generation_config=dict(generation_config or {}),
        tokenizer_files={},
        provenance={"source": "toy"},
        quantization={},
        activation_errors={},
    )
    runtime = SimpleNamespace(device="cpu", threads=1, context=None, precision="high")
    return TextModel(loaded, runtime, engine=ToyEngine(make, **engine), tokenizer=byte_tokenizer(chat_template))
