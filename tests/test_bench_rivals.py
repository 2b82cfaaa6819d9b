"""benchmarks/quality_rivals.py: paired differences by hand and by simulation, the choice of settings, the table."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"layers.0.qkv.weight": (64, 256), "layers.0.down.weight": (64, 256), "embedding.weight": (64, 256)}


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def sums(values, counts):
    from _paired import Sums

    return Sums(np.array(values, float), np.array(counts))


def test_a_paired_difference_by_hand():
    from _paired import paired

    found = paired(sums([11, 23], [2, 2]), sums([10, 20], [2, 2]))
    # differences 1 and 3 over 4 tokens; from the mean of 1 a token they are 1 away: sqrt(2 / 1 * (1 + 1)) / 4
    assert (found.value, found.error) == (1, 0.5)
    found = paired(sums([1, 5, 3], [1, 3, 2]), sums([0, 0, 0], [1, 3, 2]))
    # 9 / 6 = 1.5 a token; 1 - 1.5, 5 - 4.5, 3 - 3: sqrt(3 / 2 * (0.25 + 0.25)) / 6
    assert (found.value, found.error) == (1.5, pytest.approx(math.sqrt(0.75) / 6))


def test_pairing_takes_out_what_both_find_hard():
    from _paired import paired

    random = np.random.default_rng(0)
    counts = random.integers(5, 50, 100)
    hard = random.normal(2, 5, 100) * counts
    found = paired(sums(hard + 0.01 * counts, counts), sums(hard, counts))
    assert found.value == pytest.approx(0.01)
    assert found.error < 1e-12


def test_the_standard_error_is_that_of_repeated_drawing():
    """Tokens of a sequence share what moves them: the variance of tokens over their number would be far too small."""
    from _paired import paired

    random = np.random.default_rng(1)
    values, errors = [], []
    for _ in range(2000):
        counts = random.integers(5, 40, 60)
        found = paired(sums(counts * random.normal(0.1, 1, 60), counts), sums(np.zeros(60), counts))
        values.append(found.value)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.06)
    assert np.std(values) > 3 * 1 / math.sqrt(60 * 22)
    assert np.mean(np.abs(np.array(values) - 0.1) < 2 * np.array(errors)) == pytest.approx(0.95, abs=0.02)


def test_other_sequences_are_refused():
    from _paired import paired

    with pytest.raises(ValueError, match="same sequences"):
        paired(sums([1, 2], [3, 4]), sums([1, 2], [4, 3]))
    with pytest.raises(ValueError, match="two sequences"):
        paired(sums([1], [3]), sums([1], [3]))


def test_worse_is_more_than_two_standard_errors():
    from _paired import Difference

    worse, even, better = Difference(0.0021, 0.001), Difference(0.0019, 0.001), Difference(-0.0021, 0.001)
    assert [(d.worse, d.better) for d in (worse, even, better)] == [(True, False), (False, False), (False, True)]
    assert [str(d) for d in (worse, even, better)] == ["*+2.1 ± 1.0*", "+1.9 ± 1.0", "-2.1 ± 1.0"]
    assert str(Difference(-0.00012, 0.00002)) == "-0.12 ± 0.02", "a digit more where the error needs it"


def test_settings_take_no_more_than_the_rival():
    from _rival_settings import settings_within, stored_bits

    stored = {"Q4_K": [9216, 16384], "Q6_K": [13440, 16384], "outer Q6_K": [13440, 16384]}
    layers, words = stored_bits(stored, False)
    outer, outside = stored_bits(stored, True)
    total, _ = stored_bits(stored)
    assert (layers, outer, total) == (5.53125, 6.5625, 5.875)
    assert (words, outside) == ("Q4_K 50% + Q6_K 50%", "Q6_K")
    first, second = settings_within(SHAPES, layers, outer, total)
    assert str(first) == "sym_int5 32 / asym_int5", "no more in either place"
    assert str(second) == "nf4 32 / sym_int8", "no more in all, embedding and head as the library has them"
    assert (first.bits(SHAPES, False), first.bits(SHAPES, True)) == (5.5, 6.0)
    assert second.bits(SHAPES) == pytest.approx((2 * 4.5 + 8.5) / 3)
    assert [str(s) for s in settings_within(SHAPES, 4.5, 8.5, 17.5 / 3)] == ["nf4 32 / sym_int8"], "once where equal"
    assert settings_within(SHAPES, 2, 2, 2) == []


class Uneven:
    """A model of four ids: the one that follows has its odds against each other id."""

    spec = SimpleNamespace(vocab_size=4, family="llama")

    def __init__(self, odds):
        self.odds = odds

    def logits(self, ids):
        rows = np.zeros((len(ids), 4), np.float32)
        rows[np.arange(len(ids)), (np.asarray(ids) + 1) % 4] = math.log(self.odds)
        return rows


def test_rows_and_summary(tmp_path, monkeypatch):
    import quality_rivals

    monkeypatch.setattr(quality_rivals, "shapes_of", lambda model: SHAPES)
    exact = Uneven(9)
    text = quality_rivals.Text([[0, 1, 2, 3], [2, 3, 0], [1, 2, 3, 0, 1]], exact, tmp_path)
    assert text.counts.tolist() == [3, 2, 4]
    theirs = {"rival": "llama.cpp", "kind": "Q8_0", "sums": text.measured(Uneven(6))}
    stored = {"Q8_0": [34816, 32768], "outer Q8_0": [17408, 16384]}
    cells = quality_rivals.Cells(tmp_path / "figures.json", 10)
    odds = {"rtn": 5, "importance": 6, "gptq": 9}
    (row,) = quality_rivals.rows(
        SimpleNamespace(name="toy"), theirs | {"stored": stored}, exact, text,
        lambda setting, name: text.measured(Uneven(odds[name])), cells,
    )  # fmt: skip
    loss = {k: math.log(1 + 3 / k) for k in (5, 6, 9)}  # of an id that has odds k against three others
    away = {k: 0.75 * math.log(9 / k) - math.log((9 + 3) / (k + 3)) for k in (5, 6, 9)}
    assert row.split(" | ") == [
        "llama.cpp Q8_0: Q8_0 / Q8_0", "8.50 / 8.50 / 8.50", f"1.500 / {1000 * away[6]:.2f}", "sym_int8 64 / sym_int8",
        "8.25 / 8.25 / 8.25",
        f"1.600 / {1000 * away[5]:.2f}<br>*{1000 * (loss[5] - loss[6]):+.2f} ± 0.00* / "
        f"*{1000 * (away[5] - away[6]):+.2f} ± 0.00*",
        f"1.500 / {1000 * away[6]:.2f}<br>+0.00 ± 0.00 / +0.00 ± 0.00",
        f"1.333 / 0.00<br>{1000 * (loss[9] - loss[6]):+.2f} ± 0.00 / {-1000 * away[6]:+.2f} ± 0.00",
    ]  # fmt: skip
    assert quality_rivals.summary(cells.comparisons).splitlines()[2:] == [
        "| rtn | loss | 1 | 0 | 0 | 1 |", "| rtn | divergence | 1 | 0 | 0 | 1 |",
        "| importance | loss | 1 | 0 | 1 | 0 |", "| importance | divergence | 1 | 0 | 1 | 0 |",
        "| gptq | loss | 1 | 1 | 0 | 0 |", "| gptq | divergence | 1 | 1 | 0 | 0 |",
    ]  # fmt: skip
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert len(kept["cells"]["toy|sym_int8 64 / sym_int8|gptq"]["loss"]) == 3, "a sum for every sequence"
    with pytest.raises(SystemExit, match="--tokens 10"):
        quality_rivals.Cells(tmp_path / "figures.json", 20)
