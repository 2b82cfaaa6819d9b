"""Text to token ids and back, from the files of a model folder, without transformers.

Owns special tokens, beginning- and end-of-text rules and the chat template's text (chat.py renders it). Files other
than tokenizer.json are converted by tokenizer_files.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from tokenizers import processors

from lowbit.detokenize import TextStream, clean_up
from lowbit.tokenizer_files import build_backend, read_json, special_tokens

# Files a folder may have that `Tokenizer.from_files` understands.
FILE_NAMES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "chat_template.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "merges.txt",
    "vocab.txt",
)  # fmt: skip
NAMED_TEMPLATES = "additional_chat_templates"  # a folder of name.jinja


class Tokenizer:
    """Encodes and decodes as transformers' tokenizer for the same files does.

    chat_template: the template's text, a dictionary of named ones, or None.
    cleans_up: whether decoding removes spaces before punctuation (transformers' clean_up_tokenization_spaces).
    special_tokens: names like "bos_token" to strings.
    """

    def __init__(
        self, backend: Backend, config: Mapping[str, Any], tokens: Mapping[str, str], chat_template: Any = None
    ) -> None:
        backend.no_truncation()  # files of embedding models carry both; nothing is cut or padded silently
        backend.no_padding()
        self.backend = backend
        self.config = dict(config)
        self.special_tokens = dict(tokens)
        self.chat_template = chat_template
        added = backend.get_added_tokens_decoder()
        self.added_ids = frozenset(added)  # tokens that are one piece of text; the special ones are no text at all
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.cleans_up = bool(config.get("clean_up_tokenization_spaces")) and type(backend.model).__name__ != "BPE"
        _apply_bos_eos_rules(backend, config, tokens)
        self._anchor = backend.encode("a", add_special_tokens=False).ids[-1:]

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Returns the tokenizer of a model folder."""
        folder = Path(folder)
        paths = [*(folder / name for name in FILE_NAMES), *sorted((folder / NAMED_TEMPLATES).glob("*.jinja"))]
        return cls.from_files({str(path.relative_to(folder).as_posix()): path for path in paths if path.is_file()})

    @classmethod
    def from_files(cls, files: Mapping[str, Path]) -> Tokenizer:
        """Returns the tokenizer of some files (name -> path). Raises ValueError naming what is missing or damaged."""
        config = read_json(files.get("tokenizer_config.json"))
        tokens = special_tokens(config, read_json(files.get("special_tokens_map.json")))
        return cls(build_backend(files, config, tokens), config, tokens, _chat_template(files, config))

    @property
    def vocab_size(self) -> int:
        """Number of ids, added tokens included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-text token, or None."""
        return self._special_id("bos_token")

    @property
    def eos_id(self) -> int | None:
        """Id of the end-of-text token, or None."""
        return self._special_id("eos_token")

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def id(self, token: str) -> int | None:
        """Returns the id of a token's exact string, or None."""
        return self.backend.token_to_id(token)

    def token(self, token_id: int) -> str | None:
        """Returns the string of an id as the vocabulary has it (spaces may be marked), or None."""
        return self.backend.id_to_token(token_id)

    def token_text(self, token_id: int) -> str:
        """Returns the text of one id as it reads inside a text (with its leading space); bytes that are no character on
        their own read as U+FFFD."""
        before = self.backend.decode(self._anchor, skip_special_tokens=False)
        return self.backend.decode([*self._anchor, token_id], skip_special_tokens=False)[len(before) :]

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the ids of a text, with the model's beginning- and end-of-text tokens unless told otherwise."""
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of ids."""
        text = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return clean_up(text) if self.cleans_up else text

    def stream(self, *, skip_special_tokens: bool = True, keep: Sequence[int] = ()) -> TextStream:
        """Returns a decoder that takes ids one by one; its pieces join to what `decode` returns.

        keep: special tokens that stay in the text nevertheless.
        """
        return TextStream(
            lambda ids: self.backend.decode(ids, skip_special_tokens=False),
            self.backend.id_to_token,
            self.special_ids.difference(keep) if skip_special_tokens else frozenset(),
            self.cleans_up,
        )


def _apply_bos_eos_rules(backend: Backend, config: Mapping[str, Any], tokens: Mapping[str, str]) -> None:
    """Lets add_bos_token and add_eos_token of tokenizer_config.json win over tokenizer.json, as in transformers."""
    wanted = [bool(config.get("add_bos_token")), bool(config.get("add_eos_token"))]
    if config.get("add_bos_token") is None and config.get("add_eos_token") is None:
        return
    names = [tokens.get("bos_token"), tokens.get("eos_token")]
    ids = [None if name is None else backend.token_to_id(name) for name in names]
    probe = backend.encode("a", add_special_tokens=True).ids
    bare = backend.encode("a", add_special_tokens=False).ids
    has = [probe[:1] == ids[:1] != bare[:1], probe[-1:] == ids[1:] != bare[-1:]]
    if [bool(w and i is not None) for w, i in zip(wanted, ids, strict=True)] == has:
        return
    bos, eos = (name if w and i is not None else None for name, w, i in zip(names, wanted, ids, strict=True))
    single = [*([f"{bos}:0"] if bos else []), "$A:0", *([f"{eos}:0"] if eos else [])]
    pair = [*single, *([f"{bos}:1"] if bos else []), "$B:1", *([f"{eos}:1"] if eos else [])]
    special = [(name, backend.token_to_id(name)) for name in {bos, eos} if name]
    backend.post_processor = processors.TemplateProcessing(single=single, pair=pair, special_tokens=special)


def _chat_template(files: Mapping[str, Path], config: Mapping[str, Any]) -> str | dict[str, str] | None:
    """The chat template: files of its own win over tokenizer_config.json. Several named ones become a dictionary."""
    named = {Path(n).stem: p.read_text(encoding="utf-8") for n, p in files.items() if n.startswith(NAMED_TEMPLATES)}
    if path := files.get("chat_template.jinja"):
        default = path.read_text(encoding="utf-8")
        return {"default": default, **named} if named else default
    if named:
        return named
    if path := files.get("chat_template.json"):
        return read_json(path).get("chat_template")
    template = config.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return template
