"""VectorIndex where no vector store asks: cells chosen from a sample, and what is refused."""

import numpy as np
import pytest

from lowbit.vector_index import VECTORS_PER_CELL, VectorIndex

VECTORS = np.random.default_rng(3).standard_normal((400, 16)).astype(np.float32)


def test_cells_of_a_sample_hold_the_vectors_that_come_later():
    index = VectorIndex(16, "l2", "ivf", {"nlist": 8, "nprobe": 8})
    index.train(VECTORS[::-1])
    assert index.is_trained_ivf
    assert len(index) == 0
    assert index.add(VECTORS[:100]).tolist() == list(range(100))
    assert index.add(VECTORS[100:]).tolist() == list(range(100, 400))
    keys, scores = index.search(VECTORS[123], 5)
    distances = np.linalg.norm(VECTORS - VECTORS[123], axis=1)
    assert keys.tolist() == np.argsort(distances)[:5].tolist()
    assert scores == pytest.approx(np.sort(distances)[:5], abs=1e-3)
    assert (index.vectors([123]) == VECTORS[123]).all()


def test_what_cannot_be_trained():
    with pytest.raises(ValueError, match="only an empty 'ivf' index is trained; this is 'flat' of 0 vectors"):
        VectorIndex(16).train(VECTORS)
    index = VectorIndex(16, "l2", "ivf", {"nlist": 8})
    with pytest.raises(ValueError, match=f"8 cells need {8 * VECTORS_PER_CELL} vectors to train with; got 9"):
        index.train(VECTORS[:9])
    index.add(VECTORS[:9])
    with pytest.raises(ValueError, match="this is 'ivf' of 9 vectors"):
        index.train(VECTORS)
