"""Token ids to text as they come: `TextStream` gives, piece by piece, exactly what decoding all ids at once gives.

What makes that harder than joining decoded tokens: a character may be spread over tokens (byte-level and byte-fallback
vocabularies), a space may belong to a word or be the marker of the text's beginning, and clean-up joins punctuation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_UNKNOWN_CHARACTER = "\N{REPLACEMENT CHARACTER}"

# transformers' clean_up_tokenization, in its order. For vocabularies other than BPE, where the config asks for it.
CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
    (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def clean_up(text: str) -> str:
    """Returns the text without spaces before punctuation and English contractions."""
    for old, new in CLEAN_UP:
        text = text.replace(old, new)
    return text


class TextStream:
    """Decodes ids one by one. The cost of a token does not grow with the text.

    decode: ids -> text (special tokens left out by the caller of `push`). token: id -> its string in the vocabulary.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        token: Callable[[int], str | None],
        skip: frozenset[int] = frozenset(),
        cleaning: bool = False,
    ) -> None:
        self._decode = decode
        self._token = token
        self._skip = skip
        # The last ids: first those of the previous piece, because how a token reads may depend on the one before it,
        # then those not given out yet. _known is the text of the former.
        self._window: list[int] = []
        self._previous = 0
        self._known = ""
        self._cleaning = [_Replace(old, new) for old, new in CLEAN_UP] if cleaning else []

    def push(self, token_id: int) -> str:
        """Returns the text that this id makes certain; empty while a character or a run of byte tokens is open."""
        token = self._token(token_id)
        if token_id in self._skip or token is None:  # an embedding is often padded to more ids than there are tokens
            return ""
        self._window.append(token_id)
        if _BYTE_TOKEN.fullmatch(token):
            return ""  # a run of byte tokens is decoded as a whole: one invalid byte makes all of it unreadable
        text = self._decode(self._window)
        if text.endswith(_UNKNOWN_CHARACTER):
            return ""  # an incomplete character, or really this one: the next token tells
        piece = self._advance(text)
        for stage in self._cleaning:
            piece = stage.push(piece)
        return piece

    def flush(self) -> str:
        """Returns what is left when no further id comes."""
        piece = self._advance(self._decode(self._window)) if len(self._window) > self._previous else ""
        for stage in self._cleaning:
            piece = stage.push(piece) + stage.flush()
        return piece

    def _advance(self, text: str) -> str:
        piece = text[len(self._known) :]
        if not piece:
            return ""
        del self._window[: self._previous]
        self._previous = len(self._window)
        self._known = self._decode(self._window)
        return piece


class _Replace:
    """`str.replace` over a stream: holds back what could begin `old`."""

    def __init__(self, old: str, new: str) -> None:
        self._old, self._new = old, new
        self._held = ""

    def push(self, text: str) -> str:
        text = self._held + text
        *done, rest = text.split(self._old)
        held = next((n for n in range(min(len(self._old) - 1, len(rest)), 0, -1) if self._old.startswith(rest[-n:])), 0)
        self._held = rest[len(rest) - held :]
        return self._new.join([*done, rest[: len(rest) - held]])

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text
