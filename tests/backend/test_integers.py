"""GPTQ and AWQ checkpoints: their codes are taken over."""

from __future__ import annotations

import json

import numpy as np
import pytest

from integer_checkpoints import GROUP, write
from lowbit.loading import load_model


def canonical(values: dict, layer: int) -> dict[str, np.ndarray]:
    at = f"model.layers.{layer}."
    return {
        "qkv": np.concatenate([values[f"{at}self_attn.{n}_proj.weight"] for n in "qkv"]),
        "o": values[f"{at}self_attn.o_proj.weight"],
        "down": values[f"{at}mlp.down_proj.weight"],
        "gate": values[f"{at}mlp.gate_proj.weight"],
        "up": values[f"{at}mlp.up_proj.weight"],
    }


def check(loaded, values, tolerance) -> None:
    for layer in range(2):
        for name, expected in canonical(values, layer).items():
            if name in ("gate", "up"):
                found = loaded.tensors[f"layers.{layer}.gate_up.weight"].dequantize()
                found = found.reshape(-1, 2, 16, 64)[:, int(name == "up")].reshape(-1, 64)[: len(expected)]
            else:
                found = loaded.tensors[f"layers.{layer}.{name}.weight"].dequantize()
            assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max(), name


CASES = [
    ("gptq", True, {}),
    ("gptq", False, {}),
    ("gptq", False, {"checkpoint_format": "gptq_v2"}),
    ("gptq", True, {"config_file": "quantize_config.json"}),
    ("awq", False, {"version": "gemm"}),
    ("awq", True, {}),
]


@pytest.mark.parametrize(("method", "symmetric", "settings"), CASES)
def test_codes_are_taken_over(tmp_path, method, symmetric, settings):
    values = write(tmp_path / "model", method, symmetric, **settings)
    loaded = load_model(tmp_path / "model")
    tensor = loaded.tensors["layers.0.qkv.weight"]
    assert (tensor.format.name, tensor.group_size) == ("sym_int4" if symmetric else "asym_int4", GROUP)
    check(loaded, values, 0 if symmetric else 1e-3)
    assert loaded.quantization["checkpoint"]["method"] == method


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_other_formats_round_the_values_again(tmp_path, method):
    values = write(tmp_path / "model", method, False)
    check(load_model(tmp_path / "model", "sym_int8"), values, 0.01)
    check(load_model(tmp_path / "model", None), values, 1e-6)


def test_eight_bits_and_activation_order(tmp_path):
    values = write(tmp_path / "eight", "gptq", True, bits=8)
    check(load_model(tmp_path / "eight", "sym_int8", group_size=GROUP), values, 0.01)
    values = write(tmp_path / "order", "gptq", True, order=True)
    check(load_model(tmp_path / "order", None), values, 1e-6)
    check(load_model(tmp_path / "order", "sym_int4", group_size=32), values, 0.3)


def test_variants_that_are_not_read(tmp_path):
    write(tmp_path / "two", "gptq", True)
    for change in ({"bits": 3}, {"quant_method": "awq", "version": "gemv"}, {"checkpoint_format": "marlin"}):
        path = tmp_path / "two" / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP} | change
        path.write_text(json.dumps(config))
        with pytest.raises(ValueError, match="original"):
            load_model(tmp_path / "two")


def test_saved_folder_opens_as_any_other(tmp_path):
    from lowbit import checkpoint

    write(tmp_path / "model", "awq", False)
    loaded = load_model(tmp_path / "model")
    checkpoint.save(loaded, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert np.array_equal(again.tensors["layers.1.down.weight"].data, loaded.tensors["layers.1.down.weight"].data)
