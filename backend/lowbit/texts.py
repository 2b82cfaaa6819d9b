"""Texts of many lengths as token ids: checked, encoded in one batch, cut at the model's limit where that is allowed.

What `Embedder` and `Reranker` share. Nothing is cut silently: a cut is logged once per model, and is an error where
neither the caller nor the model's configuration allows it.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowbit.checkpoint import LoadedModel
from lowbit.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

NEED_JSON = frozenset({"roberta", "xlm-roberta", "mpnet", "modernbert"})  # families whose older files are not enough


class Reopened:
    """What is pickled as the arguments it was opened with, so that another process opens it, and shared by copies."""

    _arguments: dict[str, Any]

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._arguments), ()

    def __copy__(self) -> Any:
        return self  # nothing in it changes

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class Encoding:
    """The tokenizer of an embedder or reranker. max_length: tokens of a text or pair, special ones included."""

    def __init__(
        self, tokenizer: Tokenizer, max_length: int, truncate: bool, model_id: str, pairs: bool = False
    ) -> None:
        self.max_length = max_length
        self.truncate = truncate
        self._backend = tokenizer.backend
        self._model_id = model_id
        self._lock = threading.Lock()
        self._told = False
        # Of a pair the library keeps every piece of one text beside every piece of the other: two texts of 1 MB are
        # more than the memory, so pairs are cut here.
        self._cuts_pairs = truncate and pairs
        if truncate and not pairs:
            self._backend.enable_truncation(max_length)

    def __call__(self, texts: Sequence[str | tuple[str, str]], first: int = 0) -> list[Any]:
        """Returns encodings of texts or pairs (ids, type_ids), `first` being the callers' number of texts[0].

        Raises ValueError for a text without tokens, for one that is too long and must not be cut, and for one that is
        not Unicode.
        """
        try:
            encodings: list[Any] = self._backend.encode_batch(list(texts))
        except TypeError:
            _refuse_surrogates(texts, first)
            raise
        for i, encoding in enumerate(encodings):
            is_cut = bool(encoding.overflowing)
            if self._cuts_pairs and len(encoding) > self.max_length:
                encodings[i] = encoding = cut_pair(encoding, self.max_length)
                is_cut = True
            count = len(encoding)
            if count == 0:
                raise ValueError(
                    f"texts[{first + i}] is empty and this model's tokenizer adds no special tokens; leave it out"
                )
            if count > self.max_length:
                raise ValueError(
                    f"texts[{first + i}] has {count} tokens, the limit of {self._model_id} is {self.max_length}; split "
                    "it, or pass truncate=True to cut it"
                )
            if is_cut and not self._told:
                self._tell(first + i)
        return encodings

    def _tell(self, index: int) -> None:
        with self._lock:
            if self._told:
                return
            self._told = True
        logger.warning(
            "texts[%d] has more than the %d tokens that %s reads and was cut; this is said once", index,
            self.max_length, self._model_id,
        )  # fmt: skip


@dataclass(frozen=True)
class Cut:
    """What is left of an encoding: token ids, and which of a pair's texts each belongs to, int32 [tokens]."""

    ids: np.ndarray
    type_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def cut_pair(encoding: Any, max_length: int) -> Cut:
    """Returns a pair's encoding with the ends of its texts left out, of the longer one first, as the library cuts."""
    text = np.array([-1 if number is None else number for number in encoding.sequence_ids])
    counts = [int((text == number).sum()) for number in (0, 1)]
    room = max(0, max_length - int((text < 0).sum()))
    few = min(*counts, room // 2)  # of the shorter one; the first, if both are equally long
    kept = (few, room - few) if counts[0] <= counts[1] else (room - few, few)
    stay = text < 0
    for number in (0, 1):
        stay[np.flatnonzero(text == number)[: kept[number]]] = True
    return Cut(np.array(encoding.ids, np.int32)[stay], np.array(encoding.type_ids, np.int32)[stay])


def _refuse_surrogates(texts: Sequence[str | tuple[str, str]], first: int) -> None:
    """Raises ValueError naming the text with half a surrogate pair, which Python's strings hold and UTF-8 does not."""
    for i, text in enumerate(texts):
        try:
            (text if isinstance(text, str) else "".join(text)).encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"texts[{first + i}] holds half a surrogate pair at character {error.start}, which is no text; "
                "repair it with text.encode('utf-8', 'replace').decode()"
            ) from None


def ids_of(encoding: Any) -> np.ndarray:
    """Returns the ids of an encoding, int32."""
    return np.array(encoding.ids, np.int32)


def tokenizer_of(loaded: LoadedModel) -> Tokenizer:
    """Returns the tokenizer of a model. Raises ValueError when its files leave open where special tokens stand."""
    files, family = loaded.tokenizer_files, loaded.spec.family
    if family in NEED_JSON and files and "tokenizer.json" not in files:
        raise ValueError(
            f"this {family} model has no tokenizer.json, only {', '.join(sorted(files))}, which do not say how its ids "
            "are numbered and where special tokens stand; save it once with transformers: "
            "AutoTokenizer.from_pretrained(model).save_pretrained(folder)"
        )
    return Tokenizer.from_files(files)


def limit(context: int, tokenizer: Tokenizer, configured: int | None, asked: int | None) -> int:
    """Returns the longest text in tokens: the caller's wish, else the configuration's, within what the model can read.

    Raises ValueError when the caller asks for more than that.
    """
    if asked is not None and not 1 <= asked <= context:
        raise ValueError(f"max_length={asked} is not possible: this model reads 1 to {context} tokens")
    if asked is not None:
        return asked
    own = tokenizer.config.get("model_max_length")  # a huge number where nothing is known
    return min(context, configured or context, int(own) if own else context)


def check_texts(texts: Sequence[Any], what: str = "texts", first: int = 0) -> None:
    """Raises TypeError naming the first item that is no string."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"{what}[{first + i}] is {'None' if text is None else type(text).__name__}, it must be a string"
            )
