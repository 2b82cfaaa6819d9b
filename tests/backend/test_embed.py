"""Embedder and Reranker: against the real MiniLM, as a caller sees them, and what they refuse."""

from __future__ import annotations

import copy
import csv
import dataclasses
import json
import logging
import math
import pickle
import shutil
import threading

import numpy as np
import pytest
from tiny_bert import bert_tensors, write_bert, write_sentence_files
from tiny_hf import safetensors_bytes, write_llama

import lowbit
import lowbit.loading
from lowbit.replaced import replacement
from lowbit.sentence import Settings, read_settings
from shared_data import shared


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_bert(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def sentence(tmp_path_factory):
    folder = write_bert(tmp_path_factory.mktemp("sentence"))
    return write_sentence_files(folder, prompts={"query": "w1 w2 ", "document": ""})


@pytest.fixture(scope="module")
def embedder(sentence):
    return lowbit.Embedder(sentence)


TEXTS = ["w5 w6 w7", "w8", "w9 w10 w11 w12 w13 w14", "", "w5 w6 w7"]


def test_order_and_shape(embedder):
    vectors = embedder.encode(TEXTS, batch_size=2)
    assert vectors.shape == (5, embedder.dimension) == (5, 48)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for i, text in enumerate(TEXTS):
        assert np.abs(embedder.encode(text) - vectors[i]).max() <= 1e-5
    assert np.abs(vectors[0] - vectors[4]).max() <= 1e-6
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-2


def numpy_bert(tensors: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Returns the last hidden states of the tiny BERT, [tokens, hidden], by the formulas of Devlin et al. 2018."""
    t = {name: array.astype(np.float64) for name, array in tensors.items()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-12)
        return unit * t[f"{name}.weight"] + t[f"{name}.bias"]

    erf = np.vectorize(math.erf)
    x = t["embeddings.word_embeddings.weight"][ids] + t["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", x + t["embeddings.token_type_embeddings.weight"][0])
    for at in ("encoder.layer.0", "encoder.layer.1"):
        q, k, v = (
            linear(f"{at}.attention.self.{n}", x).reshape(len(ids), 3, 16).transpose(1, 0, 2)
            for n in ("query", "key", "value")
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / 4)
        seen = (scores / scores.sum(axis=-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(ids), 48)
        x = norm(f"{at}.attention.output.LayerNorm", x + linear(f"{at}.attention.output.dense", seen))
        inner = linear(f"{at}.intermediate.dense", x)
        inner = inner / 2 * (1 + erf(inner / math.sqrt(2)))
        x = norm(f"{at}.output.LayerNorm", x + linear(f"{at}.output.dense", inner))
    return x


def test_a_numpy_bert_agrees(plain):
    config = json.loads((plain / "config.json").read_text())
    model = lowbit.Embedder(plain, "fp32", compute="fp32")
    ours = model.encode(["w5 w6 w7", "w8 " * 20])
    for vector, words in zip(ours, ([5, 6, 7], [8] * 20), strict=True):
        ids = [2, *(4 + w for w in words), 3]
        assert np.abs(vector - numpy_bert(bert_tensors(config), ids).mean(axis=0)).max() <= 1e-5


def test_a_stream_is_the_whole(embedder):
    texts = [f"w{i % 60} w{i * 7 % 60}" for i in range(150)]
    parts = list(embedder.encode_stream(iter(texts), batch_size=2))
    assert [len(p) for p in parts] == [64, 64, 22]
    assert np.abs(np.concatenate(parts) - embedder.encode(texts)).max() <= 1e-5


class Text(str):
    """A text that can be counted while it is alive."""

    alive = 0

    def __init__(self, _):
        Text.alive += 1

    def __del__(self):
        Text.alive -= 1


def test_an_iterator_is_encoded_without_being_held(embedder):
    most = 0

    def texts():
        nonlocal most
        for i in range(150):
            most = max(most, Text.alive)
            yield Text(f"w{i % 60} w{i * 7 % 60}")

    vectors = embedder.encode(texts(), batch_size=1)
    assert most <= 2 * 32
    assert np.abs(vectors - embedder.encode([f"w{i % 60} w{i * 7 % 60}" for i in range(150)])).max() <= 1e-5
    assert embedder.encode(iter([])).shape == (0, 48)


def test_a_stream_reads_no_further_than_it_must(embedder):
    taken = []
    stream = embedder.encode_stream((taken.append(i) or "w5" for i in range(1000)), batch_size=1)
    assert taken == []
    next(stream)
    assert len(taken) == 32


def test_normalising(embedder, plain):
    raw = embedder.encode(TEXTS, normalize=False)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).max() > 0.1
    assert np.abs(raw / np.linalg.norm(raw, axis=1, keepdims=True) - embedder.encode(TEXTS)).max() <= 1e-5
    own = lowbit.Embedder(plain)  # mean pooling, nothing else, as sentence-transformers does for such folders
    assert np.abs(own.encode(TEXTS) - raw).max() <= 1e-5


def test_prompts(embedder):
    assert embedder.prompts == {"query": "w1 w2 "}
    told = embedder.encode("w1 w2 w5")
    assert np.abs(embedder.encode("w5", prompt_name="query") - told).max() <= 1e-6
    assert np.abs(embedder.encode("w5", prompt="w1 w2 ") - told).max() <= 1e-6
    with pytest.raises(ValueError, match="no prompt named 'q'; it has: query"):
        embedder.encode("w5", prompt_name="q")
    with pytest.raises(ValueError, match="not both"):
        embedder.encode("w5", prompt="a", prompt_name="query")


def test_outputs(embedder):
    vectors = embedder.encode(TEXTS)
    small = embedder.encode(TEXTS, output="int8")
    assert small.dtype == np.int8
    assert (np.abs(small).max(axis=1) == 127).all()
    back = small / np.linalg.norm(small.astype(np.float32), axis=1, keepdims=True)
    assert ((back * vectors).sum(axis=1) > 0.9999).all()
    assert (embedder.encode(TEXTS, output="binary") == np.packbits(vectors > 0, axis=1)).all()
    cut = embedder.encode(TEXTS, truncate_dim=16)
    expected = vectors[:, :16] / np.linalg.norm(vectors[:, :16], axis=1, keepdims=True)
    assert np.abs(cut - expected).max() <= 1e-5


@pytest.mark.parametrize(("output", "shape"), [("float32", (0, 48)), ("int8", (0, 48)), ("binary", (0, 6))])
def test_no_texts_make_no_vectors(embedder, output, shape):
    assert embedder.encode([], output=output).shape == shape


def test_long_texts(sentence, plain, caplog):
    cutting = lowbit.Embedder(sentence)
    assert cutting.max_length == 16
    long = " ".join(["w5"] * 350_000)  # 1 MB
    with caplog.at_level(logging.WARNING, "lowbit"):
        first = cutting.encode(["w6", long])
        cutting.encode(long)
    assert [r.message.count("more than the 16 tokens") for r in caplog.records] == [1]
    assert np.abs(first[1] - cutting.encode(" ".join(["w5"] * 14))).max() <= 1e-5
    strict = lowbit.Embedder(plain)
    assert strict.max_length == 24
    with pytest.raises(ValueError, match=r"texts\[1\] has 26 tokens, the limit of .* is 24; .*truncate=True"):
        strict.encode(["w5", " ".join(["w5"] * 24)])
    assert lowbit.Embedder(plain, truncate=True, max_length=8).encode([long]).shape == (1, 48)
    with pytest.raises(ValueError, match="max_length=25 is not possible: this model reads 1 to 24 tokens"):
        lowbit.Embedder(plain, max_length=25)
    caplog.clear()
    assert lowbit.Embedder(plain, max_length=512, truncate=True).max_length == 24
    assert "texts are cut at 24 tokens" in caplog.text


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None], r"texts\[1\] is None"), ([b"a"], r"texts\[0\] is bytes"), (None, "texts is None"),
        (5, "texts is int"), ({"a"}, "texts is set"), (iter(["a", None]), r"texts\[1\] is None"),
    ],
)  # fmt: skip
def test_only_strings(embedder, texts, message):
    with pytest.raises(TypeError, match=message):
        embedder.encode(texts)


@pytest.mark.parametrize("texts", ["w5 w6", b"w5", None])
def test_a_stream_is_of_texts_not_of_one(embedder, texts):
    with pytest.raises(TypeError, match="give an iterable of strings, for one string use encode"):
        embedder.encode_stream(texts)


def test_half_a_surrogate_pair_is_no_text(embedder):
    with pytest.raises(ValueError, match=r"texts\[33\] holds half a surrogate pair at character 3"):
        list(embedder.encode_stream(iter(["w5"] * 33 + ["w5 \ud800"]), batch_size=1))


def test_bad_arguments(embedder, sentence):
    with pytest.raises(ValueError, match="batch_size"):
        embedder.encode(["w5"], batch_size=0)
    with pytest.raises(ValueError, match="vectors have 48 numbers"):
        embedder.encode(["w5"], truncate_dim=49)
    with pytest.raises(ValueError, match="truncate_dim='8' is not possible"):
        embedder.encode(["w5"], truncate_dim="8")
    with pytest.raises(TypeError, match="prompt is int, it must be a string"):
        embedder.encode(["w5"], prompt=3)
    with pytest.raises(ValueError, match="unknown output 'int4'"):
        embedder.encode(["w5"], output="int4")
    with pytest.raises(TypeError, match="did you mean 'threads'"):
        lowbit.Embedder(sentence, thread=1)


def test_another_process_opens_it_again(sentence, reranker):
    """As LlamaIndex's IngestionPipeline with num_workers has it."""
    embedder = lowbit.Embedder(sentence, "nf4", max_length=5, truncate=True, pooling="cls", group_size=64, threads=1)
    again = pickle.loads(pickle.dumps(embedder))
    assert (again.encode(TEXTS) == embedder.encode(TEXTS)).all()
    assert (again.max_length, again.quantization, again.runtime) == (5, embedder.quantization, embedder.runtime)
    assert copy.deepcopy(embedder) is copy.copy(embedder) is embedder
    pairs = [("w5", "w6")]
    assert (pickle.loads(pickle.dumps(reranker)).score(pairs) == reranker.score(pairs)).all()


@pytest.mark.parametrize("low_bit", ["sym_int8", "nf4", "bf16"])
def test_a_saved_folder_is_complete(tmp_path, low_bit, sentence):
    source = tmp_path / "source"
    shutil.copytree(sentence, source)
    model = lowbit.Embedder(source, low_bit)
    vectors = model.encode(TEXTS, prompt_name="query")
    model.save_low_bit(tmp_path / "saved")
    shutil.rmtree(source)
    again = lowbit.Embedder(tmp_path / "saved")  # whatever the format is: the default asks for nothing
    assert (again.encode(TEXTS, prompt_name="query") == vectors).all()
    assert (again.max_length, again.prompts, again.quantization["format"]) == (16, {"query": "w1 w2 "}, low_bit)
    again.save_low_bit(tmp_path / "copy")
    shutil.move(tmp_path / "copy", tmp_path / "moved")
    assert (lowbit.Embedder(tmp_path / "moved").encode(TEXTS, prompt_name="query") == vectors).all()


def test_many_threads(embedder):
    texts = [f"w{i} w{i + 1}" for i in range(40)]
    expected = embedder.encode(texts)
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(embedder.encode(texts))) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(found) == 4
    assert all((f == expected).all() for f in found)


def test_dense_modules(tmp_path):
    folder = write_sentence_files(write_bert(tmp_path / "m"), modules=("Dense", "Normalize"))
    plain = lowbit.Embedder(write_sentence_files(write_bert(tmp_path / "n"), modules=()))
    random = np.random.default_rng(1)
    weight, bias = random.normal(0, 0.3, (20, 48)).astype("<f4"), random.normal(0, 0.3, 20).astype("<f4")
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "config.json").write_text(
        json.dumps({"activation_function": "torch.nn.modules.activation.Tanh"})
    )
    dense = {"linear.weight": weight, "linear.bias": bias}
    (folder / "2_Dense" / "model.safetensors").write_bytes(safetensors_bytes(dense))
    model = lowbit.Embedder(folder)
    expected = np.tanh(plain.encode(TEXTS) @ weight.T + bias)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert model.dimension == 20
    assert np.abs(model.encode(TEXTS) - expected).max() <= 1e-5
    model.save_low_bit(tmp_path / "saved")
    assert (lowbit.Embedder(tmp_path / "saved").encode(TEXTS) == model.encode(TEXTS)).all()


def test_settings(tmp_path):
    assert read_settings({}) == Settings()
    folder = write_sentence_files(tmp_path, pooling="cls_token", modules=("LayerNorm",))
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*.json")}
    with pytest.raises(ValueError, match="module 'LayerNorm', which is not supported"):
        read_settings(files)
    kinds = [{"path": "", "type": "a.Transformer"}, {"path": "1_Pooling", "type": "a.Pooling"}]
    (folder / "modules.json").write_text(json.dumps(kinds))
    assert read_settings(files) == Settings(("cls",), max_length=16, truncates=True)
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True})
    )
    assert read_settings(files).poolings == ("cls", "mean")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "lasttoken"}))
    assert read_settings(files).poolings == ("last",)
    (folder / "1_Pooling" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="of no kind"):
        read_settings(files)
    (folder / "modules.json").write_text("[]")
    with pytest.raises(ValueError, match="no Pooling module"):
        read_settings(files)


# ---- the wrong model ----------------------------------------------------------------------------------------------


def test_a_language_model_is_no_embedder(tmp_path):
    write_llama(tmp_path / "llama")
    with pytest.raises(ValueError, match="causal language model whose folder does not say how to make vectors"):
        lowbit.Embedder(tmp_path / "llama")
    with pytest.raises(ValueError, match="holds a llama model without a classification head"):
        lowbit.Reranker(tmp_path / "llama")


def test_an_encoder_is_no_language_model(plain, tmp_path):
    with pytest.raises(ValueError, match=r"turns texts into vectors .* open it with lowbit\.Embedder$"):
        lowbit.load(plain)
    lowbit.Embedder(plain).save_low_bit(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"turns texts into vectors"):
        lowbit.load(tmp_path / "saved", low_bit="sym_int8")
    with pytest.raises(ValueError, match=r"without a classification head.*open this one with lowbit\.Embedder"):
        lowbit.Reranker(plain)


def test_a_model_without_a_tokenizer(tmp_path):
    folder = write_bert(tmp_path / "m")
    (folder / "vocab.txt").unlink()
    with pytest.raises(ValueError, match="no tokenizer this version reads"):
        lowbit.Embedder(folder)


def test_files_that_do_not_say_where_special_tokens_stand(plain):
    from lowbit.texts import tokenizer_of

    loaded = lowbit.loading.load_model(plain, "fp32", task="embed")
    spec = dataclasses.replace(loaded.spec, family="xlm-roberta")
    with pytest.raises(ValueError, match=r"this xlm-roberta model has no tokenizer\.json, only .*vocab\.txt"):
        tokenizer_of(dataclasses.replace(loaded, spec=spec))


def test_names_of_the_first_checkpoints(plain, tmp_path):
    """Norms were called gamma and beta once."""
    shutil.copytree(plain, tmp_path / "old")
    tensors = bert_tensors(json.loads((plain / "config.json").read_text()))
    renamed = {
        n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): array
        for n, array in tensors.items()
    }
    assert set(renamed) != set(tensors)
    (tmp_path / "old" / "model.safetensors").write_bytes(safetensors_bytes(renamed))
    assert (lowbit.Embedder(tmp_path / "old").encode(TEXTS) == lowbit.Embedder(plain).encode(TEXTS)).all()


def test_a_language_model_that_says_how_to_embed(tmp_path):
    """As Qwen3-Embedding: the hidden state of the last token, through the decoder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    write_llama(tmp_path / "m")
    write_sentence_files(tmp_path / "m", pooling="lasttoken")
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(96)}, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.save(str(tmp_path / "m" / "tokenizer.json"))
    model = lowbit.Embedder(tmp_path / "m", "fp32", compute="fp32", kv_dtype="fp32")
    vectors = model.encode(["w5 w6 w7", "w8", "w9 w5 w6 w7"], batch_size=2)
    assert vectors.shape == (3, 64)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    # The head reads the same state: logits are its product with the head's weight, up to the length of the state.
    text = lowbit.load(tmp_path / "m", "fp32", compute="fp32", kv_dtype="fp32")
    engine = text.generator.engine
    logits = engine.forward([(engine.new_cache(8), np.array([5, 6, 7], np.int32), False)])[0]
    state = vectors[0] @ text._loaded.tensors["head.weight"].dequantize().T
    assert np.abs(state / np.linalg.norm(state) - logits / np.linalg.norm(logits)).max() <= 1e-5
    with pytest.raises(ValueError, match="adds no special tokens"):
        model.encode([""])


# ---- rerankers ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    return lowbit.Reranker(write_bert(tmp_path_factory.mktemp("rerank"), labels=1))


def test_scores(reranker, tmp_path):
    passages = ["w7 w8", "w9", "w5 w6 w10 w11 w12", "w9"]
    scores = reranker.score("w5 w6", passages, batch_size=2)
    assert scores.shape == (4,)
    assert scores.dtype == np.float32
    assert ((scores > 0) & (scores < 1)).all()
    assert np.abs(scores[1] - scores[3]) <= 1e-6
    assert scores.std() > 1e-3
    assert np.abs(reranker.score([("w5 w6", p) for p in passages]) - scores).max() <= 1e-6
    logits = reranker.logits("w5 w6", passages)[:, 0]
    assert np.abs(1 / (1 + np.exp(-logits)) - scores).max() <= 1e-6
    assert np.abs(reranker.score([("w7 w8", "w5 w6")])[0] - scores[0]) > 1e-4  # a pair has an order
    assert reranker.score("w5", []).shape == (0,)
    reranker.save_low_bit(tmp_path / "saved")
    again = lowbit.Reranker(tmp_path / "saved", activation="none")
    assert np.abs(again.score("w5 w6", passages) - logits).max() <= 1e-6


def test_the_configured_activation(tmp_path):
    identity = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    assert lowbit.Reranker(write_bert(tmp_path / "a", labels=1, **identity)).activation == "none"
    other = {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Softmax"}
    with pytest.raises(ValueError, match="Softmax"):
        lowbit.Reranker(write_bert(tmp_path / "b", labels=1, **other))
    three = lowbit.Reranker(write_bert(tmp_path / "c", labels=3))
    assert three.logits([("w5", "w6")]).shape == (1, 3)
    with pytest.raises(ValueError, match="3 labels"):
        three.score([("w5", "w6")])


def test_only_pairs_of_strings(reranker):
    with pytest.raises(TypeError, match=r"passages\[1\] is None"):
        reranker.score("w5", ["w6", None])
    with pytest.raises(TypeError, match="list of passages"):
        reranker.score("w5", "w6")
    with pytest.raises(TypeError, match=r"pairs\[1\] must be a pair"):
        reranker.score([("w5", "w6"), "w7"])
    with pytest.raises(TypeError, match="nothing else"):
        reranker.score([("w5", "w6")], ["w7"])
    with pytest.raises(TypeError, match="give score"):
        reranker.score(None)
    assert reranker.score("w5", iter(["w6", "w7"])).shape == (2,)
    assert reranker.score("w5", [" ".join(["w6"] * 100)]).shape == (1,)  # cut to the 24 positions


# ---- the real model -----------------------------------------------------------------------------------------------


def stsb() -> tuple[list[str], list[str], np.ndarray]:
    with open(shared("sts", "stsb-en-dev.csv"), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return *([row[c] for row in rows] for c in ("sentence1", "sentence2")), np.array([float(r["score"]) for r in rows])


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the correlation of ranks; equal values share the mean of theirs."""

    def ranks(values: np.ndarray) -> np.ndarray:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(x), ranks(y))[0, 1])


# Measured: 0.8672 in fp32 (transformers: 0.8672), 0.8671 in sym_int8, 0.8655 in sym_int4, 0.8664 in nf4.
@pytest.mark.parametrize(("low_bit", "loss"), [("sym_int8", 0.003), ("sym_int4", 0.01), ("nf4", 0.01)])
def test_minilm_on_sts(low_bit, loss):
    model = lowbit.Embedder(shared("models", "all-MiniLM-L6-v2"), low_bit)
    first, second, scores = stsb()
    a, b = model.encode(first), model.encode(second)
    assert spearman((a * b).sum(axis=1), scores) >= 0.8672 - loss


def test_pooling_that_is_asked_for(sentence, plain):
    """The mean of both is (cls + the other rows) / n, so one text of one word tells the two apart."""
    cls, mean = (lowbit.Embedder(sentence, pooling=pooling) for pooling in ("cls", "mean"))
    assert (cls.pooling, cls.configured_pooling) == ("cls", "mean")
    assert np.abs(cls.encode(TEXTS) - mean.encode(TEXTS)).max() > 1e-2
    assert np.abs(mean.encode(TEXTS) - lowbit.Embedder(sentence).encode(TEXTS)).max() <= 1e-6
    assert lowbit.Embedder(plain).configured_pooling is None
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        lowbit.Embedder(plain, pooling="means")


def test_dead_ids_mean_the_model_they_were_made_from(caplog, tmp_path, monkeypatch):
    monkeypatch.setattr("lowbit.replaced._told", set())  # whatever other tests have been told
    dead = "Intel/bge-small-en-v1.5-rag-int8-static"
    assert replacement(dead) == replacement("intel/BGE-small-en-v1.5-sts-int8-static-inc") == "BAAI/bge-small-en-v1.5"
    replacement(dead)
    assert [record.args[0] for record in caplog.records if record.name == "lowbit.replaced"].count(dead) == 1
    assert replacement("BAAI/bge-small-en-v1.5") == "BAAI/bge-small-en-v1.5"
    with pytest.raises((ValueError, OSError), match=r"BAAI/bge-small-en-v1\.5"):  # asked of a hub cache without it
        lowbit.Embedder(dead, cache_dir=tmp_path, local_files_only=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / dead).mkdir(parents=True)
    assert replacement(dead) == dead  # a folder of that name is the caller's own
