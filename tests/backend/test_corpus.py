"""A corpus of passages: read from files, embedded in chunks, interrupted and gone on with, indexed."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
from tiny_bert import write_bert

import lowbit
from lowbit import corpus as module
from lowbit import vector_folder
from lowbit.corpus import Corpus, Passage, PassageFile, build_index, embed_corpus


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def embedder(model):
    return lowbit.Embedder(model)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)


def texts(count):
    return [f"w{i % 60} w{i * 7 % 60} w{i * i % 60}" for i in range(count)]


def write_lines(path, count, **more):
    lines = [{"_id": f"p{i}", "text": text, "page": i, **more} for i, text in enumerate(texts(count))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


# ---- files of passages --------------------------------------------------------------------------------------------


def test_json_lines(tmp_path):
    path = write_lines(tmp_path / "c.jsonl", 3, title="T")
    passages = PassageFile(path, ["title", "text"])
    assert len(passages) == 3
    assert next(iter(passages)) == Passage("T w0 w0 w0", "p0", {"page": 0})
    assert list(passages) == list(passages)
    path.write_text('\ufeff{"text": "a\u2028b", "id": 7}\r\n\n{"text": "c"}')
    assert list(PassageFile(path)) == [Passage("a\u2028b", "7"), Passage("c", "3")]


def test_plain_lines(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("one fox\r\n  \n\ntwo foxes\n")
    assert list(PassageFile(path)) == [
        Passage("one fox", "1", {"source": "c.txt", "line": 1}),
        Passage("two foxes", "4", {"source": "c.txt", "line": 4}),
    ]
    assert len(PassageFile(path)) == 2
    with pytest.raises(ValueError, match="no fields"):
        PassageFile(path, ["title"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "line 2 is not JSON"),
        (b'["a"]', "line 2 holds a list"),
        (b'{"tex": "a", "page": 2}', "line 2 has no field 'text'; did you mean 'tex'"),
        (b'{"text": null}', "line 2: the field 'text' is a NoneType"),
        (b'{"text": "a", "id": [1]}', "line 2: the id is a list"),
        (b'{"text": "\xff"}', "line 2 is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "c.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line)
    with pytest.raises(ValueError, match=message):
        list(PassageFile(path))


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"c\.jsonl; give a \.jsonl or \.txt file"):
        PassageFile(tmp_path / "c.jsonl")
    (tmp_path / "c.pdf").write_bytes(b"%PDF")
    with pytest.raises(ValueError, match=r"none of \.jsonl"):
        PassageFile(tmp_path / "c.pdf")


# ---- embedding ----------------------------------------------------------------------------------------------------


def test_a_corpus_is_its_passages_in_order(embedder, tmp_path):
    done = embed_corpus(embedder, PassageFile(write_lines(tmp_path / "c.jsonl", 21)), tmp_path / "out")
    assert isinstance(done.vectors, np.memmap)
    assert len(done) == 21
    assert np.abs(done.vectors - embedder.encode(texts(21))).max() <= 1e-5
    rows = list(done.documents())
    assert rows[20] == {"key": 20, "id": "p20", "text": texts(21)[20], "metadata": {"page": 20}}
    assert [row["key"] for row in rows] == list(range(21))
    again = np.load(tmp_path / "out" / "vectors.npy")
    assert (again == done.vectors).all()


def test_passages_without_text_are_left_out_and_told(embedder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "lowbit"):
        done = embed_corpus(embedder, ["w5", "", "w6", " \n"], tmp_path / "out")
    assert "2 passages without text" in caplog.text
    assert [row["id"] for row in done.documents()] == ["0", "2"]
    with pytest.raises(ValueError, match="no passages with text"):
        embed_corpus(embedder, [" "], tmp_path / "none")


def test_a_chunk_is_bounded_by_its_characters_too(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK_CHARACTERS", 20)
    sizes = []
    encode = embedder.encode
    monkeypatch.setattr(embedder, "encode", lambda rows, **more: (sizes.append(len(rows)), encode(rows, **more))[1])
    embed_corpus(embedder, ["w5 " * 7, "w6", "w7 " * 6, "w8"], tmp_path / "out")
    assert sizes == [0, 1, 2, 1]


class Interrupted(Exception):
    pass


def interrupted_after(count, passages):
    """Yields passages as a generator that is broken off."""
    for number, passage in enumerate(passages):
        if number == count:
            raise Interrupted
        yield passage


class Source:
    """Passages that break off once, and know what identifies them."""

    about = {"file": "a.txt", "bytes": 5}  # noqa: RUF012

    def __init__(self, passages, stop=None, about=None):
        self.passages, self.stop = passages, stop
        self.about = about or self.about

    def __iter__(self):
        return iter(self.passages) if self.stop is None else interrupted_after(self.stop, self.passages)


def begun(embedder, folder, count=20):
    """Embeds two chunks of 8 and breaks off."""
    with pytest.raises(Interrupted):
        embed_corpus(embedder, Source(texts(count), stop=18), folder)
    return folder


def test_going_on_embeds_only_the_rest(embedder, tmp_path, monkeypatch):
    whole = embed_corpus(embedder, texts(20), tmp_path / "whole")
    folder = begun(embedder, tmp_path / "part")
    with pytest.raises(ValueError, match=r"not finished \(16 passages so far\)"):
        Corpus.open(folder)
    assert len(np.load(folder / "vectors.npy")) == 0, "a part must not pass for the whole"
    with (folder / "vectors.npy").open("ab") as file:
        file.write(b"half a chunk")  # what a crash leaves behind what counts
    with (folder / "documents.jsonl").open("ab") as file:
        file.write(b'{"key": 16')
    given = []
    encode = embedder.encode
    monkeypatch.setattr(embedder, "encode", lambda rows, **options: (given.append(rows), encode(rows, **options))[1])
    done = embed_corpus(embedder, Source(texts(20), about={"file": "renamed.txt", "bytes": 5}), folder)
    assert given == [[], texts(20)[:1], texts(20)[16:]]
    assert (done.vectors == whole.vectors).all()
    assert list(done.documents()) == list(whole.documents())
    given.clear()
    embed_corpus(embedder, Source(texts(20)), folder)
    assert given == [[], texts(20)[:1]], "a finished corpus is only compared"


def test_going_on_with_something_else_is_refused(embedder, model, tmp_path):
    folder = begun(embedder, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = texts(20)
    other[3] += " w1"
    nf4 = lowbit.Embedder(model, "nf4")
    cases = [
        (embedder, Source(texts(20), about={"bytes": 6}), {}, "source bytes 5, it is 6 now"),
        (embedder, Source(other), {}, "16 passages that are not the first 16"),
        (embedder, Source(texts(9)), {}, "16 passages already, there are only 9"),
        (nf4, Source(texts(20)), {}, "model format 'sym_int8', it is 'nf4' now"),
        (embedder, Source(texts(20)), {"prompt": "w1 "}, "options prompt None, it is 'w1 ' now"),
        (embedder, Source(texts(20)), {"truncate_dim": 8}, "options truncate_dim None, it is 8 now"),
    ]
    for model_, source, options, message in cases:
        with pytest.raises(ValueError, match=message):
            embed_corpus(model_, source, folder, **options)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    embed_corpus(embedder, Source(texts(20)), folder)
    with pytest.raises(ValueError, match="has 20 passages, there are more now"):
        embed_corpus(embedder, Source(texts(21)), folder)


def test_the_same_name_over_other_weights_is_refused(embedder, model, tmp_path, monkeypatch):
    folder = begun(embedder, tmp_path / "out")
    encode = embedder.encode
    monkeypatch.setattr(embedder, "encode", lambda rows, **options: np.roll(encode(rows, **options), 1, axis=-1))
    with pytest.raises(ValueError, match="another model: it gives the first passage another vector"):
        embed_corpus(embedder, Source(texts(20)), folder)


@pytest.mark.parametrize(
    ("passages", "error", "message"),
    [
        ([Passage("w5", "a"), Passage("w6", "a")], ValueError, r"passages\[1\] has the id 'a' of an earlier one"),
        (["w5", None], TypeError, r"passages\[1\] is None"),
        ([Passage("w5", "a", {"at": object()})], TypeError, "document 'a' does not fit into JSON"),
    ],
)
def test_bad_passages(embedder, tmp_path, passages, error, message):
    with pytest.raises(error, match=message):
        embed_corpus(embedder, passages, tmp_path / "out")


def test_bad_folders(embedder, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="left alone"):
        embed_corpus(embedder, texts(3), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(FileNotFoundError, match="no embedded corpus"):
        Corpus.open(tmp_path)
    with pytest.raises(ValueError, match="batch_size"):
        embed_corpus(embedder, texts(3), tmp_path / "out", batch_size=0)
    assert not (tmp_path / "out").exists(), "refused before anything is made"
    folder = embed_corpus(embedder, texts(9), tmp_path / "out").folder
    for name, damage, message in (
        ("vectors.npy", b"", "shorter than corpus.json says"),
        ("documents.jsonl", None, r"documents\.jsonl is gone"),
        ("corpus.json", b"{", "not JSON"),
        ("corpus.json", b'{"format": "other"}', "not a manifest of an embedded corpus"),
        ("corpus.json", b'{"format": "lowbit-corpus", "version": 1}', "lacks complete, crc32"),
        ("corpus.json", b'{"format": "lowbit-corpus", "version": 2}', "upgrade"),
    ):
        kept = (folder / name).read_bytes()
        (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
        with pytest.raises(ValueError, match=message):
            Corpus.open(folder)
        (folder / name).write_bytes(kept)


def test_two_writers_do_not_mix(embedder, tmp_path):
    class Second:
        def __iter__(self):
            yield "w5"
            embed_corpus(embedder, ["w6"], tmp_path / "out")

    with pytest.raises(BlockingIOError, match="another process embeds into"):
        embed_corpus(embedder, Second(), tmp_path / "out")


def test_a_full_disk_keeps_what_is_done(embedder, tmp_path, monkeypatch):
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == 6:  # the empty manifest; two files and the manifest of the first chunk; the second chunk
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match="No space left on device; 8 passages are kept"):
            embed_corpus(embedder, texts(20), tmp_path / "out")
    done = embed_corpus(embedder, texts(20), tmp_path / "out")
    assert np.abs(done.vectors - embedder.encode(texts(20))).max() <= 1e-5


def test_half_a_surrogate_pair_survives_in_metadata(embedder, tmp_path):
    done = embed_corpus(embedder, [Passage("w5", "a", {"raw": "\ud800ü"}), Passage("w6", "ü", {})], tmp_path / "out")
    assert [(row["id"], row["metadata"]) for row in done.documents()] == [("a", {"raw": "\ud800ü"}), ("ü", {})]


# ---- an index -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(embedder, tmp_path_factory):
    return embed_corpus(embedder, texts(400), tmp_path_factory.mktemp("corpus") / "out").folder


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_an_index_of_every_kind_finds_the_rows(folder, kind, metric):
    options = {"flat": {}, "ivf": {"nlist": 8, "nprobe": 8}, "hnsw": {"ef_search": 400}}[kind]
    build_index(folder, kind, metric, options)
    index, rows, manifest = vector_folder.load(folder)
    assert (index.kind, index.metric.name, len(index), len(rows)) == (kind, metric, 400, 400)
    assert index.is_trained_ivf == (kind == "ivf")
    vectors = Corpus.open(folder).vectors
    exact = -np.linalg.norm(vectors - vectors[5], axis=1)
    if metric == "cosine":
        exact = vectors @ vectors[5] / np.linalg.norm(vectors, axis=1)
    keys, _ = index.search(vectors[5], 10)
    assert np.allclose(np.sort(exact[keys]), np.sort(exact)[-10:], atol=1e-5)
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".faiss") == [
        f"index-{manifest['generation']}.faiss"
    ]
    build_index(folder, kind, metric, options)
    assert vector_folder.read_manifest(folder) == manifest, "what is there already is not built again"


def test_an_index_chooses_its_cells(folder, embedder, tmp_path):
    build_index(folder, "ivf")
    index, _, _ = vector_folder.load(folder)
    assert index.is_trained_ivf
    assert index.options == {"nlist": 10, "nprobe": 10}  # 400 vectors train 10 cells, not 4 * sqrt(400) = 80
    few = embed_corpus(embedder, texts(9), tmp_path / "few").folder
    build_index(few, "ivf")
    index, _, _ = vector_folder.load(few)
    assert not index.is_trained_ivf
    assert len(index) == 9


def test_without_faiss_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install 'lowbit\[faiss\]'"):
        build_index(folder, "flat")


def test_the_store_s_errors_tell_what_to_do(embedder, tmp_path):
    done = embed_corpus(embedder, texts(9), tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"embeddings without an index; run `lowbit embed` again"):
        vector_folder.load(done.folder)
    with pytest.raises(ValueError, match="did you mean 'hnsw'"):
        build_index(done.folder, "hns")
