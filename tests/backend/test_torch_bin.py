"""pytorch_model.bin: read by torch with weights_only, row by row; pickles that could run code are refused."""

import json
import pickle

import numpy as np
import pytest
from tiny_hf import hand_made_family, write_llama

from lowbit import loading, models
from lowbit.ops import BF16
from lowbit.sources import open_source, torch_bin

pytestmark = pytest.mark.torch


@pytest.fixture
def torch():
    import torch

    return torch


@pytest.fixture
def bf16_tensors(torch):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(40, 24, generator=generator, dtype=torch.float32).to(torch.bfloat16),
        "b": torch.randn(24, 8, generator=generator),
        "c": torch.randn(7, generator=generator).to(torch.float16),
        "scalar": torch.tensor(3.0),
        "ids": torch.arange(5),
    }
    tensors["shared"] = tensors["b"]
    tensors["transposed"] = tensors["a"].t()
    return tensors


@pytest.mark.parametrize("zip_file", [True, False])
def test_reads_what_torch_saved(tmp_path, torch, bf16_tensors, zip_file):
    file = tmp_path / "pytorch_model.bin"
    torch.save({**bf16_tensors, "step": 5}, file, _use_new_zipfile_serialization=zip_file)
    source = open_source(tmp_path)
    assert sorted(source.names) == sorted(bf16_tensors)
    for name, tensor in bf16_tensors.items():
        dtype, shape = source.info(name)
        assert shape == tuple(tensor.shape)
        assert dtype == (BF16 if tensor.dtype == torch.bfloat16 else tensor.numpy().dtype)
        expected = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        array = source.read(name)
        assert array.tobytes() == expected
        assert not array.flags.writeable
    assert source.read("a", 3, 9).tobytes() == bf16_tensors["a"][3:9].view(torch.uint8).numpy().tobytes()
    source.close()


def test_shards(tmp_path, torch, bf16_tensors):
    weight_map = {}
    for i, name in enumerate(bf16_tensors):
        file = f"pytorch_model-{i + 1:05}-of-{len(bf16_tensors):05}.bin"
        torch.save({name: bf16_tensors[name]}, tmp_path / file)
        weight_map[name] = file
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert open_source(tmp_path).read("b").tobytes() == bf16_tensors["b"].numpy().tobytes()


def test_pages_are_given_back_and_arrays_stay(tmp_path, torch, bf16_tensors, monkeypatch):
    monkeypatch.setattr(torch_bin, "REOPEN_BYTES", 1)
    torch.save(bf16_tensors, tmp_path / "pytorch_model.bin")
    source = open_source(tmp_path)
    array = source.read("b")
    source.release("b")
    assert source.files[0]._tensors is None
    assert source.read("b").tobytes() == array.tobytes()


def test_a_whole_model(tmp_path, torch, monkeypatch):
    monkeypatch.setattr(models, "family", hand_made_family, raising=False)
    tensors = write_llama(tmp_path / "m")
    expected = loading.load_model(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    as_torch = {n: torch.from_numpy(a.view("<i2").copy()).view(torch.bfloat16) for n, a in tensors.items()}
    torch.save({"state_dict": as_torch, "epoch": 3}, tmp_path / "m" / "pytorch_model.bin")
    loaded = loading.load_model(tmp_path / "m")
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(
            getattr(tensor, "data", tensor), getattr(loaded.tensors[name], "data", loaded.tensors[name])
        )


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the pickle ran')",))


@pytest.mark.parametrize("zip_file", [True, False])
def test_a_pickle_that_runs_code_is_refused(tmp_path, torch, zip_file):
    file = tmp_path / "pytorch_model.bin"
    if zip_file:
        torch.save({"w": Evil()}, file)
    else:
        file.write_bytes(pickle.dumps({"w": Evil()}, protocol=2))
    with pytest.raises(ValueError, match=r"pytorch_model\.bin holds more than tensors.*safetensors"):
        open_source(tmp_path)


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04 cut", bytes(100)])
def test_a_damaged_file(tmp_path, content):
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"pytorch_model\.bin (is not a sound|holds more)"):
        open_source(tmp_path)


def test_a_truncated_file(tmp_path, torch, bf16_tensors):
    file = tmp_path / "pytorch_model.bin"
    torch.save(bf16_tensors, file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is not a sound PyTorch file"):
        open_source(tmp_path)


def test_a_dtype_numpy_lacks(tmp_path, torch):
    torch.save({"w": torch.zeros(4, dtype=torch.float8_e4m3fn)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"'w' in .*float8_e4m3fn.*bf16"):
        open_source(tmp_path).info("w")
