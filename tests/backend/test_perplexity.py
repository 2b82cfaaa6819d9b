import math

import numpy as np
import pytest

from lowbit.perplexity import perplexity, windows


def uniform(vocab):
    return lambda ids: np.zeros((len(ids), vocab), np.float32)


def test_uniform_model_has_perplexity_of_its_vocabulary():
    result = perplexity(uniform(50), [[1, 2, 3], [4, 5]])
    assert result.tokens == 3
    assert math.isclose(result.value, 50, rel_tol=1e-9)


def test_loss_is_that_of_the_next_token():
    table = np.log(np.array([[0.1, 0.9], [0.5, 0.5]]))
    result = perplexity(lambda ids: table[list(ids)], [[0, 1, 0]])
    assert math.isclose(result.loss, -(math.log(0.9) + math.log(0.5)) / 2)


def test_large_logits_do_not_overflow():
    assert perplexity(lambda ids: np.full((len(ids), 4), 1e4), [[0, 1]]).value == pytest.approx(4)


def test_stops_after_max_tokens():
    assert perplexity(uniform(3), [[0, 1, 2]] * 10, max_tokens=3).tokens == 4


def test_nothing_to_predict():
    with pytest.raises(ValueError, match="nothing to predict"):
        perplexity(uniform(3), [[1], []])


def test_damaged_logits():
    with pytest.raises(ValueError, match="not finite"):
        perplexity(lambda ids: np.full((len(ids), 3), np.nan), [[0, 1]])


def test_windows_cover_the_stream():
    assert [list(w) for w in windows(range(7), 3)] == [[0, 1, 2], [3, 4, 5]]
