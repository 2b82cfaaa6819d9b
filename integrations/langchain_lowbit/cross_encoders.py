"""LowBitCrossEncoder: a reranking model in low bits, for LangChain's CrossEncoderReranker.

Translates types to and from `lowbit.Reranker`; loads and scores nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.cross_encoders import BaseCrossEncoder
from pydantic import BaseModel, ConfigDict, Field

import lowbit
from langchain_lowbit._embedding_arguments import loading_options

DEFAULT_MODEL_NAME = "BAAI/bge-reranker-base"


class LowBitCrossEncoder(BaseModel, BaseCrossEncoder):
    """Scores (query, passage) pairs; the fields of langchain-community's HuggingFaceCrossEncoder.

    model_kwargs: options for loading: `load_in_low_bit` (default "sym_int8"), `device`, `threads`, `max_length`, ...

        from langchain_classic.retrievers import ContextualCompressionRetriever
        from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
        from langchain_lowbit import LowBitCrossEncoder

        reranker = CrossEncoderReranker(model=LowBitCrossEncoder(model_name="BAAI/bge-reranker-base"), top_n=3)
        retriever = ContextualCompressionRetriever(base_compressor=reranker, base_retriever=store.as_retriever())
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    client: Any = Field(default=None, exclude=True, repr=False)
    """The `lowbit.Reranker`; `client.save_low_bit(path)` writes a folder that model_name can name."""
    model_name: str = DEFAULT_MODEL_NAME
    """Hub id, Hugging Face folder or low-bit folder."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Options for loading."""
    batch_size: int = 32
    """Pairs scored at a time."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        options = loading_options(self.model_kwargs)
        if self.client is None:
            self.client = lowbit.Reranker(self.model_name, **options)

    def score(self, text_pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Returns the score of each (query, passage) pair, in their order; more is better."""
        return self.client.score(list(text_pairs), batch_size=self.batch_size).tolist()
