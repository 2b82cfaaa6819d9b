"""LangChain classes over lowbit: the names that used to live in langchain-community, on a maintained engine."""

from langchain_lowbit.llms import BigdlLLM, IpexLLM

__all__ = ["BigdlLLM", "IpexLLM"]
