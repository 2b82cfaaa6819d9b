"""The files a tokenizer comes in: tokenizer.json as it is, older files converted in memory.

Tried in this order: tokenizer.json; a SentencePiece model (sentencepiece.py); vocab.json with merges.txt, byte-level
BPE as GPT-2's; vocab.txt, WordPiece as BERT's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
SENTENCEPIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")


def read_json(path: Path | None) -> dict[str, Any]:
    """Returns the object in a JSON file, {} for None. Raises ValueError naming the file when it is no JSON object."""
    if path is None:
        return {}
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); download it again") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path} should hold a JSON object, it holds a {type(data).__name__}")
    return data


def special_tokens(config: Mapping[str, Any], special_map: Mapping[str, Any]) -> dict[str, str]:
    """Returns special tokens by name ("bos_token", ...); tokenizer_config.json wins over special_tokens_map.json."""
    found = {}
    for name in SPECIAL_NAMES:
        value = config.get(name, special_map.get(name))
        if isinstance(value, Mapping):  # an AddedToken as JSON
            value = value.get("content")
        if isinstance(value, str):
            found[name] = value
    return found


def build_backend(files: Mapping[str, Path], config: Mapping[str, Any], tokens: Mapping[str, str]) -> Backend:
    """Returns the tokenizers object of some files, with all added tokens. Raises ValueError saying what is missing."""
    if "tokenizer.json" in files:
        backend = _read_backend(files["tokenizer.json"])
    elif name := next((n for n in SENTENCEPIECE_FILES if n in files), None):
        from lowbit.sentencepiece import convert

        backend = convert(Path(files[name]), config)
    elif "vocab.json" in files and "merges.txt" in files:
        backend = _byte_level(files, config)
    elif "vocab.txt" in files:
        backend = _wordpiece(files, config, tokens)
    else:
        raise ValueError(
            "the model has no tokenizer this version reads "
            f"(found: {', '.join(sorted(files)) or 'no tokenizer file'}); it needs tokenizer.json, tokenizer.model, "
            "vocab.json with merges.txt, or vocab.txt. Where only custom code makes the tokenizer, save it once with "
            "transformers: AutoTokenizer.from_pretrained(model, trust_remote_code=True).save_pretrained(folder)"
        )
    _add_tokens(backend, config, read_json(files.get("added_tokens.json")), tokens)
    return backend


def _read_backend(path: Path) -> Backend:
    try:
        return Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception for anything wrong in the file
        raise ValueError(
            f"{path} cannot be read by the tokenizers library ({error}); download it again or upgrade tokenizers"
        ) from error


def _add_tokens(
    backend: Backend, config: Mapping[str, Any], added: Mapping[str, Any], tokens: Mapping[str, str]
) -> None:
    """Adds what stands beside the vocabulary: added_tokens_decoder, added_tokens.json, and the special names."""
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    wanted: list[tuple[int, AddedToken]] = []
    for key, entry in (config.get("added_tokens_decoder") or {}).items():
        flags = {flag: bool(entry.get(flag)) for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
        wanted.append((int(key), AddedToken(entry["content"], **flags)))
    listed = {token.content for _, token in wanted}
    for content, key in added.items():
        if content not in listed:
            wanted.append((int(key), AddedToken(content, normalized=False, special=content in tokens.values())))
    for _, token in sorted(wanted, key=lambda pair: pair[0]):
        if token.content in known and known[token.content].special == token.special:
            continue
        (backend.add_special_tokens if token.special else backend.add_tokens)([token])
    known = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    missing = [t for t in dict.fromkeys(tokens.values()) if t not in known or not known[t].special]
    # Only names the vocabulary has: adding others would give them ids behind the model's embedding.
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in missing if backend.token_to_id(t) is not None]
    )


def _byte_level(files: Mapping[str, Path], config: Mapping[str, Any]) -> Backend:
    model = models.BPE.from_file(str(files["vocab.json"]), str(files["merges.txt"]))
    backend = Backend(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space", False)))
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return backend


def _wordpiece(files: Mapping[str, Path], config: Mapping[str, Any], tokens: Mapping[str, str]) -> Backend:
    unknown = tokens.get("unk_token", "[UNK]")
    backend = Backend(models.WordPiece.from_file(str(files["vocab.txt"]), unk_token=unknown))
    lower = bool(config.get("do_lower_case", True))
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lower,
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    start, end = tokens.get("cls_token", "[CLS]"), tokens.get("sep_token", "[SEP]")
    ids = [backend.token_to_id(start), backend.token_to_id(end)]
    if None in ids:
        raise ValueError(f"{files['vocab.txt']} has no {start} or {end}: it is not the vocabulary of a BERT model")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start}:0 $A:0 {end}:0",
        pair=f"{start}:0 $A:0 {end}:0 $B:1 {end}:1",
        special_tokens=[(start, ids[0]), (end, ids[1])],
    )
    return backend
