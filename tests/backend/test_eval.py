"""Perplexity over sliding windows and formats side by side."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit import cli, eval
from lowbit.calibration import Quantiser, read_imatrix
from lowbit.loading import measure
from lowbit.perplexity import token_losses

MODEL = str(Path(__file__).resolve().parents[2] / "demo" / "model")
TEXT = "Once upon a time, there was a little fox. The fox lived in a forest. One day, the fox found a shiny stone. " * 4


@pytest.fixture(scope="module")
def model():
    return lowbit.load(MODEL, low_bit="fp32")


@pytest.mark.parametrize(
    ("count", "ctx", "stride"), [(10, 4, 4), (10, 4, 1), (9, 4, 3), (4, 4, 4), (2, 8, 8), (33, 8, 5)]
)
def test_windows_score_each_token_once(count, ctx, stride):
    scored = []
    for begin, end, new in eval.windows(count, ctx, stride):
        assert end - begin <= ctx
        assert begin < end - new  # something stands before each scored token
        scored += range(end - new, end)
    if stride < ctx:
        assert scored == list(range(1, count))
    else:  # windows that do not overlap: the first token of each is seen by nobody
        assert scored == [i for i in range(count) if i % ctx]


def test_one_window_is_the_plain_sum(model):
    ids = model.encode(TEXT)
    exact = token_losses(model.logits(ids)[:-1], np.array(ids[1:])).mean()
    result = eval.perplexity(model, TEXT)
    assert result.tokens == len(ids) - 1
    assert result.loss == pytest.approx(exact, rel=1e-6)


def test_a_smaller_stride_sees_more_and_predicts_better(model):
    coarse, fine = (eval.perplexity(model, TEXT, ctx=32, stride=s) for s in (32, 8))
    assert fine.loss < coarse.loss
    ids = model.encode(TEXT)
    by_hand = []  # the loop of transformers' page
    before = 0
    for begin in range(0, len(ids), 8):
        end = min(begin + 32, len(ids))
        new = end - before
        losses = token_losses(model.logits(ids[begin:end])[:-1], np.array(ids[begin + 1 : end]))
        by_hand += losses[-new:].tolist()
        before = end
        if end == len(ids):
            break
    assert fine.loss == pytest.approx(np.mean(by_hand), rel=1e-6)


def test_formats_side_by_side():
    rows = list(eval.compare(MODEL, TEXT, ["fp32", "sym_int8", "sym_int3"], ctx=64))
    exact, eight, three = rows
    assert [row.format for row in rows] == ["fp32", "sym_int8", "sym_int3"]
    assert exact.divergence == pytest.approx(0, abs=1e-9)
    assert exact.divergence < eight.divergence < three.divergence
    assert eight.perplexity == pytest.approx(exact.perplexity, rel=0.05)
    assert eight.bits_per_weight == pytest.approx(8.25, abs=0.01)
    assert exact.size > 3 * eight.size
    assert all(row.tokens_per_second > 0 for row in rows)


def test_the_command_prints_a_table(tmp_path, capsys):
    data = tmp_path / "text.txt"
    data.write_text(TEXT)
    arguments = ["perplexity", MODEL, "--data", str(data), "--low-bit", "sym_int4", "nf4", "--ctx", "64", "-q"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["format", "algorithm", "size", "bits/weight", "perplexity", "divergence", "tok/s"]
    assert [line.split()[0] for line in lines[1:]] == ["sym_int4", "nf4"]
    assert cli.main([*arguments, "--json", "--clip-search", "--no-reference"]) == 0
    row = json.loads(capsys.readouterr().out)[0]
    assert row["divergence"] is None
    assert math.isfinite(row["perplexity"])


def test_convert_takes_a_quantiser(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("Once upon a time.\n\nThe fox lived in a forest.")
    out = str(tmp_path / "out")
    calibrated = ["--algorithm", "gptq", "--calibration", str(tmp_path / "text.txt")]
    assert cli.main(["convert", MODEL, out, "--low-bit", "sym_int3", "-q", *calibrated]) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["quantiser"]["algorithm"] == "gptq"
    assert lowbit.load(out).generate("Once upon a time", max_new_tokens=3).text
    assert cli.main(["convert", MODEL, out, "--algorithm", "awq", "-q"]) == 2
    assert "needs text" in capsys.readouterr().err


def test_an_importance_matrix_is_measured_and_used(tmp_path, capsys):
    data, file = tmp_path / "text.txt", tmp_path / "imatrix.dat"
    data.write_text(TEXT)
    assert cli.main(["imatrix", MODEL, str(file), "--data", str(data), "--tokens", "64", "-q"]) == 0
    found = read_imatrix(file)
    assert found.keys() == {f"layers.{i}.{n}" for i in range(6) for n in ("qkv", "o", "gate_up", "down")}
    measured, passes = measure(MODEL, [TEXT], tokens=64)
    assert passes == 1
    for name, values in measured.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)
    recorded = struct.pack("<ii", passes, len(data.name)) + data.name.encode()  # what the file ends with
    assert file.read_bytes().endswith(recorded)
    few = ["--tokens", "60", "--ctx", "16"]  # counted are the sequences that were read, not those there was room for
    data.write_text("Once upon a time.\n\nThe end.")
    assert cli.main(["imatrix", MODEL, str(tmp_path / "few.dat"), "--data", str(data), *few, "-q"]) == 0
    assert (tmp_path / "few.dat").read_bytes().endswith(struct.pack("<ii", 2, len(data.name)) + data.name.encode())
    plain, weighed = (lowbit.load(MODEL, "sym_int4", quantiser=q) for q in (None, Quantiser(imatrix=file)))
    exact = lowbit.load(MODEL, "fp32")
    ids = exact.encode(TEXT)[:64]
    errors = [np.square(m.logits(ids) - exact.logits(ids)).mean() for m in (plain, weighed)]
    assert errors[1] < errors[0]
    low_bit = tmp_path / "low"
    plain.save_low_bit(low_bit)
    assert cli.main(["imatrix", str(low_bit), str(file), "--data", str(data), "-q"]) == 2
    assert "original model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "at least two"),
        (TEXT, {"ctx": 100000}, "context allows"),
        (TEXT, {"ctx": 1}, "context allows"),
        (TEXT, {"ctx": 16, "stride": 17}, "windows of 16"),
    ],
)
def test_bad_settings(model, text, options, message):
    with pytest.raises(ValueError, match=message):
        eval.perplexity(model, text, **options)
