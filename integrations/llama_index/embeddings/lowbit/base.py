"""IpexLLMEmbedding and IntelEmbedding over `lowbit.Embedder`: the predecessors' constructors, int8 by default.

Translates arguments; loads, tokenises and pools nothing itself. Async methods work in a worker thread, so the event
loop stays free.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.callbacks import CallbackManager

import lowbit
from lowbit.runtime import nearest

DEFAULT_MODEL = "BAAI/bge-small-en-v1.5"
# Part of a model's name -> what is put before a query, before a text; the first that fits.
INSTRUCTIONS = {
    "-zh": ("为这个句子生成表示以用于检索相关文章：", ""),
    "bge": ("Represent this question for searching relevant passages: ", ""),
    "instructor": (
        "Represent the question for retrieving supporting documents: ",
        "Represent the document for retrieval: ",
    ),
}
POOLINGS = ("cls", "mean")
# Names that scripts use -> lowbit.Embedder's.
_NAMES = {"load_in_low_bit": "low_bit", "max_seq_length": "max_length"}


def default_instructions(model_name: str) -> tuple[str, str]:
    """Returns (query instruction, text instruction) that a model was trained with, by its name; empty for others."""
    name = model_name.rstrip("/").rpartition("/")[2].lower()
    if "bge-m3" in name:  # made to be used without
        return "", ""
    return next((found for part, found in INSTRUCTIONS.items() if part in name), ("", ""))


class _LowBitEmbedding(BaseEmbedding):
    """What the two classes share: texts with an instruction before them, through one embedder."""

    max_length: int = Field(default=512, description="Longest text in tokens; longer ones are cut.", gt=0)
    normalize: bool = Field(default=True, description="Whether vectors have length 1.")
    query_instruction: str | None = Field(default=None, description="Put before every query.")
    text_instruction: str | None = Field(default=None, description="Put before every text.")
    cache_folder: str | None = Field(default=None, description="Where downloads are kept.")

    _model: Any = PrivateAttr()
    """The `lowbit.Embedder`; `embedding._model.save_low_bit(path)` writes a folder that the constructors open."""

    def __init__(
        self, model: Any, model_name: str, query_instruction: str | None, text_instruction: str | None, **fields: Any
    ) -> None:
        for_query, for_text = default_instructions(model_name)
        fields |= {
            "model_name": model_name,
            "max_length": model.max_length,
            "query_instruction": for_query if query_instruction is None else query_instruction,
            "text_instruction": for_text if text_instruction is None else text_instruction,
        }
        super().__init__(**fields)
        self._model = model

    def _embed(self, instruction: str | None, texts: list[str]) -> list[list[float]]:
        given = [instruction + text if instruction and isinstance(text, str) else text for text in texts]
        return self._model.encode(given, batch_size=self.embed_batch_size, normalize=self.normalize).tolist()

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._embed(self.query_instruction, [query])[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._embed(self.text_instruction, [text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._embed(self.text_instruction, texts)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


def _load(model_name: str, cache_folder: str | None, model_kwargs: dict[str, Any], **options: Any) -> Any:
    given = {_NAMES.get(name, name): value for name, value in model_kwargs.items()}
    asked = {name: value for name, value in {**options, "cache_dir": cache_folder}.items() if value is not None}
    return lowbit.Embedder(model_name, **(asked | given))


class IpexLLMEmbedding(_LowBitEmbedding):
    """A sentence-transformers model, quantised while it loads; pooling as its files say.

    model_name: hub id, folder, or a folder that `save_low_bit` wrote. max_length: longest text in tokens (None: the
    model's); longer ones are cut, logged once. query_instruction, text_instruction: None takes what a BGE or instructor
    model was trained with. device: "cpu", "auto", "xpu" or "xpu:N". trust_remote_code: accepted; no code of a model is
    ever run. model_kwargs: further options for loading: `load_in_low_bit` (default "sym_int8"), `threads`, `revision`,
    ...

        from llama_index.core import VectorStoreIndex
        from llama_index.embeddings.lowbit import IpexLLMEmbedding

        index = VectorStoreIndex.from_documents(documents, embed_model=IpexLLMEmbedding("BAAI/bge-small-en-v1.5"))
    """

    def __init__(
        self,
        model_name: str = DEFAULT_MODEL,
        max_length: int | None = None,
        query_instruction: str | None = None,
        text_instruction: str | None = None,
        normalize: bool = True,
        embed_batch_size: int = 10,
        cache_folder: str | None = None,
        trust_remote_code: bool = False,
        device: str = "cpu",
        callback_manager: CallbackManager | None = None,
        **model_kwargs: Any,
    ) -> None:
        model = _load(
            model_name,
            cache_folder,
            model_kwargs,
            max_length=max_length,
            truncate=True,
            trust_remote_code=trust_remote_code,
            device=device,
        )
        super().__init__(
            model,
            model_name,
            query_instruction,
            text_instruction,
            normalize=normalize,
            embed_batch_size=embed_batch_size,
            cache_folder=cache_folder,
            callback_manager=callback_manager or CallbackManager([]),
        )

    @classmethod
    def class_name(cls) -> str:
        """Returns the name LlamaIndex stores the class under."""
        return "IpexLLMEmbedding"


class IntelEmbedding(_LowBitEmbedding):
    """A bi-encoder in low bits with the pooling that is asked for.

    folder_name: hub id, folder, or a folder that `save_low_bit` wrote. pooling: "cls" or "mean". max_length: longest
    text in tokens (None: the model's). model: a loaded `lowbit.Embedder` instead, which then has its own pooling.
    tokenizer: hub id or folder to take the tokenizer from, if not the model's own. query_instruction, text_instruction:
    None takes what a BGE or instructor model was trained with. model_kwargs: new, as in `IpexLLMEmbedding`.

    Raises ValueError for an unknown pooling before anything is loaded.
    """

    pooling: str = Field(default="cls", description="How the rows of a text become one vector.")

    def __init__(
        self,
        folder_name: str,
        pooling: str = "cls",
        max_length: int | None = None,
        normalize: bool = True,
        query_instruction: str | None = None,
        text_instruction: str | None = None,
        cache_folder: str | None = None,
        model: Any | None = None,
        tokenizer: Any | None = None,
        embed_batch_size: int = 10,
        callback_manager: CallbackManager | None = None,
        device: str | None = None,
        **model_kwargs: Any,
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"unknown pooling {pooling!r}{nearest(str(pooling), POOLINGS)} Choose 'cls' or 'mean'.")
        if model is not None and not hasattr(model, "encode"):
            raise TypeError(f"model must be a lowbit.Embedder, not a {type(model).__name__}; leave it out to load one")
        if tokenizer is not None and not isinstance(tokenizer, str):
            raise TypeError("tokenizer must be a hub id or a folder: the model's own tokenizer is loaded with it")
        if model is None:
            model = _load(
                folder_name,
                cache_folder,
                model_kwargs,
                max_length=max_length,
                truncate=True,
                pooling=pooling,
                tokenizer_id=tokenizer,
                device=device,
            )
        super().__init__(
            model,
            folder_name,
            query_instruction,
            text_instruction,
            pooling=pooling,
            normalize=normalize,
            embed_batch_size=embed_batch_size,
            cache_folder=cache_folder,
            callback_manager=callback_manager or CallbackManager([]),
        )

    @classmethod
    def class_name(cls) -> str:
        """Returns the name LlamaIndex stores the class under."""
        return "IntelEmbedding"
