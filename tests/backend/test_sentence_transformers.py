"""lowbit.Embedder in fp32 against sentence-transformers itself, on the real all-MiniLM-L6-v2."""

import json
from pathlib import Path

import numpy as np
import pytest

import lowbit
from shared_data import minilm

pytestmark = pytest.mark.torch

DATA = Path(__file__).resolve().parents[2] / "cookbook" / "data"


@pytest.fixture(scope="module")
def pair():
    """(lowbit, sentence-transformers), both of the same folder and in fp32."""
    kind = pytest.importorskip("sentence_transformers").SentenceTransformer
    ours = lowbit.Embedder(minilm(), "fp32", compute="fp32")
    return ours, kind(str(minilm()), device="cpu")


@pytest.fixture(scope="module")
def texts():
    pages = [page.read_text(encoding="utf-8") for page in sorted((DATA / "handbook").glob("*.md"))]
    paragraphs = [paragraph for page in pages for paragraph in page.split("\n\n")]
    lines = (DATA / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    odd = ["", " ", "Zürich, naïve café", "量化的嵌入模型", "🦊 fox", "a" * 300]
    return pages[:2] + paragraphs + [json.loads(line)["question"] for line in lines] + odd


def test_vectors_point_the_same_way(pair, texts):
    ours, theirs = pair
    assert (ours.max_length, ours.dimension) == (theirs.max_seq_length, 384)
    assert max(len(text.split()) for text in texts) > 256, "some are longer than the model reads"
    got, wanted = ours.encode(texts), theirs.encode(texts)
    assert np.abs(np.linalg.norm(got, axis=1) - 1).max() <= 1e-5
    assert (1 - (got * wanted).sum(axis=1)).max() <= 1e-5
    assert np.abs(got - wanted).max() <= 1e-4
    assert (wanted @ wanted.T).min() < 0.1, "texts differ, so equal vectors are no accident"


def test_the_same_options_give_the_same(pair, texts):
    ours, theirs = pair
    got = ours.encode(texts[:20], prompt="query: ", truncate_dim=128, normalize=True)
    wanted = theirs.encode(texts[:20], prompt="query: ", truncate_dim=128, normalize_embeddings=True)
    assert got.shape == wanted.shape == (20, 128)
    assert (1 - (got * wanted).sum(axis=1)).max() <= 1e-5
