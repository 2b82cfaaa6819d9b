"""The LlamaIndex classes: what they hand to lowbit, on fakes; retrieval and reranking in an index, on tiny models."""

import asyncio
import inspect
import pickle
import threading
import time

import numpy as np
import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.llms import MockLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from tiny_bert import write_bert, write_sentence_files

import lowbit
from llama_index.embeddings.lowbit import IntelEmbedding, IpexLLMEmbedding
from llama_index.postprocessor.lowbit_rerank import LowBitRerank

BGE_QUERY = "Represent this question for searching relevant passages: "


class FakeEmbedder:
    max_length = 77
    wait = 0.0

    def __init__(self, id_or_path, **options):
        self.model_id, self.options, self.calls = id_or_path, options, []

    def encode(self, texts, **options):
        self.calls.append((list(texts), options, threading.get_ident()))
        time.sleep(self.wait)
        return np.array([[len(text), 1] for text in texts], np.float32)


class FakeReranker:
    def __init__(self, id_or_path, **options):
        self.model_id, self.options = id_or_path, options

    def score(self, query, passages, batch_size):
        return np.array([passage.count(query) for passage in passages], np.float32)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(lowbit, "Embedder", FakeEmbedder, raising=False)
    monkeypatch.setattr(lowbit, "Reranker", FakeReranker, raising=False)


@pytest.fixture(scope="module")
def tiny_embedder(tmp_path_factory):
    return str(write_sentence_files(write_bert(tmp_path_factory.mktemp("tiny") / "embedder"), pooling="cls_token"))


def defaults(cls):
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.kind is not inspect.Parameter.VAR_KEYWORD}


def test_constructors_are_upstreams():
    assert defaults(IpexLLMEmbedding) == {
        "model_name": "BAAI/bge-small-en-v1.5", "max_length": None, "query_instruction": None,
        "text_instruction": None, "normalize": True, "embed_batch_size": 10, "cache_folder": None,
        "trust_remote_code": False, "device": "cpu", "callback_manager": None,
    }  # fmt: skip
    assert defaults(IntelEmbedding) == {
        "folder_name": inspect.Parameter.empty, "pooling": "cls", "max_length": None, "normalize": True,
        "query_instruction": None, "text_instruction": None, "cache_folder": None, "model": None, "tokenizer": None,
        "embed_batch_size": 10, "callback_manager": None, "device": None,
    }  # fmt: skip
    for cls in (IpexLLMEmbedding, IntelEmbedding):
        assert issubclass(cls, BaseEmbedding)
        assert cls.class_name() == cls.__name__
    assert issubclass(LowBitRerank, BaseNodePostprocessor)


@pytest.mark.parametrize("cls", [IpexLLMEmbedding, IntelEmbedding])
def test_workers_of_a_pipeline_get_the_model(tiny_embedder, cls):
    """LlamaIndex leaves out what does not pickle, without a word; the worker then has no model."""
    embedding = cls(tiny_embedder, load_in_low_bit="nf4")
    again = pickle.loads(pickle.dumps(embedding))
    assert again.get_text_embedding("w5 w6") == embedding.get_text_embedding("w5 w6")


def test_ipex_arguments_arrive(fake):
    embedding = IpexLLMEmbedding()
    assert (embedding.model_name, embedding._model.model_id) == ("BAAI/bge-small-en-v1.5",) * 2
    assert embedding._model.options == {"truncate": True, "trust_remote_code": False, "device": "cpu"}
    assert (embedding.max_length, embedding.embed_batch_size, embedding.normalize) == (77, 10, True)
    embedding.get_query_embedding("q")
    embedding.get_text_embedding("t")
    wanted = {"batch_size": 10, "normalize": True}
    assert [call[:2] for call in embedding._model.calls] == [([BGE_QUERY + "q"], wanted), (["t"], wanted)]
    embedding = IpexLLMEmbedding("m", 32, "Q: ", "T: ", False, 3, "cache", load_in_low_bit="nf4", threads=2)
    assert embedding._model.options == {
        "max_length": 32, "truncate": True, "trust_remote_code": False, "device": "cpu", "cache_dir": "cache",
        "low_bit": "nf4", "threads": 2,
    }  # fmt: skip
    vectors = embedding.get_text_embedding_batch(["a", "b", "c", "d"])
    assert [call[:2] for call in embedding._model.calls] == [
        (["T: a", "T: b", "T: c"], {"batch_size": 3, "normalize": False}),
        (["T: d"], {"batch_size": 3, "normalize": False}),
    ]
    assert vectors == [[4.0, 1.0]] * 4


@pytest.mark.parametrize(
    ("name", "query", "text"),
    [
        ("BAAI/bge-large-zh-v1.5", "为这个句子生成表示以用于检索相关文章：", ""),
        ("BAAI/bge-base-en", BGE_QUERY, ""),
        ("BAAI/bge-m3", "", ""),
        ("hkunlp/instructor-base", "Represent the question for retrieving supporting documents: ",
         "Represent the document for retrieval: "),
        ("sentence-transformers/all-MiniLM-L6-v2", "", ""),
    ],
)  # fmt: skip
def test_instructions_by_model(name, query, text, fake):
    for embedding in (IpexLLMEmbedding(name), IntelEmbedding(name)):
        assert (embedding.query_instruction, embedding.text_instruction) == (query, text)
    mine = IpexLLMEmbedding(name, query_instruction="", text_instruction="mine")
    assert (mine.query_instruction, mine.text_instruction) == ("", "mine")


def test_intel_arguments_arrive(fake):
    embedding = IntelEmbedding("folder", "mean", 16, tokenizer="other", device="cpu")
    assert embedding._model.options == {
        "max_length": 16, "truncate": True, "pooling": "mean", "tokenizer_id": "other", "device": "cpu",
    }  # fmt: skip
    assert IntelEmbedding("folder")._model.options == {"truncate": True, "pooling": "cls"}
    loaded = FakeEmbedder("x")
    assert IntelEmbedding("folder", model=loaded)._model is loaded
    with pytest.raises(ValueError, match="unknown pooling 'men'; did you mean 'mean'"):
        IntelEmbedding("folder", pooling="men")
    with pytest.raises(TypeError, match=r"lowbit\.Embedder, not a dict"):
        IntelEmbedding("folder", model={})
    with pytest.raises(TypeError, match="hub id or a folder"):
        IntelEmbedding("folder", tokenizer=object())


async def test_async_methods_leave_the_loop_free(fake, monkeypatch):
    monkeypatch.setattr(FakeEmbedder, "wait", 0.2)
    embedding = IpexLLMEmbedding("m")
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    assert await embedding.aget_query_embedding("one") == [3.0, 1.0]
    assert await embedding.aget_text_embedding("three") == [5.0, 1.0]
    assert await embedding.aget_text_embedding_batch(["a", "bc"]) == [[1.0, 1.0], [2.0, 1.0]]
    ticking.cancel()
    assert ticks >= 6
    assert all(thread != threading.get_ident() for _, _, thread in embedding._model.calls)


def test_unknown_options_are_told(tiny_embedder):
    with pytest.raises(TypeError, match="'devise'"):
        IpexLLMEmbedding(tiny_embedder, devise="cpu")
    with pytest.raises(ValueError, match="unknown device 'cuda'"):
        IpexLLMEmbedding(tiny_embedder, device="cuda")


def test_a_query_finds_its_node_and_reranks(tiny_embedder, tmp_path):
    texts = [f"w{i} w{i + 1} w{i + 2}" for i in range(1, 25, 3)]
    index = VectorStoreIndex([TextNode(text=text) for text in texts], embed_model=IpexLLMEmbedding(tiny_embedder))
    found = index.as_retriever(similarity_top_k=2).retrieve(texts[3])
    assert found[0].text == texts[3]
    assert found[0].score == pytest.approx(1, abs=1e-4)
    assert found[1].score < 0.999

    reranker = LowBitRerank(top_n=3, model=str(write_bert(tmp_path / "cross", labels=1)))
    engine = index.as_query_engine(llm=MockLLM(), similarity_top_k=8, node_postprocessors=[reranker])
    sources = engine.query("w40 w41").source_nodes
    scores = dict(zip(texts, reranker._model.score("w40 w41", texts).tolist(), strict=True))
    assert [node.text for node in sources] == sorted(texts, key=lambda text: -scores[text])[:3]
    assert [node.score for node in sources] == pytest.approx(sorted(scores.values(), reverse=True)[:3], abs=1e-6)


async def test_an_index_answers_awaited_queries(tiny_embedder):
    index = VectorStoreIndex(nodes=[], embed_model=IntelEmbedding(tiny_embedder, max_length=24))
    await index.ainsert_nodes([TextNode(text=text) for text in ("w1 w2", "w30 w31")])
    found = await index.as_retriever(similarity_top_k=1).aretrieve("w30 w31")
    assert found[0].text == "w30 w31"


def nodes():
    texts = {"cat": 0.9, "dog": 0.8, "cat cat": 0.1}
    return [NodeWithScore(node=TextNode(text=text, metadata={}), score=score) for text, score in texts.items()]


def test_reranker_arguments_and_events(fake):
    reranker = LowBitRerank(device="cpu", load_in_low_bit="nf4", threads=2)
    assert (reranker.top_n, reranker.model) == (2, "BAAI/bge-reranker-base")
    assert reranker._model.options == {"device": "cpu", "low_bit": "nf4", "threads": 2}
    debug = LlamaDebugHandler(print_trace_on_end=False)
    reranker.callback_manager = CallbackManager([debug])
    given = nodes()
    kept = reranker.postprocess_nodes(given, query_str="cat")
    assert [(node.text, node.score) for node in kept] == [("cat cat", 2.0), ("cat", 1.0)]
    assert len(debug.get_event_pairs(CBEventType.RERANKING)) == 1
    assert [node.score for node in given] == [0.9, 0.8, 0.1]


def test_reranker_keeps_the_retrievers_score_when_asked(fake):
    given = nodes()
    kept = LowBitRerank(top_n=1, keep_retrieval_score=True).postprocess_nodes(given, QueryBundle("cat"))
    assert kept[0].metadata == {"retrieval_score": 0.1}
    assert given[2].metadata == {}


async def test_reranker_odd_input(fake):
    reranker = LowBitRerank(top_n=5)
    assert reranker.postprocess_nodes([], query_str="cat") == []
    assert len(await reranker.apostprocess_nodes(nodes(), query_str="cat")) == 3
    with pytest.raises(ValueError, match="needs the query"):
        reranker.postprocess_nodes(nodes())
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        LowBitRerank(top_n=0)


def test_nothing_here_asks_for_another_provider():
    """A default of LlamaIndex that would be resolved (and downloaded) shows that a class was not used."""
    assert Settings._embed_model is None
    assert Settings._llm is None
