"""What each token id adds to a text, as bytes: the table a grammar engine needs of a vocabulary.

Most of it is asked of the tokenizer itself (decode a token behind another one); only tokens that are a part of a
character are read by rule: GPT-2's byte alphabet and SentencePiece's <0xNN>. A decoder whose tokens do not simply join
is refused, because a grammar could not hold what comes out of it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

from lowbit.tokenizer import Tokenizer

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Decoders of the tokenizers library under which a token's text depends on nothing but whether it is the first.
JOINING = frozenset({"ByteLevel", "ByteFallback", "Fuse", "Metaspace", "Replace", "Sequence", "Strip"})


@dataclass(frozen=True)
class TokenBytes:
    """The bytes of every id; b"" for ids that write nothing (special tokens, padding of the embedding).

    first: the same for the first token of a text, where that differs (its leading space is dropped), or None.
    special: ids whose text is left out of answers.
    """

    inner: list[bytes]
    first: list[bytes] | None
    special: frozenset[int]


def token_bytes(tokenizer: Tokenizer, vocab_size: int) -> TokenBytes:
    """Returns the table of a tokenizer for a model of vocab_size ids.

    Raises ValueError for a tokenizer whose text is not its tokens' bytes joined (WordPiece, clean-up, CTC, ...).
    """
    backend = tokenizer.backend
    kinds = _decoder_kinds(backend)
    unknown = sorted(kinds - JOINING)
    if unknown or not kinds or tokenizer.cleans_up:
        reason = f"its decoder is {', '.join(unknown)}" if unknown else "it has no decoder" if not kinds else ""
        raise ValueError(
            "constrained generation needs a tokenizer whose tokens join to the text byte by byte (byte-level BPE, "
            f"SentencePiece); not so with this one: {reason or 'it cleans up the text (clean_up_tokenization_spaces)'}"
        )
    every = {i: backend.id_to_token(i) for i in range(min(vocab_size, tokenizer.vocab_size))}
    names = {i: name for i, name in every.items() if name is not None}
    ids = list(names)
    # Literal text in the vocabulary (<tool_call>) is no code for bytes, and neither are characters outside the code.
    literal = {i for i in backend.get_added_tokens_decoder() if i in names}
    alphabet = _byte_alphabet() if "ByteLevel" in kinds else None

    def table(behind: list[int]) -> list[bytes]:
        known = backend.decode(behind, skip_special_tokens=False)
        texts = backend.decode_batch([[*behind, i] for i in ids], skip_special_tokens=False)
        out = [b""] * vocab_size
        for i, text in zip(ids, texts, strict=True):
            if i in tokenizer.special_ids:
                continue
            out[i] = text[len(known) :].encode()
            if "\N{REPLACEMENT CHARACTER}" in text and i not in literal:  # a part of a character, or really this one
                part = _bytes_by_rule(names[i], alphabet, "ByteFallback" in kinds)
                out[i] = out[i] if part is None else part
        return out

    inner = table(_anchor(tokenizer))
    first = inner if kinds == {"ByteLevel"} else table([])  # that decoder strips nothing
    return TokenBytes(inner, first if first != inner else None, tokenizer.special_ids)


def _decoder_kinds(backend: Backend) -> set[str]:
    if backend.decoder is None:
        return set()

    def kinds(node: dict[str, Any]) -> set[str]:
        return {node["type"]}.union(*(kinds(child) for child in node.get("decoders", ())))

    return kinds(json.loads(backend.decoder.__getstate__()))


def _anchor(tokenizer: Tokenizer) -> list[int]:
    """Ids to put before a token so that it is read as inside a text: those of a character."""
    for text in ("a", "0", "。"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids and tokenizer.decode(ids).strip() == text:
            return ids
    raise ValueError("the tokenizer can write neither 'a' nor '0': no text can be constrained with it")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's code: printable bytes stand for themselves, the others for the characters from U+0100 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {**{chr(b): b for b in printable}, **{chr(256 + n): b for n, b in enumerate(others)}}


def _bytes_by_rule(name: str, alphabet: dict[str, int] | None, byte_fallback: bool) -> bytes | None:
    if alphabet is not None:
        return bytes(alphabet[c] for c in name) if all(c in alphabet for c in name) else None
    match = BYTE_TOKEN.fullmatch(name) if byte_fallback else None
    return None if match is None else bytes([int(match[1], 16)])
