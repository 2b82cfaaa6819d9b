"""The LangChain classes where nothing but `lowbit[langchain,faiss]` is installed: a process that refuses the rest."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys

ABSENT = ("torch", "transformers", "sentence_transformers", "pandas", "optimum", "onnxruntime", "langchain_community")
sys.modules |= dict.fromkeys(ABSENT)  # importing one raises ImportError

from langchain_lowbit import FaissVectorStore, IpexLLMBgeEmbeddings, LowBitCrossEncoder, QuantizedBiEncoderEmbeddings

embedder, reranker = sys.argv[1:]
for embeddings in (IpexLLMBgeEmbeddings(model_name=embedder), QuantizedBiEncoderEmbeddings(embedder, max_seq_len=24)):
    store = FaissVectorStore.from_texts(["w5 w6", "w7"], embeddings)
    print(len(embeddings.embed_query("w5 w6")), store.similarity_search("w7", k=1)[0].page_content)
print(len(LowBitCrossEncoder(model_name=reranker).score([("w5", "w6"), ("w5", "w7")])))
"""


def test_first_embedding_needs_no_torch(tmp_path):
    from tiny_bert import write_bert

    embedder, reranker = write_bert(tmp_path / "embedder"), write_bert(tmp_path / "reranker", labels=1)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(embedder), str(reranker)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["48", "w7", "48", "w7", "2"]
