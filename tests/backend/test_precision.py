"""precision="fast" | "auto" | "high": what is measured when a model is quantised, kept, and computed by. No torch."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny_bert

import lowbit
from lowbit import checkpoint, precision
from lowbit.cli import main
from lowbit.runtime import Runtime
from shared_data import shared

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "demo" / "model"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """The embedded model with two channels of every norm, and of `down`'s inputs, two hundred times as large."""
    import sys

    sys.path.insert(0, str(ROOT / "benchmarks"))
    from plant_outliers import planted

    return str(planted(DEMO, tmp_path_factory.mktemp("planted") / "model", 200.0))


IDS = [int(i) for i in np.random.default_rng(0).integers(10, 1500, 48)]


def logits(model) -> np.ndarray:
    return model.logits(IDS)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean() / np.abs(b).mean())


def test_planting_changes_nothing_but_the_size_of_activations(planted):
    plain, large = (lowbit.load(str(f), low_bit=None, precision="high") for f in (DEMO, planted))
    assert distance(logits(large), logits(plain)) < 0.02  # the checkpoint is bf16 where it was not planted


def test_what_each_precision_computes(planted, caplog):
    with caplog.at_level(logging.INFO, "lowbit.precision"):
        auto = lowbit.load(planted, "sym_int8")
    fast, high = (lowbit.load(planted, "sym_int8", precision=p) for p in ("fast", "high"))
    exact = logits(high)
    assert distance(logits(fast), exact) > 0.3
    assert distance(logits(auto), exact) < 0.02
    assert 0 < distance(logits(lowbit.load(planted, "sym_int8", precision="bf16")), exact) < 0.02
    errors = auto.loaded.activation_errors
    large = [name for name, error in errors.items() if error > precision.LIMIT]
    assert {n.rpartition(".")[2] for n in large} == {"qkv", "gate_up", "down"}
    assert [n for n in errors if n.endswith(".o")] == [n for n in errors if n.endswith(".o") and n not in large]
    assert f"{len(large)} of {len(errors)} matrices compute in bf16, for outliers: layers." in caplog.text
    # As without precision: compute alone says the same.
    assert np.array_equal(logits(lowbit.load(planted, "sym_int8", compute="int8")), logits(fast))
    assert np.array_equal(logits(lowbit.load(planted, "sym_int8", compute="fp32")), exact)


def test_auto_is_fast_where_nothing_is_large():
    auto, fast = (lowbit.load(str(DEMO), precision=p) for p in ("auto", "fast"))
    assert len(auto.loaded.activation_errors) == 4 * auto.spec.layers + 1
    assert max(auto.loaded.activation_errors.values()) < precision.LIMIT
    assert np.array_equal(logits(auto), logits(fast))
    assert lowbit.load(str(DEMO)).runtime.precision == "auto"


def test_a_saved_model_computes_as_before(planted, tmp_path):
    model = lowbit.load(planted, "nf4")
    model.save_low_bit(tmp_path / "saved")
    again = lowbit.load(str(tmp_path / "saved"))
    assert again.loaded.activation_errors == model.loaded.activation_errors
    assert "activation_errors" not in again.quantization
    assert np.array_equal(logits(again), logits(model))
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())["quantization_config"]
    assert saved["activation_errors"] == model.loaded.activation_errors
    again.save_low_bit(tmp_path / "twice")
    assert checkpoint.load(tmp_path / "twice").activation_errors == model.loaded.activation_errors
    fast = lowbit.load(str(tmp_path / "saved"), precision="fast")
    assert distance(logits(fast), logits(model)) > 0.1


def test_a_folder_without_errors_computes_as_ever(planted, tmp_path, caplog):
    fast = lowbit.load(planted, "sym_int8", precision="fast")
    assert fast.loaded.activation_errors == {}
    fast.save_low_bit(tmp_path / "unmeasured")
    with caplog.at_level(logging.INFO, "lowbit.precision"):
        assert np.array_equal(logits(lowbit.load(str(tmp_path / "unmeasured"))), logits(fast))
        assert "no activation errors" not in caplog.text
    assert "activation_errors" not in (tmp_path / "unmeasured" / "config.json").read_text()


def test_threads_and_tiers_measure_alike(planted):
    one, two = (lowbit.load(planted, threads=threads).loaded.activation_errors for threads in (1, 2))
    assert one == two
    scalar = lowbit.load(planted, tier="scalar").loaded.activation_errors
    assert scalar.keys() == one.keys()
    assert all(scalar[name] == pytest.approx(one[name], rel=0.05) for name in one)


def test_a_model_of_floats_has_nothing_to_measure():
    assert lowbit.load(str(DEMO), low_bit=None, embedding_format="fp16").loaded.activation_errors == {}


def test_embedders(tmp_path):
    folder = tiny_bert.write_bert(tmp_path / "bert")
    embedders = {p: lowbit.Embedder(folder, precision=p) for p in ("fast", "auto", "high")}
    vectors = {p: model.encode(["w5 w6 w7", "w8"]) for p, model in embedders.items()}
    assert len(embedders["auto"]._loaded.activation_errors) == 4 * embedders["auto"].spec.layers
    assert not np.array_equal(vectors["fast"], vectors["high"])
    embedders["auto"].save_low_bit(tmp_path / "saved")
    assert np.array_equal(lowbit.Embedder(tmp_path / "saved").encode(["w5 w6 w7", "w8"]), vectors["auto"])


# ---- what is asked for --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ("auto", "int8")),
        ({"precision": "fast"}, ("fast", "int8")),
        ({"precision": "high"}, ("high", "fp32")),
        ({"compute": "int8"}, ("fast", "int8")),
        ({"compute": "bf16"}, ("bf16", "bf16")),
        ({"compute": "fp32"}, ("high", "fp32")),
        ({"precision": "auto", "compute": "int8"}, ("auto", "int8")),
        ({"precision": "bf16"}, ("bf16", "bf16")),
        ({"precision": "bf16", "compute": "bf16"}, ("bf16", "bf16")),
        ({"precision": "high", "compute": "fp32"}, ("high", "fp32")),
    ],
)
def test_precision_and_compute(asked, expected):
    runtime = Runtime(**asked)
    assert (runtime.precision, runtime.compute) == expected
    assert dataclasses.replace(runtime, threads=1).precision == expected[0]
    resolved = runtime.resolve()
    assert (resolved.precision, resolved.compute) == expected
    assert next(d for d in resolved.decisions if d.name == "precision").value == expected[0]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"precision": "high", "compute": "int8"}, "precision='high' and compute='int8' contradict each other"),
        ({"precision": "fast", "compute": "fp32"}, "contradict each other: 'high' is fp32"),
        ({"precision": "hihg"}, "unknown precision 'hihg'; did you mean 'high'.* Choices: fast, auto, bf16, high"),
        ({"precision": "auto", "compute": "bf16"}, "contradict each other: .*'bf16' is bf16"),
        ({"compute": "fp16"}, "unknown compute 'fp16'"),
    ],
)
def test_what_cannot_be(asked, said):
    with pytest.raises(ValueError, match=said):
        Runtime(**asked)


def test_the_limit():
    errors = {"a": precision.LIMIT, "b": precision.LIMIT * 1.01, "c": 1.0}
    assert precision.outlier_matrices(errors, "auto") == ["b", "c"]
    assert precision.outlier_matrices(errors, "fast") == precision.outlier_matrices(errors, "high") == []
    assert precision.outlier_matrices({}, "auto") == []


def test_commands(planted, capsys, tmp_path):
    assert main(["info", planted, "--low-bit", "sym_int8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["model"]["precision"]
    assert told["matrices"] == 25
    assert "layers.0.gate_up" in told["outliers"]
    assert main(["info", planted, "--low-bit", "sym_int8"]) == 0
    assert "bf16 in layers.0.down" in capsys.readouterr().out
    for name, kept in (("auto", 25), ("fast", 0)):
        assert main(["convert", planted, str(tmp_path / name), "--low-bit", "nf4", "--precision", name, "-q"]) == 0
        assert len(checkpoint.load(tmp_path / name).activation_errors) == kept
    capsys.readouterr()
    answers = {}
    for name in ("fast", "high"):
        arguments = ["run", planted, "--low-bit", "sym_int8", "--raw", "-p", "Once upon a time", "-n", "24"]
        assert main([*arguments, "--temperature", "0", "--precision", name, "-q"]) == 0
        answers[name] = capsys.readouterr().out
    assert answers["fast"] != answers["high"]
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a little dog. " * 8)
    losses = {}
    for name in ("fast", "auto", "high"):
        arguments = [
            "perplexity",
            planted,
            "--data",
            str(text),
            "--low-bit",
            "sym_int8",
            "--no-reference",
            "--json",
            "-q",
        ]
        assert main([*arguments, "--precision", name]) == 0
        losses[name] = json.loads(capsys.readouterr().out)[0]["perplexity"]
    assert losses["auto"] == pytest.approx(losses["high"], rel=0.02)
    assert abs(losses["fast"] / losses["high"] - 1) > 0.05


# ---- really trained models ----------------------------------------------------------------------------------------


def test_perplexity_of_the_embedded_model(planted):
    from quality import generated

    from lowbit.perplexity import perplexity

    values = {}
    for name in ("fast", "auto", "high"):
        model = lowbit.load(planted, "sym_int8", precision=name)
        values[name] = perplexity(model.logits, generated(Path(), model), 3000).value
    assert abs(values["auto"] / values["high"] - 1) < 0.003
    assert values["fast"] / values["high"] - 1 > 0.03


def test_perplexity_of_other_models():
    from quality import stories

    from lowbit.perplexity import perplexity

    folder = shared("models", "stories260k")
    values = {}
    for name in ("auto", "high"):
        model = lowbit.load(str(folder), precision=name)
        values[name] = perplexity(model.logits, stories(folder.parents[1], model), 6000).value
    assert abs(values["auto"] / values["high"] - 1) < 0.003
