"""Scripts as users of the predecessors' embedding classes have them: import line and model path changed, nothing else.

On the real all-MiniLM-L6-v2, so that what they find can be checked, and the embedded model for answers.
"""

import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from shared_data import minilm

ROOT = Path(__file__).resolve().parents[2]
HANDBOOK = ROOT / "cookbook" / "data" / "handbook"
RETRIEVAL_INSTRUCTION = "Represent this sentence for searching relevant passages: "

# import line of langchain-community's pages, class, how the pages call it
SCRIPTS = {
    "ITREX": """
from langchain_lowbit import QuantizedBgeEmbeddings

model_name = MODEL
encode_kwargs = {"normalize_embeddings": True}  # set True to compute cosine similarity

model = QuantizedBgeEmbeddings(
    model_name=model_name,
    encode_kwargs=encode_kwargs,
    query_instruction=INSTRUCTION,
)
""",
    "optimum-intel": """
from langchain_lowbit import QuantizedBiEncoderEmbeddings

model_name = MODEL
encode_kwargs = {"normalize_embeddings": True}  # set True to compute cosine similarity

model = QuantizedBiEncoderEmbeddings(
    model_name,
    encode_kwargs=encode_kwargs,
    query_instruction=INSTRUCTION,
)
""",
    "ipex-llm": """
from langchain_lowbit import IpexLLMBgeEmbeddings

model = IpexLLMBgeEmbeddings(
    model_name=MODEL,
    model_kwargs={"device": "cpu"},
    encode_kwargs={"normalize_embeddings": True},
)
""",
}
QUESTION = "In which year was the lighthouse built?"
TEXTS = ["The harbour light has stood on the cliff since 1874.", "The cliff is popular with people who paint."]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_pages_scripts(script, capfd):
    names = {"MODEL": str(minilm()), "INSTRUCTION": RETRIEVAL_INSTRUCTION}
    exec(compile(SCRIPTS[script], script, "exec"), names)
    documents = names["model"].embed_documents(TEXTS)
    query = names["model"].embed_query(QUESTION)
    assert [len(vector) for vector in [query, *documents]] == [384] * 3
    assert all(type(number) is float for number in query)
    assert np.linalg.norm(query) == pytest.approx(1, abs=1e-5)
    answer, other = (float(np.dot(query, document)) for document in documents)
    assert answer > other + 0.1
    assert capfd.readouterr() == ("", ""), "something was printed"


def test_the_instruction_goes_before_queries_only():
    from langchain_lowbit import QuantizedBiEncoderEmbeddings

    plain = QuantizedBiEncoderEmbeddings(str(minilm()))
    told = QuantizedBiEncoderEmbeddings(str(minilm()), query_instruction=RETRIEVAL_INSTRUCTION)
    assert told.embed_documents(TEXTS) == plain.embed_documents(TEXTS)
    assert told.embed_query(QUESTION) == plain.embed_query(RETRIEVAL_INSTRUCTION + QUESTION)
    assert told.embed_query(QUESTION) != plain.embed_query(QUESTION)


def test_the_steps_of_the_predecessors_cookbook():
    """Parents of 1000 characters, children of 400 in the index, whole parents in the prompt of a chain."""
    from langchain_classic.retrievers.multi_vector import MultiVectorRetriever
    from langchain_core.documents import Document
    from langchain_core.prompts import PromptTemplate
    from langchain_core.runnables import RunnablePassthrough
    from langchain_core.stores import InMemoryByteStore
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    from langchain_lowbit import FaissVectorStore, IpexLLM, QuantizedBiEncoderEmbeddings

    pages = [Document(page.read_text(encoding="utf-8"), metadata={"source": page.name}) for page in HANDBOOK.glob("*")]
    parents = RecursiveCharacterTextSplitter(chunk_size=1000, chunk_overlap=0).split_documents(pages)
    embeddings = QuantizedBiEncoderEmbeddings(str(minilm()), encode_kwargs={"normalize_embeddings": True})
    retriever = MultiVectorRetriever(
        vectorstore=FaissVectorStore(embeddings), byte_store=InMemoryByteStore(), id_key="doc_id"
    )
    ids = [str(uuid.uuid4()) for _ in parents]
    child_splitter = RecursiveCharacterTextSplitter(chunk_size=400)
    children = []
    for id_, parent in zip(ids, parents, strict=True):
        for child in child_splitter.split_documents([parent]):
            child.metadata["doc_id"] = id_
            children.append(child)
    retriever.vectorstore.add_documents(children)
    retriever.docstore.mset(list(zip(ids, parents, strict=True)))
    assert len(retriever.vectorstore) == len(children) > len(parents) > len(pages)

    found = retriever.invoke("How much does the format nf4 need?")
    assert "nf4 needs 4.25 bits" in found[0].page_content
    assert any(found[0].page_content == parent.page_content for parent in parents)

    if not (ROOT / "demo" / "model" / "config.json").exists():
        pytest.skip("the embedded model (demo/model) is not in this checkout")
    llm = IpexLLM.from_model_id(str(ROOT / "demo" / "model"), {"temperature": 0, "max_new_tokens": 32})
    prompt = PromptTemplate.from_template("Context: {context}\n\nQuestion: {question}\nAnswer:")
    chain = {"context": retriever | (lambda d: d[0].page_content), "question": RunnablePassthrough()} | prompt | llm
    assert "4.25 bits" in chain.invoke("How much does the format nf4 need?")


def test_importing_and_embedding_load_neither_torch_nor_pandas():
    script = (
        "import sys\n"
        "from langchain_lowbit import QuantizedBgeEmbeddings\n"
        f"assert len(QuantizedBgeEmbeddings({str(minilm())!r}).embed_query('a text')) == 384\n"
        "print(sorted({'torch', 'transformers', 'pandas', 'onnx', 'sentence_transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
