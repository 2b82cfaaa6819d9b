"""SentencePiece models (tokenizer.model) as `tokenizers` objects, for folders without a tokenizer.json.

Reads the protocol buffer itself, so it needs neither the sentencepiece nor the protobuf package. The field numbers are
those of sentencepiece_model.proto: ModelProto{pieces=1, trainer_spec=2, normalizer_spec=3}.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors
from tokenizers import Tokenizer as Backend

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.Type
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
SPACE = "\u2581"
_TIKTOKEN = re.compile(rb"[A-Za-z0-9+/]+=* \d+\n")  # its lines: a token in base64, its rank


@dataclass(frozen=True)
class Piece:
    """One vocabulary entry; its id is its place."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class Model:
    """What of a SentencePiece file says how it cuts text."""

    pieces: list[Piece]
    kind: int
    byte_fallback: bool
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read(data: bytes) -> Model:
    """Returns the model in a .model file. Raises ValueError when the bytes are no such file."""
    pieces: list[Piece] = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    try:
        for number, value in _fields(data):
            if number == 1:
                entry = dict(_fields(value))
                score = struct.unpack("<f", entry[2])[0] if 2 in entry else 0.0
                pieces.append(Piece(entry[1].decode("utf-8"), score, entry.get(3, NORMAL)))
            elif number == 2:
                trainer = dict(_fields(value))
            elif number == 3:
                normalizer = dict(_fields(value))
    except (KeyError, IndexError, struct.error, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise ValueError(f"not a SentencePiece model ({error})") from error
    if not pieces:
        raise ValueError("not a SentencePiece model (it has no pieces)")
    return Model(
        pieces=pieces,
        kind=trainer.get(3, UNIGRAM),
        byte_fallback=bool(trainer.get(35, 0)),
        charsmap=normalizer.get(2, b""),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


def convert(path: Path, config: Mapping[str, Any]) -> Backend:
    """Returns the tokenizers object that cuts text as a SentencePiece file does, with its control tokens special.

    config: tokenizer_config.json; add_bos_token defaults to True as for the Llama tokenizers such files belong to.
    Raises ValueError for a damaged file and for model kinds other than BPE and Unigram.
    """
    data = path.read_bytes()
    if _TIKTOKEN.match(data):
        raise ValueError(
            f"{path} is a tiktoken vocabulary, which names no rule for cutting text into words; take the model's "
            "repository in transformers' own form (often named -hf), which has a tokenizer.json"
        )
    try:
        model = read(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; download it again") from None
    backend = Backend(_bpe(model) if model.kind == BPE else _unigram(model, path))
    backend.normalizer = _normalizer(model)
    backend.decoder = _decoder(model)
    for special, kind in ((True, (UNKNOWN, CONTROL)), (False, (USER_DEFINED,))):
        tokens = [AddedToken(p.text, normalized=False, special=special) for p in model.pieces if p.kind in kind]
        (backend.add_special_tokens if special else backend.add_tokens)(tokens)
    bos = config.get("bos_token") or "<s>"
    bos = bos["content"] if isinstance(bos, Mapping) else bos
    if config.get("add_bos_token") is None and backend.token_to_id(bos) is not None:
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    return backend


def _bpe(model: Model) -> models.BPE:
    vocabulary = {piece.text: i for i, piece in enumerate(model.pieces)}
    unknown = next((p.text for p in model.pieces if p.kind == UNKNOWN), None)
    return models.BPE(
        vocab=vocabulary,
        merges=_merges(model.pieces, vocabulary),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _merges(pieces: list[Piece], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """The merges that make each piece of two others, in the order SentencePiece prefers: best score of the union first,
    of the ways to make one piece the pair of earlier pieces first."""
    mergeable = {p.text for p in pieces if p.kind in (NORMAL, USER_DEFINED, UNUSED)}
    ranked = []
    for piece in pieces:
        if piece.kind not in (NORMAL, UNUSED) or len(piece.text) < 2:
            continue
        for cut in range(1, len(piece.text)):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in mergeable and right in mergeable:
                ranked.append((-piece.score, vocabulary[left], vocabulary[right], left, right))
    ranked.sort()
    return [(left, right) for *_, left, right in ranked]


def _unigram(model: Model, path: Path) -> models.Unigram:
    if model.kind != UNIGRAM:
        raise ValueError(f"{path} is a SentencePiece model of kind {model.kind}; only BPE and Unigram are read")
    unknown = next((i for i, p in enumerate(model.pieces) if p.kind == UNKNOWN), None)
    # Pieces that never come out of a text must not compete for it: their score is the lowest.
    vocabulary = [(p.text, p.score if p.kind in (NORMAL, USER_DEFINED) else -1e10) for p in model.pieces]
    return models.Unigram(vocab=vocabulary, unk_id=unknown, byte_fallback=model.byte_fallback)


def _normalizer(model: Model) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.charsmap:
        steps.append(normalizers.Precompiled(model.charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _decoder(model: Model) -> decoders.Decoder:
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The (number, value) pairs of a protocol buffer message: varints as int, the rest as bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            size, place = _varint(data, place)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise KeyError(f"wire type {wire}")
        if place + size > len(data):
            raise IndexError("a field goes beyond the end of the file")
        yield number, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise IndexError("a number is too long")
