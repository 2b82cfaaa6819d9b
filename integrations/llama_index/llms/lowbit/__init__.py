"""LlamaIndex LLM over lowbit: the class of the deleted ipex-llm package."""

from llama_index.llms.lowbit.base import IpexLLM

__all__ = ["IpexLLM"]
