"""Embedding classes of langchain-community over `lowbit.Embedder`: their constructors and attributes, int8 by default.

Translates arguments; loads, tokenises and pools nothing itself. What the predecessors did wrong is not kept: a query
instruction of yours is never replaced, a bad pooling is told at once, nothing needs pandas, ONNX or IPEX, and the dicts
you pass are not changed. What they did that may surprise is kept and logged: the Quantized classes take the mean of a
text's rows although BGE models were trained for the first row (`pooling_strategy="cls"`).
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

import lowbit
from langchain_lowbit._embedding_arguments import check_pooling, encode_options, loading_options, refuse_unknown

logger = logging.getLogger(__name__)

DEFAULT_BGE_MODEL = "BAAI/bge-small-en-v1.5"
DEFAULT_QUERY_BGE_INSTRUCTION_EN = "Represent this question for searching relevant passages: "
DEFAULT_QUERY_BGE_INSTRUCTION_ZH = "为这个句子生成表示以用于检索相关文章："


class _EmbedderEmbeddings(BaseModel, Embeddings):
    """What the classes share: texts with an instruction before them, through one embedder.

    The async twins come from LangChain's base class: they run these methods in a worker thread, and the native engine
    leaves other threads free while it works.
    """

    def _encode(self, texts: list[str]) -> np.ndarray:
        raise NotImplementedError

    def _before_document(self, text: str) -> str:
        raise NotImplementedError

    def _before_query(self, text: str) -> str:
        raise NotImplementedError

    def embed_documents_array(self, texts: list[str]) -> np.ndarray:
        """Returns the vectors of documents, float32 [n, dim]; what a vector store takes without a list per text."""
        if texts is None or isinstance(texts, str | bytes):
            raise TypeError(f"texts is {type(texts).__name__}; give a list of texts, for one text use embed_query")
        return self._encode([self._before_document(text) if isinstance(text, str) else text for text in texts])

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Returns the vectors of documents, in their order. Raises TypeError for anything but strings."""
        return self.embed_documents_array(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """Returns the vector of a query, with the query instruction before it."""
        return self._encode([self._before_query(text) if isinstance(text, str) else text])[0].tolist()


class IpexLLMBgeEmbeddings(_EmbedderEmbeddings):
    """A sentence-transformers model, quantised while it loads; pooling and normalisation as its files say.

    model_kwargs: options for loading: `device`, `load_in_low_bit` (default "sym_int8"), `threads`, `revision`,
    `trust_remote_code`, ... encode_kwargs: `batch_size`, `normalize_embeddings`, `show_progress_bar`, `truncate_dim`.
    Newlines in texts become spaces, as before.

        from langchain_lowbit import IpexLLMBgeEmbeddings

        embeddings = IpexLLMBgeEmbeddings(
            model_name="BAAI/bge-large-en-v1.5", encode_kwargs={"normalize_embeddings": True}
        )
        embeddings.embed_query("What is AI?")
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    client: Any = Field(default=None, exclude=True, repr=False)
    """The `lowbit.Embedder`; `embeddings.client.save_low_bit(path)` writes a folder that model_name can name."""
    model_name: str = DEFAULT_BGE_MODEL
    """Hub id, sentence-transformers folder or low-bit folder."""
    cache_folder: str | None = None
    """Where downloads are kept, if not in the hub's own cache."""
    model_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Options for loading."""
    encode_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Options for encoding."""
    query_instruction: str = DEFAULT_QUERY_BGE_INSTRUCTION_EN
    """Put before every query; for a Chinese BGE model ("-zh" in its name) the Chinese one, unless given."""
    embed_instruction: str = ""
    """Put before every document."""
    _encode_options: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        options = loading_options(self.model_kwargs)
        self._encode_options = encode_options(self.encode_kwargs)
        if "-zh" in self.model_name and "query_instruction" not in self.model_fields_set:
            self.query_instruction = DEFAULT_QUERY_BGE_INSTRUCTION_ZH
        if self.client is None:
            if self.cache_folder is not None:
                options = {"cache_dir": self.cache_folder} | options
            self.client = lowbit.Embedder(self.model_name, **options)

    def _encode(self, texts: list[str]) -> np.ndarray:
        return self.client.encode(texts, **self._encode_options)

    def _before_document(self, text: str) -> str:
        return self.embed_instruction + text.replace("\n", " ")

    def _before_query(self, text: str) -> str:
        return self.query_instruction + text.replace("\n", " ")


class QuantizedBiEncoderEmbeddings(_EmbedderEmbeddings):
    """A bi-encoder in low bits with the pooling that is asked for.

    max_seq_len: longest text in tokens; longer ones are cut (logged once). pooling_strategy: "mean" or "cls".
    query_instruction, document_instruction: put before queries and documents. padding: kept for old scripts, nothing is
    padded. model_kwargs: options for loading: `load_in_low_bit` (default "sym_int8"), `device`, `threads`, `revision`,
    ... encode_kwargs: `normalize_embeddings` (default False), `batch_size` (default 32), `show_progress_bar`.

    The int8 repositories that examples named (`Intel/bge-small-en-v1.5-rag-int8-static` and its siblings) hold formats
    of runtimes that no longer exist; the model they were made from is quantised instead, which is logged.

        from langchain_lowbit import QuantizedBiEncoderEmbeddings

        embeddings = QuantizedBiEncoderEmbeddings(
            "BAAI/bge-small-en-v1.5",
            pooling_strategy="cls",
            encode_kwargs={"normalize_embeddings": True},
            query_instruction="Represent this sentence for searching relevant passages: ",
        )
        embeddings.embed_documents(["a text", "another"])

    Raises ValueError for an unknown pooling and TypeError for an unknown argument, with the nearest name, before
    anything is loaded.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    model_name_or_path: str
    max_seq_len: int
    pooling: str
    padding: bool
    encode_kwargs: dict[str, Any]
    model_kwargs: dict[str, Any]
    normalize: bool
    batch_size: int
    query_instruction: str | None
    document_instruction: str | None
    transformer_model: Any = Field(default=None, exclude=True, repr=False)
    """The `lowbit.Embedder`; `embeddings.transformer_model.save_low_bit(path)` writes a complete folder."""

    def __init__(
        self,
        model_name: str,
        max_seq_len: int = 512,
        pooling_strategy: str = "mean",
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        padding: bool = True,
        model_kwargs: dict[str, Any] | None = None,
        encode_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        refuse_unknown(kwargs, QuantizedBiEncoderEmbeddings.__init__)
        options = encode_options(encode_kwargs)
        loading_options(model_kwargs)
        fields = {
            "model_name_or_path": str(model_name),
            "max_seq_len": max_seq_len,
            "pooling": check_pooling(pooling_strategy),
            "padding": padding,
            "encode_kwargs": dict(encode_kwargs or {}),
            "model_kwargs": dict(model_kwargs or {}),
            "normalize": bool(options.get("normalize", False)),
            "batch_size": options.get("batch_size", 32),
            "query_instruction": query_instruction,
            "document_instruction": document_instruction,
        }
        super().__init__(**fields)
        self.load_model()

    def load_model(self) -> None:
        """Loads the model that the attributes name; the constructor has done so."""
        options = loading_options(self.model_kwargs)
        asked: dict[str, Any] = {"max_length": self.max_seq_len, "truncate": True, "pooling": self.pooling}
        self.transformer_model = lowbit.Embedder(self.model_name_or_path, **(asked | options))
        own = self.transformer_model.configured_pooling
        if own is not None and own != self.pooling:
            logger.warning(
                "%s was trained with %r pooling and runs with %r, as asked or by this class's default; "
                "pooling_strategy=%r gives the vectors it was made for",
                self.model_name_or_path,
                own,
                self.pooling,
                own,
            )

    @property
    def transformer_tokenizer(self) -> Any:
        """The model's tokenizer."""
        return self.transformer_model.tokenizer

    @property
    def hidden_size(self) -> int:
        """Length of a vector."""
        return self.transformer_model.dimension

    def _encode(self, texts: list[str]) -> np.ndarray:
        options = encode_options(self.encode_kwargs) | {"normalize": self.normalize, "batch_size": self.batch_size}
        return self.transformer_model.encode(texts, **options)

    def _before_document(self, text: str) -> str:
        return (self.document_instruction or "") + text

    def _before_query(self, text: str) -> str:
        return (self.query_instruction or "") + text


class QuantizedBgeEmbeddings(QuantizedBiEncoderEmbeddings):
    """BGE in low bits: `QuantizedBiEncoderEmbeddings` with arguments by keyword, under its ITREX name.

    onnx_file_name: kept for old scripts; float weights are read and quantised here, no ONNX file is.

        from langchain_lowbit import QuantizedBgeEmbeddings

        embeddings = QuantizedBgeEmbeddings(
            model_name="BAAI/bge-small-en-v1.5",
            pooling_strategy="cls",
            encode_kwargs={"normalize_embeddings": True},
            query_instruction="Represent this sentence for searching relevant passages: ",
        )
    """

    onnx_file_name: str | None = None

    def __init__(
        self,
        model_name: str,
        *,
        max_seq_len: int = 512,
        pooling_strategy: str = "mean",
        query_instruction: str | None = None,
        document_instruction: str | None = None,
        padding: bool = True,
        model_kwargs: dict[str, Any] | None = None,
        encode_kwargs: dict[str, Any] | None = None,
        onnx_file_name: str | None = "int8-model.onnx",
        **kwargs: Any,
    ) -> None:
        refuse_unknown(kwargs, QuantizedBgeEmbeddings.__init__)
        super().__init__(
            model_name,
            max_seq_len,
            pooling_strategy,
            query_instruction,
            document_instruction,
            padding,
            model_kwargs,
            encode_kwargs,
        )
        self.onnx_file_name = onnx_file_name
