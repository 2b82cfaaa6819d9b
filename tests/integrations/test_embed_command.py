"""`lowbit embed` as a process of its own: interrupted, killed, gone on with, and opened by LangChain's store."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings

import lowbit
from langchain_lowbit import FaissVectorStore


class OfLowbit(Embeddings):
    """LangChain's view of an Embedder."""

    def __init__(self, folder):
        self.embedder = lowbit.Embedder(folder)

    def embed_documents(self, texts):
        return self.embedder.encode(texts).tolist()

    def embed_query(self, text):
        return self.embedder.encode(text).tolist()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tiny_bert import write_bert

    return write_bert(tmp_path_factory.mktemp("model"))


def text_of(i):
    return f"w{i % 60} w{i // 60 % 60} w{i * 7 % 60}"


def write_corpus(path, count):
    path.write_text(
        "".join(json.dumps({"id": f"p{i}", "body": text_of(i), "even": i % 2 == 0}) + "\n" for i in range(count))
    )
    return path


def command(corpus, out, model, *more):
    return [
        sys.executable, "-m", "lowbit.cli", "embed", str(corpus), "--out", str(out), "--model", str(model), "--field",
        "body", *more,
    ]  # fmt: skip


def finish(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_it_goes_on(model, tmp_path, how):
    corpus, out = write_corpus(tmp_path / "c.jsonl", 12_000), tmp_path / "out"
    process = subprocess.Popen(command(corpus, out, model), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        until = time.monotonic() + 60
        while not (out / "corpus.json").exists() or not json.loads((out / "corpus.json").read_text())["passages"]:
            assert time.monotonic() < until
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.005)
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    kept = json.loads((out / "corpus.json").read_text())
    assert 0 < kept["passages"] < 12_000, "it ran to its end: give it more to do"
    if how == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on" in err
        assert "Traceback" not in err
    refused = finish(corpus, out, model, "--low-bit", "nf4")
    assert refused.returncode == 2
    assert "was begun with model format 'sym_int8', it is 'nf4' now" in refused.stderr
    done = finish(corpus, out, model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{out}: 12000 passages, 48 dimensions, index flat")
    vectors, embedder = np.load(out / "vectors.npy", mmap_mode="r"), lowbit.Embedder(model)
    border = kept["passages"]  # rows before, at and behind it are those of their texts
    for row in (0, border - 1, border, 11_999):
        assert np.abs(vectors[row] - embedder.encode(text_of(row))).max() <= 1e-5


@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_langchain_opens_the_folder(model, tmp_path, kind):
    corpus, out = write_corpus(tmp_path / "c.jsonl", 500), tmp_path / "out"
    done = finish(corpus, out, model, "--index", kind)
    assert done.returncode == 0, done.stderr
    store = FaissVectorStore.load_local(out, OfLowbit(model))
    assert len(store) == 500
    found = store.similarity_search_with_score(text_of(123), k=3, filter={"even": False})
    assert found[0][0].page_content == text_of(123)
    assert found[0][0].metadata == {"even": False}
    assert found[0][1] == pytest.approx(1, abs=1e-3)
    if kind == "flat":
        store.add_texts(["w1 w2"], ids=["new"])
        store.save_local(out)
        assert len(FaissVectorStore.load_local(out, OfLowbit(model))) == 501
        again = finish(corpus, out, model)
        assert again.returncode == 2, "the store's own changes are not overwritten"
        assert "a store saved into the folder replaced it" in again.stderr


def test_a_corpus_records_how_the_model_computes(model, tmp_path):
    corpus, out = write_corpus(tmp_path / "c.jsonl", 20), tmp_path / "out"
    options = ("--index", "none", "--low-bit", "nf4", "--group-size", "64")
    done = finish(corpus, out, model, *options, "--precision", "high")
    assert done.returncode == 0, done.stderr
    about = json.loads((out / "corpus.json").read_text())["model"]
    assert (about["format"], about["group_size"], about["precision"]) == ("nf4", 64, "high")
    exact = lowbit.Embedder(model, "nf4", group_size=64, precision="high")
    assert np.abs(np.load(out / "vectors.npy")[7] - exact.encode(text_of(7))).max() <= 1e-6
    for other, message in (
        (options, "precision 'high', it is 'auto' now"),
        ((*options[:-2], "--precision", "high"), "group_size 64, it is 32 now"),
    ):
        refused = finish(corpus, out, model, *other)
        assert refused.returncode == 2
        assert f"was begun with model {message}" in refused.stderr


def test_an_embedder_of_another_dimension_is_told(model, tmp_path):
    from tiny_bert import write_bert

    out = tmp_path / "out"
    assert finish(write_corpus(tmp_path / "c.jsonl", 20), out, model).returncode == 0
    other = write_bert(tmp_path / "other", hidden_size=96)
    with pytest.raises(ValueError, match="holds vectors of 48 dimensions, the embedding gave 96"):
        FaissVectorStore.load_local(out, OfLowbit(other))


def test_bad_input_is_one_line(model, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"body": "w5"}\n{"text": "w6"}\n')
    for arguments, message in (
        ((tmp_path / "none.jsonl", tmp_path / "a", model), "no file"),
        ((bad, tmp_path / "b", model), "line 2 has no field 'body'"),
        ((bad, tmp_path / "c", tmp_path / "nowhere"), "no folder at"),
    ):
        done = finish(*arguments)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert message in done.stderr


def test_faiss_is_asked_for_before_the_work(model, tmp_path):
    (tmp_path / "faiss.py").write_text("raise ImportError('not installed')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    corpus, out = write_corpus(tmp_path / "c.jsonl", 20), tmp_path / "out"
    done = subprocess.run(command(corpus, out, model), capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 2
    assert "pip install 'lowbit[faiss]'" in done.stderr
    assert not out.exists()
    done = subprocess.run(
        command(corpus, out, model, "--index", "none"), capture_output=True, text=True, timeout=120, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert np.load(out / "vectors.npy").shape == (20, 48)
