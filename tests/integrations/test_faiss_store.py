"""FaissVectorStore: LangChain's standard suite for every kind of index, and what the suite does not ask."""

import json
import pickle
import shutil
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from langchain_lowbit import FaissVectorStore
from lowbit.vector_index import KINDS, METRICS, VectorIndex

COMMUNITY = Path(__file__).resolve().parent / "community_faiss"


class Words(Embeddings):
    """A text's vector is the one its name says: "3 4" is [3, 4]. Counts how many texts it was given at a time."""

    model_name = "words"

    def __init__(self, dimension=2):
        self.dimension, self.batches = dimension, []

    def embed_documents(self, texts):
        self.batches.append(len(texts))
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text):
        return [float(number) for number in text.split()][: self.dimension]


class Suite(VectorStoreIntegrationTests):
    options: ClassVar[dict] = {}

    @pytest.fixture
    def vectorstore(self):
        return FaissVectorStore(self.get_embeddings(), **self.options)


class TestFlat(Suite):
    pass


class TestIvf(Suite):
    options: ClassVar[dict] = {"index": "ivf", "index_options": {"nlist": 1}}


class TestHnsw(Suite):
    options: ClassVar[dict] = {"index": "hnsw"}


class TestL2(Suite):
    options: ClassVar[dict] = {"metric": "l2"}


def fake_corpus(count, dimension=16):
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((count, dimension)).astype(np.float32)
    pairs = [(f"text {i}", vector) for i, vector in enumerate(vectors)]
    return vectors, pairs, [{"number": i, "even": i % 2 == 0} for i in range(count)], [str(i) for i in range(count)]


def expected(vectors, query, metric):
    if metric == "l2":
        return np.linalg.norm(vectors - query, axis=1)
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query) if metric == "cosine" else 1
    return vectors @ query / lengths


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_the_metric_also_after_training_deleting_and_saving(metric, kind, tmp_path):
    options: ClassVar[dict] = {"flat": {}, "ivf": {"nlist": 8, "nprobe": 8}, "hnsw": {"ef_search": 400}}[kind]
    vectors, pairs, metadatas, ids = fake_corpus(400)
    store = FaissVectorStore.from_embeddings(
        pairs, DeterministicFakeEmbedding(size=16), metadatas, ids, metric=metric, index=kind, index_options=options
    )
    assert store._index.is_trained_ivf == (kind == "ivf")
    query = np.random.default_rng(6).standard_normal(16).astype(np.float32)
    scores = expected(vectors, query, metric)
    best = np.argsort(scores if metric == "l2" else -scores)

    def found(store, k, **options):
        hits = store.similarity_search_with_score_by_vector(query, k, **options)
        assert [score for _, score in hits] == pytest.approx([scores[int(d.id)] for d, _ in hits], abs=1e-4)
        return [int(document.id) for document, _ in hits]

    assert found(store, 10) == best[:10].tolist()
    evens = [i for i in best if i % 2 == 0]
    assert found(store, 10, filter={"even": True}) == evens[:10]
    store.delete([str(i) for i in best[:5]])
    assert found(store, 10) == best[5:15].tolist()
    store.save_local(tmp_path)
    again = FaissVectorStore.load_local(tmp_path, store.embeddings, check=False)
    assert found(again, 10) == best[5:15].tolist()
    again.delete([str(i) for i in best[5:300]])  # most of it: an hnsw index is built anew
    assert len(again) == len(again._index) == 100
    assert found(again, 10) == best[300:310].tolist()
    again.add_texts(["new"], ids=["new"])
    assert again.get_by_ids(["new", str(best[350])])[1].page_content == f"text {best[350]}"


def test_a_filtered_search_finds_what_a_partial_index_would_miss():
    """One cell of 8 is probed: without the filter most of the corpus is not looked at, with it all of it is."""
    vectors, pairs, metadatas, ids = fake_corpus(400)
    store = FaissVectorStore.from_embeddings(
        pairs, Words(), metadatas, ids, index="ivf", index_options={"nlist": 8, "nprobe": 1}
    )
    wanted = {"number": {"$in": list(range(200, 220))}}
    everything = store.similarity_search_with_score_by_vector(vectors[0], k=400)
    assert len(everything) < 400
    hits = store.similarity_search_with_score_by_vector(vectors[0], k=400, filter=wanted)
    assert {int(document.id) for document, _ in hits} == set(range(200, 220))


@pytest.mark.parametrize(
    ("condition", "pages"),
    [
        ({"page": 2}, [2]),
        ({"page": [1, 3]}, [1, 3]),
        ({"page": {"$gte": 2, "$lt": 4}}, [2, 3]),
        ({"page": {"$ne": 2}}, [1, 3, None]),
        ({"page": {"$nin": [1, 2]}}, [3, None]),
        ({"$or": [{"page": 1}, {"$not": {"page": {"$gt": 0}}}]}, [1, None]),
        ({"$and": [{"page": {"$lte": 2}}, {"page": {"$gt": 1}}]}, [2]),
        ({}, [1, 2, 3, None]),
        (lambda metadata: metadata.get("page", 0) > 2, [3]),
    ],
)
def test_filters(condition, pages):
    metadatas = [{"page": 1}, {"page": 2}, {"page": 3}, {}]
    store = FaissVectorStore.from_texts(["1 0", "1 1", "0 1", "1 2"], Words(), metadatas)
    found = store.similarity_search("1 1", k=9, filter=condition)
    assert sorted(d.metadata.get("page", 99) for d in found) == [99 if p is None else p for p in pages]


def test_wrong_arguments_are_told():
    store = FaissVectorStore.from_texts(["1 0", "0 1"], Words())
    with pytest.raises(ValueError, match=r"unknown operator '\$gtt' .*did you mean '\$gt'\? Choices: \$eq, \$ne"):
        store.similarity_search("1 1", filter={"page": {"$gtt": 1}})
    with pytest.raises(TypeError, match="filter is a dict"):
        store.similarity_search("1 1", filter="page")
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        FaissVectorStore(Words(), metric="cosin")
    with pytest.raises(ValueError, match="Choices: flat, ivf, hnsw"):
        FaissVectorStore(Words(), index="pq")
    with pytest.raises(TypeError, match="did you mean 'nprobe'"):
        FaissVectorStore(Words(), index="ivf", index_options={"nprobes": 3})
    with pytest.raises(ValueError, match="whole number"):
        FaissVectorStore(Words(), index="hnsw", index_options={"m": 0})
    with pytest.raises(TypeError, match="not one text"):
        store.add_texts("1 2")
    with pytest.raises(ValueError, match="metadatas"):
        store.add_texts(["1 2", "2 1"], [{}])
    with pytest.raises(ValueError, match="as many ids"):
        store.add_texts(["1 2"], ids=["a", "b"])
    with pytest.raises(TypeError, match="'fliter'"):
        store.similarity_search("1 1", fliter={})
    with pytest.raises(ValueError, match="not finite"):
        store.add_texts(["nan 1"])
    with pytest.raises(ValueError, match="negative"):
        store.similarity_search("1 1", k=-1)
    assert len(store) == 2
    assert store.similarity_search("1 1", k=0) == []


def test_another_dimension_is_told_and_changes_nothing():
    store = FaissVectorStore.from_texts(["1 0", "0 1"], Words())
    store.embedding = Words(3)
    for call in (lambda: store.add_texts(["1 2 3"], ids=["x"]), lambda: store.similarity_search("1 2 3")):
        with pytest.raises(ValueError, match="2 dimensions, the embedding gave 3"):
            call()
    assert store.get_by_ids(["x"]) == []
    assert len(store) == 2


def test_an_id_given_again_replaces_also_within_one_call():
    store = FaissVectorStore.from_texts(["1 0", "0 1", "1 1"], Words(), ids=["a", "b", "a"])
    assert len(store) == len(store._index) == 2
    assert store.get_by_ids(["b", "a", "c"]) == [
        Document(id="b", page_content="0 1"),
        Document(id="a", page_content="1 1"),
    ]
    assert [d.page_content for d in store.similarity_search("1 0", k=9)] == ["1 1", "0 1"]


def test_results_do_not_give_the_store_away():
    store = FaissVectorStore.from_texts(["1 0"], Words(), [{"page": 1}])
    store.similarity_search("1 0")[0].metadata["page"] = 2
    assert store.similarity_search("1 0")[0].metadata == {"page": 1}


def test_a_generator_is_embedded_in_pieces(monkeypatch):
    monkeypatch.setattr("langchain_lowbit._chunks.CHUNK", 4)
    words = Words()
    store = FaissVectorStore(words)
    ids = store.add_texts((f"{i} 1" for i in range(10)), ({"i": i} for i in range(10)))
    assert words.batches == [4, 4, 2]
    assert [d.metadata["i"] for d in store.get_by_ids(ids)] == list(range(10))


def test_marginal_relevance_prefers_what_differs():
    store = FaissVectorStore.from_texts(["1 0", "1 0.01", "0.6 1"], Words())
    nearest = [d.page_content for d in store.similarity_search("1 0", k=2)]
    diverse = [d.page_content for d in store.max_marginal_relevance_search("1 0", k=2, lambda_mult=0.3)]
    assert nearest == ["1 0", "1 0.01"]
    assert diverse == ["1 0", "0.6 1"]


async def test_async_twins_give_the_same():
    store = await FaissVectorStore.afrom_texts(["1 0", "1 1", "0 1"], Words(), [{"i": i} for i in range(3)])
    assert await store.asimilarity_search_with_score("1 0", k=2) == store.similarity_search_with_score("1 0", k=2)
    assert await store.asimilarity_search("1 0", filter={"i": 2}) == store.similarity_search("1 0", filter={"i": 2})
    assert await store.amax_marginal_relevance_search("1 0") == store.max_marginal_relevance_search("1 0")
    assert await store.adelete([store.similarity_search("0 1", k=1)[0].id])
    assert len(store) == 2


def test_retriever_and_thresholds():
    store = FaissVectorStore.from_documents([Document(page_content=t) for t in ("1 0", "1 1", "-1 0")], Words())
    options: ClassVar[dict] = {"k": 3, "score_threshold": 0.5}
    retriever = store.as_retriever(search_type="similarity_score_threshold", search_kwargs=options)
    assert [d.page_content for d in retriever.invoke("1 0")] == ["1 0", "1 1"]
    assert [score for _, score in store.similarity_search_with_relevance_scores("1 0", k=3)] == pytest.approx(
        [1, 0.5**0.5, 0], abs=1e-6
    )
    inner = FaissVectorStore.from_texts(["1 0"], Words(), metric="inner_product")
    with pytest.raises(ValueError, match="metric='cosine', or pass relevance_score_fn"):
        inner.similarity_search_with_relevance_scores("1 0")


def test_a_saved_store_holds_no_pickle_and_survives_an_interrupted_save(tmp_path, monkeypatch):
    store = FaissVectorStore.from_texts(["1 0", "0 1"], Words(), [{"page": "ü"}, {"tags": ["a"]}], ids=["a", "b"])
    store.save_local(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"manifest.json", "index-1.faiss", "documents-1.jsonl"}
    lines = (tmp_path / "documents-1.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[0]) == {"key": 0, "id": "a", "text": "1 0", "metadata": {"page": "ü"}}

    store.add_texts(["1 1"], ids=["c"])
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("power cut")))
        with pytest.raises(OSError, match="power cut"):
            store.save_local(tmp_path)
    assert len(FaissVectorStore.load_local(tmp_path, Words())) == 2
    store.save_local(tmp_path)
    assert len(FaissVectorStore.load_local(tmp_path, Words())) == 3
    assert len([path for path in tmp_path.iterdir() if path.suffix in (".faiss", ".jsonl")]) == 2


def test_loading_tells_another_model_even_of_the_same_dimension(tmp_path):
    FaissVectorStore.from_texts(["1 2", "0 1"], Words()).save_local(tmp_path)

    class Other(Words):
        model_name = "other"

        def embed_query(self, text):
            return super().embed_query(text)[::-1] if text != "1 2" else [2.0, -1.0]

    with pytest.raises(ValueError, match="built with words, its vectors are not those of other"):
        FaissVectorStore.load_local(tmp_path, Other())
    assert len(FaissVectorStore.load_local(tmp_path, Other(), check=False)) == 2


def test_bad_folders_are_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a folder that"):
        FaissVectorStore.load_local(tmp_path, Words())
    with pytest.raises(FileNotFoundError, match="load_community_folder"):
        FaissVectorStore.load_local(COMMUNITY, Words())
    with pytest.raises(ValueError, match="empty store"):
        FaissVectorStore(Words()).save_local(tmp_path)
    with pytest.raises(TypeError, match="document 'a' does not fit into JSON"):
        FaissVectorStore.from_texts(["1 2"], Words(), [{"at": object()}], ids=["a"]).save_local(tmp_path / "x")
    store = FaissVectorStore.from_texts(["1 2"], Words())
    for name, damage, message in (
        ("documents-1.jsonl", b"{}", "damaged"),
        ("index-1.faiss", None, "index-1.faiss is missing"),
        ("manifest.json", b'{"format": "other"}', "not a manifest"),
        ("manifest.json", b'{"format": "lowbit-faiss"}', "lacks count"),
        ("manifest.json", b"{", "not JSON"),
    ):
        folder = tmp_path / "damaged"
        shutil.rmtree(folder, ignore_errors=True)
        store.save_local(folder)
        if damage is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(damage)
        with pytest.raises(ValueError, match=message):
            FaissVectorStore.load_local(folder, Words())


def test_a_file_that_is_not_what_its_manifest_says(tmp_path):
    index = VectorIndex(3, "cosine")
    index.write(tmp_path / "a.faiss")
    for state in ({"dimension": 4}, {"metric": "l2"}, {"kind": "hnsw", "options": {}}):
        with pytest.raises(ValueError, match="its manifest says"):
            VectorIndex.read(tmp_path / "a.faiss", index.state() | state)
    (tmp_path / "b.faiss").write_bytes(b"no index")
    with pytest.raises(ValueError, match="not a FAISS index"):
        VectorIndex.read(tmp_path / "b.faiss", index.state())


def test_a_community_folder_is_read_once_on_request(tmp_path):
    """The folder was saved by langchain-community 0.4.2 (DeterministicFakeEmbedding of size 6, l2)."""
    embeddings = DeterministicFakeEmbedding(size=6)
    with pytest.raises(ValueError, match="allow_pickle=True"):
        FaissVectorStore.load_community_folder(COMMUNITY, embeddings)
    store = FaissVectorStore.load_community_folder(COMMUNITY, embeddings, allow_pickle=True)
    assert store.get_by_ids(["2", "3", "4", "1"]) == [
        Document(id="2", page_content="bar", metadata={"page": 2, "tags": ["a"]}),
        Document(id="3", page_content="baz"),
        Document(id="4", page_content="fox", metadata={"page": 4}),
    ]
    [(first, distance), (second, other)] = store.similarity_search_with_score("bar", k=2)
    # What the community class printed: 0.0 and 13.729828, squares of the distance.
    assert (first.id, second.id) == ("2", "4")
    assert (distance, other) == pytest.approx((0, 13.729828**0.5), abs=1e-5)
    store.save_local(tmp_path)
    assert len(FaissVectorStore.load_local(tmp_path, embeddings)) == 3


class Harm:
    def __reduce__(self):
        return (print, ("harm was done",))


def test_a_harmful_pickle_is_refused(tmp_path, capsys):
    shutil.copy(COMMUNITY / "index.faiss", tmp_path)
    for harm, message in ((Harm(), r"names builtins\.print"), (("x", {}), "does not hold the documents")):
        (tmp_path / "index.pkl").write_bytes(pickle.dumps(harm))
        with pytest.raises(ValueError, match=message):
            FaissVectorStore.load_community_folder(tmp_path, Words(), allow_pickle=True)
    (tmp_path / "index.pkl").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(ValueError, match="is not langchain-community's"):
        FaissVectorStore.load_community_folder(tmp_path, Words(), allow_pickle=True)
    assert capsys.readouterr().out == ""


def test_threads_add_delete_and_search_at_once():
    store = FaissVectorStore.from_texts(["1 0"], Words(), ids=["first"])
    errors = []

    def work(number):
        try:
            for i in range(20):
                store.add_texts([f"{number} {i + 1}"], ids=[f"{number}-{i}"])
                assert store.similarity_search("1 0", k=1)[0].id == "first"
                if i % 2:
                    store.delete([f"{number}-{i}"])
        except Exception as error:  # told below: an assertion in a thread would be lost
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(store) == len(store._index) == 41
