"""benchmarks/compare.py: its tables by hand; a whole run of a tiny shape with lowbit in the rival's place."""

import json
import sys

import pytest

from test_bench_load import BENCHMARKS, make_model  # noqa: F401 - a fixture: tiny shapes

OURS = "sym_int4 32 / sym_int8"


@pytest.fixture
def compare(make_model, monkeypatch):  # noqa: F811
    monkeypatch.syspath_prepend(BENCHMARKS)
    import compare

    return compare


def a_run(ours, theirs, tier="avx2", shape="llama-1b"):
    return {
        "machine": {"cpu": "a CPU", "commit": "abc"},
        "tier": tier,
        "threads": 2,
        "shape": shape,
        "versions": {"rival": "rival 1.0", OURS: "lowbit 0.1"},
        "bits": {"rival": {"body": 4.5, "head": 6.5625}, OURS: {"body": 4.5, "head": 8.5}},
        "against": {"rival": OURS},
        "samples": {"rival": theirs, OURS: ours},
        "others": [0.02],
        "weights": {"body": 4_000_000_000, "head": 1_000_000_000},
        "reads": [40.0, 50.0][: len(ours.get("decode", ()))],
    }


def test_runs_add_up_and_losses_stay(compare):
    from _compare_report import merge, tables

    first = a_run({"decode": [20.0, 30.0], "load": [0.2]}, {"decode": [10.0, 10.0], "load": [0.1]})
    second = a_run({"decode": [80.0], "memory": [300.0]}, {"decode": [10.0], "memory": [600.0]})
    (pair,) = merge([first, second])["a CPU", "avx2", 2]["llama-1b"].values()
    assert pair.medians("decode") == (10, 30, 3), "the median of 2, 3 and 8"
    text = tables([first, second])
    titles = "| decode | decode over reading | load, s | peak memory, MB |"
    assert "| llama-1b | bits | lowbit | bits " + titles in text
    assert "| rival | 4.50 / 6.56 | sym_int4 32 / sym_int8 | 4.50 / 8.50 | 3.00 (30.0, 10.0) |" in text
    # Steps read 2.25 + 1.0625 and 2.25 + 0.82 GB, plain reading 40, 50 and 40 GB/s.
    assert f"| {3.3125 * 30 / 50:.0%}, {3.0703 * 10 / 40:.0%} |" in text
    assert "| *0.50* (0.20, 0.10) | 2.00 (300, 600) |" in text
    assert "a CPU, tier avx2, 2 threads; lowbit at abc; rival 1.0." in text


def test_tiers_are_not_mixed_nor_unpaired_samples_used(compare):
    from _compare_report import merge

    broken = a_run({"decode": [20.0, 30.0]}, {"decode": [10.0]})
    places = merge([a_run({}, {}), a_run({}, {}, tier="avx512"), broken])
    assert list(places) == [("a CPU", "avx2", 2), ("a CPU", "avx512", 2)]
    assert places["a CPU", "avx2", 2]["llama-1b"]["rival"].samples == {}


def test_a_run(compare, tmp_path, capsys, monkeypatch):
    same = {"low_bit": "sym_int4", "group_size": 32, "head_format": "sym_int8"}
    rivals = (
        compare.System("a twin", "twin", same, same),
        compare.System("one that fails", "twin", {"low_bit": "sym_int99"}, same),
        compare.System("one not here", "llama_cpp", {}, same),
    )
    monkeypatch.setattr(compare, "RIVALS", rivals)
    monkeypatch.setitem(compare.ENGINES, "twin", "ours")
    files = {name: tmp_path / name for name in ("runs.json", "table.md", "plot.svg")}
    arguments = ["--twin", sys.executable, "--shapes", "llama-1b", "--models", tmp_path, "--threads", 1, "--rounds", 2]
    arguments += ["--prompts", 24, "--steps", 4, "--batch", 3, "--json", files["runs.json"]]
    arguments += ["--table", files["table.md"], "--plot", files["plot.svg"]]
    monkeypatch.setattr(sys, "argv", ["compare", *map(str, arguments)])
    compare.main()

    said = capsys.readouterr().err
    assert "one not here: left out, no environment given (--llama-cpp PYTHON)" in said
    assert "one that fails: left out: ValueError" in said
    (run,) = json.loads(files["runs.json"].read_text())["runs"]
    assert run["against"] == {"a twin": OURS}
    assert len(run["reads"]) == 2
    rates = {"load": 2, "prefill 24": 2, "decode": 2, "decode x 3": 2}
    for name in ("a twin", OURS):
        assert {measure: len(values) for measure, values in run["samples"][name].items()} == {**rates, "memory": 1}
        assert all(value > 0 for values in run["samples"][name].values() for value in values)
    bits = run["bits"]["a twin"]
    assert bits == run["bits"][OURS]
    assert 4.5 <= bits["body"] < 5, "so small a model is padded"
    assert f"| a twin | {bits['body']:.2f} / {bits['head']:.2f} |" in files["table.md"].read_text()
    assert "a twin" in files["plot.svg"].read_text()
