"""LlamaIndex embeddings over lowbit: the classes of the deleted ipex-llm and optimum-intel packages."""

from llama_index.embeddings.lowbit.base import IntelEmbedding, IpexLLMEmbedding

__all__ = ["IntelEmbedding", "IpexLLMEmbedding"]
