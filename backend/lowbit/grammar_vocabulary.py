"""A tokenizer's vocabulary as the grammar engine wants it, and the engine itself.

The one importer of llguidance. What a token writes comes from token_bytes.py; here: that the first token of an answer
may write something else than inside it (SentencePiece drops its space), and how text a grammar forces is split.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from lowbit.token_bytes import token_bytes
from lowbit.tokenizer import Tokenizer


def load_engine() -> Any:
    """Returns the module llguidance. Raises ImportError naming the extra where it is not installed."""
    try:
        import llguidance
    except ImportError as error:
        raise ImportError(
            "constrained answers (json_schema, regex, choice, grammar) need the grammar engine: "
            f"pip install 'lowbit[grammar]' ({error})"
        ) from error
    return llguidance


class Vocabulary:
    """A tokenizer's tokens as the engine wants them, and the grammars compiled for them. Raises what `token_bytes` and
    `load_engine` do."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.engine = load_engine()
        self.size = size
        self.end = size  # the engine wants an end token of its own: an id more, because the guide sets the real ones
        table = token_bytes(tokenizer, size)
        names = {i: (tokenizer.token(i) or "").encode() for i in table.special if i < size}
        self.inner = self._engine_tokenizer(table.inner, names, tokenizer)
        self.first = None
        self.silent: tuple[int, ...] = ()  # ids that write nothing as the first token, and a space later
        self._first_bytes: dict[int, bytes] = {}
        if table.first is not None:
            first = list(table.first)
            for i, (begin, inside) in enumerate(zip(first, table.inner, strict=True)):
                if begin != inside:
                    # A vocabulary without single bytes may be unable to say the rest of a token: never begin with it.
                    first[i] = self._first_bytes[i] = begin if self.spell(begin) else b""
            self.silent = tuple(i for i in self._first_bytes if not table.first[i])
            self.first = self._engine_tokenizer(first, names, tokenizer, after=table.inner)
        self.compiled: OrderedDict[tuple[str, str], Any] = OrderedDict()  # grammars over it, as grammar.py keeps them
        self.lock = threading.Lock()  # of `compiled`

    def _engine_tokenizer(
        self,
        table: Sequence[bytes],
        names: Mapping[int, bytes],
        tokenizer: Tokenizer,
        after: Sequence[bytes] | None = None,
    ) -> Any:
        tokens = [names.get(i, text) for i, text in enumerate([*table, b"<|lowbit end|>"])]
        wrapped = _Tokens(tokens, [*names, self.end], tokenizer, self, after)
        return self.engine.LLTokenizer(self.engine.TokenizerWrapper(wrapped))

    def spell(self, text: bytes) -> list[int] | None:
        """Returns tokens that write this UTF-8 text inside another, or None where the vocabulary cannot."""
        try:
            tokens: list[int] = self.inner.greedy_tokenize(text.decode())
        except UnicodeDecodeError:
            return None
        return tokens if self.inner.decode_bytes(tokens) == text else None

    def spell_first(self, text: bytes) -> list[int] | None:
        """Returns tokens that write this text at the beginning of an answer, or None where the vocabulary cannot."""
        if self.first is None:
            return self.spell(text)
        token: int | None = next(iter(self.first.greedy_tokenize(text.decode())), None)
        written = b"" if token is None else self.first.decode_bytes([token])
        rest = self.spell(text[len(written) :]) if written and text.startswith(written) else None
        return None if token is None or rest is None else [token, *rest]

    def first_as_inner(self, token: int) -> list[int]:
        """Returns tokens that write inside a text what `token` writes as the first one."""
        text = self._first_bytes.get(token)
        return [token] if text is None else self.spell(text) or []


class _Tokens:
    """What llguidance.TokenizerWrapper wraps: tokens, and how the model's tokenizer splits text the grammar forces.

    The split must write just that text: where the tokenizer's own does not (SentencePiece puts a space before it), it
    is the longest tokens from the left. after: bytes of the tokens behind the first, where `tokens` are those of first
    tokens. Refers to its owners weakly, because the engine's objects hide it from the garbage collector.
    """

    bos_token_id = None

    def __init__(
        self,
        tokens: list[bytes],
        special: list[int],
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        after: Sequence[bytes] | None,
    ) -> None:
        self.tokens, self.eos_token_id, self.special_token_ids = tokens, len(tokens) - 1, special
        self._after = tokens if after is None else after
        # Ids that a forced text must not be split into; those the model has no place for among them.
        self._special = {*special, *range(len(tokens), tokenizer.vocab_size)}
        self._tokenizer, self._vocabulary = weakref.ref(tokenizer), weakref.ref(vocabulary)

    def __call__(self, text: bytes) -> list[int]:
        tokenizer, vocabulary = self._tokenizer(), self._vocabulary()
        if tokenizer is not None:
            ids = tokenizer.encode(text.decode(), add_special_tokens=False)
            parts = [(self._after if n else self.tokens)[i] for n, i in enumerate(ids) if i not in self._special]
            if len(parts) == len(ids) and b"".join(parts) == text:
                return ids
        if vocabulary is None or not hasattr(vocabulary, "compiled"):
            return []  # while it is made, asked whether it can be called
        spell = vocabulary.spell if self._after is self.tokens else vocabulary.spell_first
        return spell(text) or [self.eos_token_id]  # which the guide never allows: there is no way on
