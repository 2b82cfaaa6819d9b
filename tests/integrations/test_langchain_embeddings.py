"""The embedding and reranking classes: what they hand to lowbit, on fakes; LangChain's suites, on tiny models."""

import asyncio
import inspect
import logging
import threading
import time

import numpy as np
import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.cross_encoders import BaseCrossEncoder
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests
from tiny_bert import write_bert, write_sentence_files

import lowbit
from langchain_lowbit import (
    FaissVectorStore,
    IpexLLMBgeEmbeddings,
    LowBitCrossEncoder,
    QuantizedBgeEmbeddings,
    QuantizedBiEncoderEmbeddings,
)
from shared_data import shared

CLASSES = [IpexLLMBgeEmbeddings, QuantizedBgeEmbeddings, QuantizedBiEncoderEmbeddings]
QUANTIZED = CLASSES[1:]


class FakeEmbedder:
    """Keeps what it was built with and asked for; a text's vector is its length and its first letter's number."""

    configured_pooling = "cls"
    dimension = 2
    tokenizer = object()
    wait = 0.0

    def __init__(self, id_or_path, low_bit="sym_int8", **options):
        self.model_id, self.options, self.calls = id_or_path, {"low_bit": low_bit, **options}, []

    def encode(self, texts, **options):
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("texts[0] is None, it must be a string")
        self.calls.append((texts, options, threading.get_ident()))
        time.sleep(self.wait)
        return np.array([[len(text), ord(text[0]) if text else 0] for text in texts], np.float32).reshape(-1, 2)


class FakeReranker:
    def __init__(self, id_or_path, low_bit="sym_int8", **options):
        self.model_id, self.options = id_or_path, {"low_bit": low_bit, **options}

    def score(self, pairs, batch_size):
        return np.array([len(set(query) & set(passage)) for query, passage in pairs], np.float32)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(lowbit, "Embedder", FakeEmbedder, raising=False)
    monkeypatch.setattr(lowbit, "Reranker", FakeReranker, raising=False)


def embedder(embeddings):
    return getattr(embeddings, "client", None) or embeddings.transformer_model


# ---- constructors, as upstream had them ----


def test_constructors_are_upstreams():
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [
        "model_name", "max_seq_len", "pooling_strategy", "query_instruction", "document_instruction", "padding",
        "model_kwargs", "encode_kwargs",
    ]  # fmt: skip
    defaults = [inspect.Parameter.empty, 512, "mean", None, None, True, None, None]
    parameters = list(inspect.signature(QuantizedBiEncoderEmbeddings.__init__).parameters.values())[1:]
    assert [p.name for p in parameters[:-1]] == names
    assert [p.default for p in parameters[:-1]] == defaults
    assert {p.kind for p in parameters[:-1]} == {positional}
    assert parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    parameters = list(inspect.signature(QuantizedBgeEmbeddings.__init__).parameters.values())[1:]
    assert [p.name for p in parameters[:-1]] == [*names, "onnx_file_name"]
    assert [p.default for p in parameters[:-1]] == [*defaults, "int8-model.onnx"]
    assert [p.kind for p in parameters[:-1]] == [positional] + [inspect.Parameter.KEYWORD_ONLY] * 8
    assert list(IpexLLMBgeEmbeddings.model_fields) == [
        "client", "model_name", "cache_folder", "model_kwargs", "encode_kwargs", "query_instruction",
        "embed_instruction",
    ]  # fmt: skip


@pytest.mark.parametrize("cls", QUANTIZED)
def test_quantized_defaults_and_attributes(cls, fake):
    embeddings = cls("BAAI/bge-small-en-v1.5")
    assert embedder(embeddings).options == {
        "low_bit": "sym_int8", "max_length": 512, "truncate": True, "pooling": "mean",
    }  # fmt: skip
    embeddings.embed_documents(["a", "b"])
    assert embedder(embeddings).calls[0][:2] == (["a", "b"], {"normalize": False, "batch_size": 32})
    assert embeddings.model_name_or_path == "BAAI/bge-small-en-v1.5"
    assert (embeddings.pooling, embeddings.normalize, embeddings.batch_size) == ("mean", False, 32)
    assert (embeddings.max_seq_len, embeddings.padding, embeddings.hidden_size) == (512, True, 2)
    assert (embeddings.query_instruction, embeddings.document_instruction) == (None, None)
    assert (embeddings.model_kwargs, embeddings.encode_kwargs) == ({}, {})
    assert embeddings.transformer_tokenizer is FakeEmbedder.tokenizer
    assert isinstance(embeddings, Embeddings)


def test_the_onnx_name_is_kept(fake):
    assert QuantizedBgeEmbeddings("m").onnx_file_name == "int8-model.onnx"
    assert QuantizedBgeEmbeddings("m", onnx_file_name="x.onnx").onnx_file_name == "x.onnx"


@pytest.mark.parametrize("cls", QUANTIZED)
def test_quantized_arguments_arrive(cls, fake):
    model_kwargs = {"load_in_low_bit": "nf4", "device": "cpu", "threads": 2, "torch_dtype": "auto"}
    encode_kwargs = {"normalize_embeddings": True, "batch_size": 7, "show_progress_bar": True}
    given = dict(model_kwargs), dict(encode_kwargs)
    embeddings = cls(
        "m", max_seq_len=64, pooling_strategy="cls", query_instruction="Q: ", document_instruction="D: ",
        model_kwargs=model_kwargs, encode_kwargs=encode_kwargs,
    )  # fmt: skip
    assert (model_kwargs, encode_kwargs) == given
    assert embedder(embeddings).options == {
        "low_bit": "nf4", "max_length": 64, "truncate": True, "pooling": "cls", "device": "cpu", "threads": 2,
    }  # fmt: skip
    assert embeddings.embed_query("x\ny") == [6.0, ord("Q")]
    assert embeddings.embed_documents(["x\ny"]) == [[6.0, ord("D")]]
    wanted = {"normalize": True, "batch_size": 7, "show_progress": True}
    assert [call[:2] for call in embedder(embeddings).calls] == [(["Q: x\ny"], wanted), (["D: x\ny"], wanted)]


def test_positional_arguments_of_the_bi_encoder(fake):
    embeddings = QuantizedBiEncoderEmbeddings("m", 128, "cls", "Q", "D", False, {"threads": 1}, {"batch_size": 2})
    assert (embeddings.max_seq_len, embeddings.pooling, embeddings.padding) == (128, "cls", False)
    assert (embeddings.query_instruction, embeddings.document_instruction) == ("Q", "D")
    assert embedder(embeddings).options["threads"] == 1
    with pytest.raises(TypeError, match="positional"):
        QuantizedBgeEmbeddings("m", 128)


def test_ipex_defaults_and_arguments(fake):
    embeddings = IpexLLMBgeEmbeddings()
    assert embeddings.model_name == embedder(embeddings).model_id == "BAAI/bge-small-en-v1.5"
    assert embedder(embeddings).options == {"low_bit": "sym_int8"}
    embeddings.embed_query("one\ntwo")
    embeddings.embed_documents(["one\ntwo"])
    assert [call[:2] for call in embedder(embeddings).calls] == [
        (["Represent this question for searching relevant passages: one two"], {}),
        (["one two"], {}),
    ]
    embeddings = IpexLLMBgeEmbeddings(
        model_name="m", cache_folder="c", model_kwargs={"device": "cpu", "revision": "r"}, embed_instruction="D: ",
        encode_kwargs={"normalize_embeddings": True, "convert_to_tensor": True, "truncate_dim": 1},
    )  # fmt: skip
    assert embedder(embeddings).options == {"low_bit": "sym_int8", "cache_dir": "c", "device": "cpu", "revision": "r"}
    assert embeddings.embed_documents(["x"]) == [[4.0, ord("D")]]
    assert embedder(embeddings).calls[0][1] == {"normalize": True, "truncate_dim": 1}


def test_a_chinese_instruction_never_replaces_the_users(fake):
    default = IpexLLMBgeEmbeddings(model_name="BAAI/bge-small-zh-v1.5")
    assert default.query_instruction == "为这个句子生成表示以用于检索相关文章："
    mine = IpexLLMBgeEmbeddings(model_name="BAAI/bge-small-zh-v1.5", query_instruction="mine: ")
    assert mine.query_instruction == "mine: "


def test_pooling_unlike_the_models_own_is_told(fake, caplog):
    with caplog.at_level(logging.WARNING, logger="langchain_lowbit"):
        QuantizedBiEncoderEmbeddings("BAAI/bge-small-en-v1.5", pooling_strategy="cls")
        assert caplog.messages == []
        QuantizedBiEncoderEmbeddings("BAAI/bge-small-en-v1.5")
    [message] = caplog.messages
    assert "trained with 'cls' pooling and runs with 'mean'" in message
    assert "pooling_strategy='cls'" in message


@pytest.mark.parametrize("cls", CLASSES)
def test_bad_arguments_are_told_before_anything_is_loaded(cls, monkeypatch):
    monkeypatch.setattr(lowbit, "Embedder", lambda *_, **__: pytest.fail("was loaded"), raising=False)
    with pytest.raises(TypeError, match=r"'devise' in model_kwargs; did you mean 'device'"):
        cls(model_name="m", model_kwargs={"devise": "cpu"})
    with pytest.raises(TypeError, match=r"'normalise' in encode_kwargs; did you mean 'normalize'"):
        cls(model_name="m", encode_kwargs={"normalise": True})
    with pytest.raises(TypeError, match="belongs in encode_kwargs"):
        cls(model_name="m", model_kwargs={"normalize_embeddings": True})
    with pytest.raises(ValueError, match="lists of floats"):
        cls(model_name="m", encode_kwargs={"precision": "int8"})
    if cls in QUANTIZED:
        with pytest.raises(ValueError, match="unknown pooling 'clz'; did you mean 'cls'"):
            cls("m", pooling_strategy="clz")
        with pytest.raises(TypeError, match="'max_seq_length'; did you mean 'max_seq_len'"):
            cls("m", max_seq_length=3)
    else:
        with pytest.raises(ValueError, match="Extra inputs are not permitted"):
            cls(model="m")


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("texts", ["one text", None])
def test_one_text_is_no_list_of_letters(cls, fake, texts):
    with pytest.raises(TypeError, match="give a list of texts, for one text use embed_query"):
        cls(model_name="m").embed_documents(texts)


@pytest.mark.parametrize("cls", CLASSES)
async def test_async_twins_leave_the_loop_free(cls, fake, monkeypatch):
    monkeypatch.setattr(FakeEmbedder, "wait", 0.3)
    embeddings = cls(model_name="m")
    ticks = 0

    async def tick():
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    ticking = asyncio.create_task(tick())
    assert await embeddings.aembed_documents(["one", "three"]) == [[3.0, ord("o")], [5.0, ord("t")]]
    query = await embeddings.aembed_query("one")
    ticking.cancel()
    assert query == embeddings.embed_query("one")
    assert ticks >= 5
    assert all(thread != threading.get_ident() for _, _, thread in embedder(embeddings).calls[:2])


@pytest.mark.parametrize("cls", CLASSES)
def test_odd_input(cls, fake):
    embeddings = cls(model_name="m")
    assert embeddings.embed_documents([]) == []
    assert len(embeddings.embed_documents([""])) == 1
    for call in (lambda: embeddings.embed_documents([None]), lambda: embeddings.embed_query(None)):
        with pytest.raises(TypeError, match="is None"):
            call()


# ---- on a tiny model ----


@pytest.fixture(scope="session")
def tiny_embedder(tmp_path_factory):
    folder = write_bert(tmp_path_factory.mktemp("tiny") / "embedder")
    return write_sentence_files(folder, pooling="cls_token")


class _OnTiny:
    embeddings_class = IpexLLMBgeEmbeddings
    more: dict = {}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def _folder(self, tiny_embedder):
        self.folder = str(tiny_embedder)

    @property
    def embedding_model_params(self):
        return {"model_name": self.folder, **self.more}


class TestIpexUnit(_OnTiny, EmbeddingsUnitTests):
    pass


class TestIpex(_OnTiny, EmbeddingsIntegrationTests):
    pass


class TestQuantizedBgeUnit(_OnTiny, EmbeddingsUnitTests):
    embeddings_class = QuantizedBgeEmbeddings


class TestQuantizedBge(_OnTiny, EmbeddingsIntegrationTests):
    embeddings_class = QuantizedBgeEmbeddings


class TestQuantizedBiEncoderUnit(_OnTiny, EmbeddingsUnitTests):
    embeddings_class = QuantizedBiEncoderEmbeddings
    more = {"max_seq_len": 24}  # noqa: RUF012


class TestQuantizedBiEncoder(_OnTiny, EmbeddingsIntegrationTests):
    embeddings_class = QuantizedBiEncoderEmbeddings
    more = {"max_seq_len": 24}  # noqa: RUF012


def test_pooling_and_normalising_are_what_was_asked_for(tiny_embedder, caplog):
    texts = ["w1 w2 w3", "w4"]
    model = lowbit.Embedder(tiny_embedder)
    own = IpexLLMBgeEmbeddings(model_name=str(tiny_embedder))
    assert np.allclose(own.embed_documents(texts), model.encode(texts), atol=1e-6)
    mean = QuantizedBgeEmbeddings(str(tiny_embedder), max_seq_len=24)
    assert any("trained with 'cls'" in message for message in caplog.messages)
    raw = lowbit.Embedder(tiny_embedder, pooling="mean").encode(texts, normalize=False)
    assert np.allclose(mean.embed_documents(texts), raw, atol=1e-6)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.1
    unit = QuantizedBgeEmbeddings(str(tiny_embedder), max_seq_len=24, encode_kwargs={"normalize_embeddings": True})
    assert np.allclose(np.linalg.norm(unit.embed_documents(texts), axis=1), 1, atol=1e-6)
    assert np.allclose(mean.embed_documents(texts)[1], mean.embed_query("w4"), atol=1e-6)


def test_a_saved_model_gives_the_same(tiny_embedder, tmp_path):
    embeddings = IpexLLMBgeEmbeddings(model_name=str(tiny_embedder), model_kwargs={"load_in_low_bit": "sym_int4"})
    embeddings.client.save_low_bit(tmp_path / "saved")
    again = IpexLLMBgeEmbeddings(model_name=str(tmp_path / "saved"))
    assert again.embed_query("w7 w8") == embeddings.embed_query("w7 w8")


def test_in_a_vector_store_arrays_and_lists_agree(tiny_embedder):
    embeddings = IpexLLMBgeEmbeddings(model_name=str(tiny_embedder), query_instruction="")
    store = FaissVectorStore.from_texts(["w1 w2", "w3 w4", "w5"], embeddings)
    [(best, score)] = store.similarity_search_with_score("w3 w4", k=1)
    assert best.page_content == "w3 w4"
    assert score == pytest.approx(1, abs=1e-5)
    lists = FaissVectorStore.from_embeddings(
        zip(["w1 w2", "w3 w4", "w5"], embeddings.embed_documents(["w1 w2", "w3 w4", "w5"]), strict=True), embeddings
    )
    assert [s for _, s in lists.similarity_search_with_score("w5", k=3)] == pytest.approx(
        [s for _, s in store.similarity_search_with_score("w5", k=3)], abs=1e-6
    )


# ---- the cross-encoder ----


def test_cross_encoder_arguments(fake):
    model = LowBitCrossEncoder(model_kwargs={"load_in_low_bit": "nf4"})
    assert (model.model_name, model.client.model_id) == ("BAAI/bge-reranker-base",) * 2
    assert model.client.options == {"low_bit": "nf4"}
    assert isinstance(model, BaseCrossEncoder)
    assert model.score([("ab", "abc"), ("ab", "xyz")]) == [2.0, 0.0]
    with pytest.raises(TypeError, match="did you mean 'device'"):
        LowBitCrossEncoder(model_kwargs={"devise": "cpu"})


def test_langchains_reranker_reorders_what_a_store_finds(tmp_path, tiny_embedder):
    cross = LowBitCrossEncoder(model_name=str(write_bert(tmp_path / "cross", labels=1)))
    texts = [f"w{i} w{i + 1}" for i in range(8)]
    scores = dict(zip(texts, cross.score([("w20 w21", text) for text in texts]), strict=True))
    store = FaissVectorStore.from_texts(texts, IpexLLMBgeEmbeddings(model_name=str(tiny_embedder)))
    retriever = ContextualCompressionRetriever(
        base_compressor=CrossEncoderReranker(model=cross, top_n=3),
        base_retriever=store.as_retriever(search_kwargs={"k": 8}),
    )
    found = [document.page_content for document in retriever.invoke("w20 w21")]
    assert found == sorted(texts, key=lambda text: -scores[text])[:3]
    assert len(set(scores.values())) == 8
    assert all(isinstance(score, float) for score in scores.values())
    assert CrossEncoderReranker(model=cross, top_n=2).compress_documents([Document(page_content="w1")], "w2")


# ---- on the real model ----


def test_minilm_finds_what_is_meant():
    model = str(shared("models", "all-MiniLM-L6-v2"))
    embeddings = QuantizedBiEncoderEmbeddings(model, encode_kwargs={"normalize_embeddings": True})
    texts = ["The cat sat on the mat.", "Interest rates rose again.", "A kitten was resting on a rug."]
    store = FaissVectorStore.from_texts(texts, embeddings, [{"topic": t} for t in ("cats", "money", "cats")])
    found = store.similarity_search_with_score("Where does the small cat sleep?", k=3)
    assert [document.metadata["topic"] for document, _ in found] == ["cats", "cats", "money"]
    assert found[1][1] > found[2][1] + 0.2
