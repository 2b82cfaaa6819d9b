"""benchmarks/bench_load.py and make_model.py run: a tiny shape through the same code as the large ones."""

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "max_position_embeddings": 128,
}


@pytest.fixture
def make_model(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import make_model

    for name, shape in list(make_model.SHAPES.items()):
        tiny = {**shape, **TINY, "head_dim": 16}
        tiny.pop("rope_scaling", None)
        monkeypatch.setitem(make_model.SHAPES, name, tiny)
    return make_model


@pytest.mark.parametrize("shape", ["qwen2-0.5b", "llama-1b", "llama-7b"])
def test_a_made_model_runs_and_is_the_same_every_time(tmp_path, make_model, shape):
    import lowbit

    folders = [make_model.make_model(shape, tmp_path / name) for name in ("a", "b")]
    weights = [(folder / "model.safetensors").read_bytes() for folder in folders]
    assert weights[0] == weights[1]
    model = lowbit.load(folders[0], threads=1)
    assert model.generate("hello", max_new_tokens=3, ignore_eos=True).completion_tokens == 3
    assert model.decode(model.encode("Zürich")).endswith("Zürich")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_is_measured(tmp_path, make_model):
    import bench_load

    row = bench_load.measure("llama-1b", "sym_int4", tmp_path, rounds=1)
    assert 0 < row["packed_mb"] < row["bf16_mb"]
    assert row["disk_mb"] > row["packed_mb"]
    assert all(row[key] > 0 for key in row if key.endswith("_s"))
