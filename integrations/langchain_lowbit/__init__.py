"""LangChain classes over lowbit: the names that used to live in langchain-community, on a maintained engine."""

from langchain_lowbit.chat_models import ChatIpexLLM
from langchain_lowbit.cross_encoders import LowBitCrossEncoder
from langchain_lowbit.embeddings import IpexLLMBgeEmbeddings, QuantizedBgeEmbeddings, QuantizedBiEncoderEmbeddings
from langchain_lowbit.llms import BigdlLLM, IpexLLM
from langchain_lowbit.pipelines import WeightOnlyQuantPipeline
from langchain_lowbit.vectorstores import FaissVectorStore

__all__ = [
    "BigdlLLM",
    "ChatIpexLLM",
    "FaissVectorStore",
    "IpexLLM",
    "IpexLLMBgeEmbeddings",
    "LowBitCrossEncoder",
    "QuantizedBgeEmbeddings",
    "QuantizedBiEncoderEmbeddings",
    "WeightOnlyQuantPipeline",
]
