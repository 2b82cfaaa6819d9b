"""WeightOnlyQuantConfig: ITREX's settings mean here what its documents say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lowbit
from lowbit import woq
from lowbit.calibration import Quantiser
from lowbit.woq import AutoRoundConfig, AwqConfig, GPTQConfig, RtnConfig, TeqConfig, WeightOnlyQuantConfig

MODEL = str(Path(__file__).resolve().parents[2] / "demo" / "model")


@pytest.mark.parametrize(
    ("settings", "format", "full_range"),
    [
        ({}, "nf4", True),
        ({"weight_dtype": "int8"}, "sym_int8", True),
        ({"weight_dtype": "int4_fullrange"}, "sym_int4", True),
        ({"weight_dtype": "int4_clip"}, "sym_int4", False),
        ({"weight_dtype": "int4"}, "sym_int4", True),
        ({"weight_dtype": "int4", "scheme": "asym"}, "asym_int4", True),
        ({"weight_dtype": "int4_clip", "alg": "asym"}, "asym_int4", True),
        ({"weight_dtype": "fp4_e2m1"}, "fp4", True),
        ({"weight_dtype": "fp8_e4m3"}, "fp8_e4m3", True),
    ],
)
def test_weight_types(settings, format, full_range):
    options = WeightOnlyQuantConfig(**settings).load_options()
    assert (options["low_bit"].format.name, options["low_bit"].full_range) == (format, full_range)
    assert options["group_size"] == 32
    assert options["compute"] == "fp32"


def test_both_names_of_the_type_of_double_quantised_scales():
    """ITREX 1.2 said double_quant_dtype; a script may pass both."""
    for names in (
        ("double_quant_dtype",),
        ("double_quant_scale_dtype",),
        ("double_quant_dtype", "double_quant_scale_dtype"),
    ):
        config = WeightOnlyQuantConfig(use_double_quant=True, **dict.fromkeys(names, "fp8_e4m3"))
        assert config.quantiser().double_quant == "fp8_e4m3"


def test_the_documents_settings_load_a_model():
    config = WeightOnlyQuantConfig(
        compute_dtype="int8", weight_dtype="int4", group_size=128, mse_range=True, use_double_quant=True,
        llm_int8_skip_modules=["layers.0.self_attn"],
    )  # fmt: skip
    model = lowbit.load(MODEL, **config.load_options())
    tensors = model._loaded.tensors
    assert tensors["layers.0.qkv.weight"].format.name == "fp16"
    assert tensors["layers.1.qkv.weight"].format.name == "sym_int4"
    assert tensors["layers.1.qkv.weight"].group_size == 128
    assert model.generate("Once upon a time", max_new_tokens=4).text


def test_algorithms_take_texts_files_and_loaders(tmp_path):
    (tmp_path / "text.txt").write_text("One two.\n\nThree four.\n\n\nFive.")
    from_file = WeightOnlyQuantConfig(algorithm="AWQ", calib_dataset=str(tmp_path / "text.txt"), nsamples=2).quantiser()
    assert list(from_file.calibration) == ["One two.", "Three four."]
    assert (from_file.algorithm, from_file.tokens, from_file.length) == ("awq", 1024, 512)
    rows = WeightOnlyQuantConfig(algorithm="TEQ", calib_dataset=[{"text": "a"}, "b", "c"], nsamples=2).quantiser()
    assert list(rows.calibration) == ["a", "b"]
    batches = [np.array([[1, 2, 3]]), {"input_ids": [[4, 5]]}, (np.array([6]), None)]
    loaded = WeightOnlyQuantConfig(algorithm="GPTQ", calib_dataloader=batches).quantiser()
    assert list(loaded.calibration) == [[1, 2, 3], [4, 5], [6]]
    with pytest.raises(ValueError, match="one sequence at a time"):
        WeightOnlyQuantConfig(algorithm="GPTQ", calib_dataloader=[np.zeros((2, 3), int)]).quantiser()
    model = lowbit.load(MODEL, **WeightOnlyQuantConfig(algorithm="GPTQ", calib_dataloader=batches).load_options())
    assert model.generate("Once upon a time", max_new_tokens=2).text


def test_a_dataset_name_needs_datasets(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ImportError, match=r"NeelNanda/pile-10k.*pip install datasets"):
        WeightOnlyQuantConfig(algorithm="AWQ").quantiser()


def test_later_names():
    assert RtnConfig() == WeightOnlyQuantConfig(weight_dtype="int4_clip")
    assert RtnConfig(bits=8).weight_dtype == "int8"
    assert GPTQConfig(desc_act=True).act_order is True
    assert GPTQConfig(damp_percent=0.1).damp == 0.1
    assert AwqConfig(bits=4).scheme == "asym"
    assert (AwqConfig().weight_dtype, AwqConfig().algorithm) == ("int8", "AWQ")
    assert AwqConfig(bits=4, zero_point=False).scheme == "sym"
    assert TeqConfig().algorithm == "TEQ"
    auto = AutoRoundConfig(dataset=["text"])
    assert (auto.algorithm, auto.group_size, auto.scheme) == ("AUTOROUND", 128, "asym")


def test_autoround_becomes_gptq_and_says_so(caplog):
    with caplog.at_level("WARNING", logger=woq.__name__):
        assert AutoRoundConfig(dataset=["some text"]).quantiser().algorithm == "gptq"
    assert "GPTQ" in caplog.text


def test_round_trips(tmp_path):
    config = WeightOnlyQuantConfig(weight_dtype="int4_clip", group_size=-1, scheme="asym", mse_range=True)
    assert WeightOnlyQuantConfig.from_dict(config.to_dict()) == config
    assert config.to_diff_dict() == {
        "weight_dtype": "int4_clip", "group_size": -1, "scheme": "asym", "mse_range": True,
    }  # fmt: skip
    config.save_pretrained(tmp_path / "folder")
    assert WeightOnlyQuantConfig.from_pretrained(tmp_path / "folder") == config
    with pytest.raises(FileNotFoundError, match=r"quantize_config\.json"):
        WeightOnlyQuantConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_dtype": "nf4", "scheme": "asym"}, "no minimum"),
        ({"weight_dtype": "int8", "scheme": "asym"}, "no asymmetric variant"),
        ({"scheme": "middle"}, "'sym' or 'asym'"),
        ({"group_size": 48}, "nearest is"),
        ({"weight_dtype": "int2"}, "fewer bits"),
        ({"compute_dtype": "int4"}, "fp32, bf16, int8"),
        ({"scale_dtype": "fp8_e8m0"}, "fp32, fp16, bf16"),
        ({"algorithm": "SPQR"}, "RTN, AWQ, TEQ, GPTQ"),
        ({"use_double_quant": True, "double_quant_scale_dtype": "int2"}, "int8, fp8_e4m3"),
    ],
)
def test_what_cannot_be_met_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        WeightOnlyQuantConfig(**settings)


def test_unknown_arguments_are_named_and_those_of_other_backends_pass():
    with pytest.raises(TypeError, match="group_sise"):
        WeightOnlyQuantConfig(group_sise=32)
    WeightOnlyQuantConfig(use_ggml=True, use_neural_speed=False, use_gptq=False, low_bit_model=False)
    assert Quantiser.DOUBLE_QUANT[0] == "int8"
