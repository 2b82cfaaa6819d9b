"""benchmarks/bench_retrieval.py, bench_sts.py: their measures by hand, a whole run on toy sets and a tiny model."""

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
FORMATS = ["fp32", "sym_int8", "sym_int3"]


@pytest.fixture(autouse=True)
def paths(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "tests" / "backend")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Toy sets in the layouts of the real ones, beside a tiny model that knows their words."""
    sys.path.insert(0, str(ROOT / "tests" / "backend"))
    from tiny_bert import write_bert, write_sentence_files

    folder = tmp_path_factory.mktemp("data")
    write_sentence_files(write_bert(folder / "model"))
    toy = folder / "retrieval" / "toy"
    (toy / "qrels").mkdir(parents=True)
    passages = [{"_id": f"d{i}", "title": f"w{i}", "text": f"w{i + 1} w{i + 2}"} for i in range(20)]
    queries = [{"_id": f"q{i}", "text": f"w{i} w{i + 1} w{i + 2}"} for i in range(10)] + [{"_id": "x", "text": "w1"}]
    judged = "".join(f"q{i}\td{i}\t2\nq{i}\td{i + 1}\t1\nq{i}\td{i + 5}\t0\n" for i in range(10))
    (toy / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    (toy / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    (toy / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    (folder / "sts").mkdir()
    with open(folder / "sts" / "toy.csv", "w", newline="") as file:
        rows = [(f"w{i} w{i + 1}", f"w{i} w{i + 1 + i % 3}", 5 - i % 3) for i in range(12)]
        csv.writer(file).writerows([("sentence1", "sentence2", "score"), *rows])
    return folder


def test_ndcg_by_hand():
    from bench_retrieval import ndcg, recall

    gains = {7: 3.0, 8: 1.0}
    assert ndcg([7, 8, 1], gains) == 1
    assert ndcg([1, 2, 3], gains) == 0
    found = 1 / math.log2(2) + 3 / math.log2(4)
    assert ndcg([8, 1, 7], gains) == pytest.approx(found / (3 / math.log2(2) + 1 / math.log2(3)))
    assert ndcg([*range(20, 30), 7], gains) == 0, "beyond the tenth"
    assert recall([1, 7, 2], gains) == 0.5


def test_spearman_by_hand():
    from bench_sts import spearman

    assert spearman(np.array([1, 2, 3]), np.array([10, 20, 400])) == pytest.approx(1)
    assert spearman(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1)
    # ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def run(module, data, capsys, monkeypatch):
    arguments = ["--data", data, "--model", data / "model", "--no-reference", "--formats", *FORMATS]
    monkeypatch.setattr(sys, "argv", ["bench", *map(str, arguments), "--json", "-"])
    module.main()
    said = capsys.readouterr().out
    return json.loads(said[said.index("{") :]), said


def test_retrieval_runs(data, capsys, monkeypatch):
    import bench_retrieval

    result, said = run(bench_retrieval, data, capsys, monkeypatch)
    rows = {row["system"]: row for row in result["rows"]}
    assert list(rows) == FORMATS
    assert result["reference"] == "fp32"
    assert (rows["fp32"]["passages"], rows["fp32"]["queries"]) == (20, 10), "only queries with a judgement"
    assert rows["fp32"]["ndcg10"] > 0.8, "the passage of the same words comes first"
    assert (rows["fp32"]["change_percent"], rows["fp32"]["smallest_cosine"]) == (0, pytest.approx(1, abs=1e-5))
    assert 1 > rows["sym_int8"]["smallest_cosine"] > 0.99 > rows["sym_int3"]["smallest_cosine"]
    assert rows["fp32"]["recall100"] == 1
    assert said.startswith("| set | fp32 | sym_int8 | sym_int3 |\n| --- | --: |")


def test_sts_runs(data, capsys, monkeypatch):
    import bench_sts

    result, said = run(bench_sts, data, capsys, monkeypatch)
    rows = {row["system"]: row for row in result["rows"]}
    assert rows["fp32"]["spearman"] > 0.5, "equal words are more alike"
    change = rows["sym_int8"]["spearman"] - rows["fp32"]["spearman"]
    assert rows["sym_int8"]["change"] == pytest.approx(change, abs=2e-4)
    assert f"| toy | {rows['fp32']['spearman']:.4f} |" in said


def test_absent_sets_are_told(tmp_path, capsys, monkeypatch):
    import bench_retrieval
    import bench_sts

    for module in (bench_retrieval, bench_sts):
        monkeypatch.setattr(sys, "argv", ["bench", "--data", str(tmp_path)])
        module.main()
        assert "--data" in capsys.readouterr().err
