"""LlamaIndex reranking over lowbit."""

from llama_index.postprocessor.lowbit_rerank.base import LowBitRerank

__all__ = ["LowBitRerank"]
