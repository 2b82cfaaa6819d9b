"""lowbit.transformers: the predecessors' loaders; their published snippets run with the import and the path changed."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import tiny_torch as tiny
from tiny_torch import EXACT, close

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

DEMO = str(Path(__file__).resolve().parents[2] / "demo" / "model")  # a Llama of 3 M parameters
TEXT = "Once upon a time, there existed a little girl,"


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny.causal("llama").save_pretrained(folder)
    return folder


# ---- the seeds' snippets --------------------------------------------------------------------------------------------


def test_snippet_one_line_for_a_llama():
    model_path = DEMO
    from transformers import LlamaForCausalLM
    from transformers import PreTrainedTokenizerFast as LlamaTokenizer

    from lowbit import optimize_model

    model = LlamaForCausalLM.from_pretrained(model_path)
    model = optimize_model(model)

    tokenizer = LlamaTokenizer.from_pretrained(model_path)
    inputs = tokenizer(TEXT, return_tensors="pt").input_ids
    output = model.generate(inputs, max_new_tokens=32)
    assert isinstance(model, LlamaForCausalLM)
    assert tokenizer.decode(output[0], skip_special_tokens=True).startswith(TEXT)
    assert output.shape[1] > inputs.shape[1]


def test_snippet_load_in_4bit_and_streamer(capsys):
    from transformers import AutoTokenizer, TextStreamer

    from lowbit.transformers import AutoModelForCausalLM

    model_name = DEMO
    prompt = "Once upon a time, there existed a little girl,"

    tokenizer = AutoTokenizer.from_pretrained(model_name, trust_remote_code=True)
    inputs = tokenizer(prompt, return_tensors="pt").input_ids
    streamer = TextStreamer(tokenizer)

    model = AutoModelForCausalLM.from_pretrained(model_name, load_in_4bit=True)
    capsys.readouterr()
    outputs = model.generate(inputs, streamer=streamer, max_new_tokens=300)

    printed = capsys.readouterr().out
    assert printed.strip() == tokenizer.decode(outputs[0]).strip()
    assert len(printed) > len(prompt) + 100


def test_snippet_stopping_criteria():
    import torch
    from transformers import AutoTokenizer, StoppingCriteria, StoppingCriteriaList, TextStreamer

    from lowbit.transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    inputs = tokenizer(TEXT, return_tensors="pt").input_ids
    streamer = TextStreamer(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(DEMO, load_in_4bit=True)

    class StopOnTokens(StoppingCriteria):
        def __init__(self, min_length: int, start_length: int, stop_token_id: list[int]):
            self.min_length = min_length
            self.start_length = start_length
            self.stop_token_id = stop_token_id

        def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> bool:
            if input_ids.shape[-1] - self.start_length > self.min_length:
                for stop_id in self.stop_token_id:
                    if input_ids[0][input_ids.shape[-1] - 1] == stop_id:
                        return True
            return False

    stopping_criteria = StoppingCriteriaList(
        [
            StopOnTokens(
                min_length=80,
                start_length=inputs.shape[1],
                stop_token_id=[tokenizer.eos_token_id],
            )
        ]
    )

    model.generation_config.max_length = 300
    outputs = model.generate(inputs, streamer=streamer, stopping_criteria=stopping_criteria)
    assert inputs.shape[1] < outputs.shape[1] <= 300


# ---- arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"load_in_4bit": True}, "sym_int4"),
        ({"load_in_8bit": True}, "sym_int8"),
        ({"load_in_low_bit": "nf4", "load_in_4bit": True}, "nf4"),
        ({"quantization_config": {"low_bit": "fp8_e4m3"}}, "fp8_e4m3"),
    ],
)
def test_formats(llama_folder, arguments, name):
    from lowbit.transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_folder, **arguments)
    assert model.model.layers[0].mlp.up_proj.format.name == name
    assert hasattr(model, "native_graph")
    assert not hasattr(
        AutoModelForCausalLM.from_pretrained(llama_folder, optimize_model=False, **arguments), "native_graph"
    )


def test_bitsandbytes_config(llama_folder):
    from importlib import metadata

    from transformers import BitsAndBytesConfig

    from lowbit.transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        llama_folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    assert model.lm_head.format.name == "sym_int8"
    try:
        metadata.version("bitsandbytes")
    except metadata.PackageNotFoundError:
        tiny.needs("5.0", "makes no 4-bit BitsAndBytesConfig without bitsandbytes")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=["lm_head"])
    model = AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=config)
    layer = model.model.layers[0].mlp.up_proj
    assert (layer.format.name, layer.group_size) == ("nf4", 64)
    assert type(model.lm_head).__name__ == "Linear"


def test_weight_only_quant_config(llama_folder):
    from lowbit.transformers import AutoModel, AutoModelForCausalLM, WeightOnlyQuantConfig

    for config in (WeightOnlyQuantConfig, WeightOnlyQuantConfig()):  # published examples pass the class
        layer = (
            AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=config).model.layers[0].mlp.up_proj
        )
        assert (layer.format.name, layer.group_size, layer.compute) == ("nf4", 32, "fp32")
    awq = WeightOnlyQuantConfig(
        weight_dtype="int4", group_size=64, algorithm="AWQ", calib_dataloader=[[tiny.ids(1, 60, seed=9)][0]] * 2
    )
    model = AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=awq, optimize_model=True)
    plain = AutoModelForCausalLM.from_pretrained(llama_folder, load_in_4bit=True, compute="fp32")
    assert 1e-3 < close(model(tiny.ids()).logits, plain(tiny.ids()).logits) < 1
    with pytest.raises(ValueError, match="calibration"):
        AutoModel.from_pretrained(llama_folder, quantization_config=awq)
    with pytest.raises(ValueError, match="LowBitConfig"):
        AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=object())


def test_packed_while_it_is_read(llama_folder, monkeypatch):
    """A known family never exists as a float model, and is what optimize_model makes of one."""
    import transformers

    from lowbit import optimize_model
    from lowbit.transformers import AutoModelForCausalLM

    expected = optimize_model(tiny.causal("llama"), "nf4", mixed_precision=True, **EXACT)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", None)
    model = AutoModelForCausalLM.from_pretrained(llama_folder, load_in_low_bit="nf4", mixed_precision=True, **EXACT)
    assert close(model(tiny.ids()).logits, expected(tiny.ids()).logits) < 1e-6
    assert model.lm_head.format.name == "sym_int8"
    assert model.model.embed_tokens.format.name == "fp32"


def test_without_a_format_it_is_transformers(llama_folder):
    import transformers

    from lowbit.transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama_folder)
    assert type(model) is transformers.LlamaForCausalLM
    assert type(model.lm_head) is __import__("torch").nn.Linear


def test_refusals(llama_folder, tmp_path):
    from lowbit.transformers import AutoModel, AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained
    with pytest.raises(ValueError, match="device_map"):
        load(llama_folder, load_in_4bit=True, device_map="xpu")
    with pytest.raises(ValueError, match="model_hub"):
        load(llama_folder, load_in_4bit=True, model_hub="modelscope")
    with pytest.raises(ValueError, match="assistant_model"):
        load(llama_folder, load_in_4bit=True, speculative=True)
    with pytest.raises(ValueError, match="Did you mean"):
        load(llama_folder, load_in_low_bit="sym_in4")
    with pytest.raises((OSError, ValueError), match="nothing"):  # transformers' own; 4.57 takes the path for a hub id
        load(tmp_path / "nothing", load_in_4bit=True)
    with pytest.raises(OSError, match="from_pretrained"):
        AutoModel()
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.load_low_bit(llama_folder)


def test_arguments_of_the_predecessors_that_choose_nothing_here(llama_folder):
    from lowbit.transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(
        llama_folder, load_in_4bit=True, cpu_embedding=True, use_neural_speed=False, device_map="cpu", speculative=False
    )


# ---- saving and loading ---------------------------------------------------------------------------------------------


def test_save_and_load(llama_folder, tmp_path):
    import lowbit
    from lowbit.transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(DEMO, load_in_low_bit="nf4", modules_to_not_convert=["lm_head"])
    model.save_low_bit(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert {"model.safetensors", "lowbit.json", "config.json", "tokenizer.json", "generation_config.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)

    for loaded in (
        AutoModelForCausalLM.load_low_bit(tmp_path / "saved", trust_remote_code=True),
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved"),
    ):
        assert close(loaded(tiny.ids()).logits, model(tiny.ids()).logits) == 0
        assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id
        assert type(loaded.lm_head).__name__ == "Linear"
    loaded.save_pretrained(tmp_path / "again", safe_serialization=True)  # as ITREX spells it

    without_torch = lowbit.load(tmp_path / "again")  # the same folder for the text interface
    text = without_torch.generate(TEXT, max_new_tokens=24, temperature=0).text
    ids = without_torch.encode(TEXT)
    out = model.generate(__import__("torch").tensor([ids]), max_new_tokens=24, do_sample=False)
    assert without_torch.decode(out[0, len(ids) :].tolist()) == text


def test_folders_of_lowbit_load(tmp_path):
    """What lowbit.load saved, with a packed embedding tied to the head, opens as a transformers model."""
    import lowbit
    from lowbit.transformers import AutoModelForCausalLM

    text_model = lowbit.load(DEMO, low_bit="sym_int4")
    text_model.save_low_bit(tmp_path / "saved")
    model = AutoModelForCausalLM.load_low_bit(tmp_path / "saved")
    assert model.lm_head.format.name == model.get_input_embeddings().format.name == "sym_int8"
    assert model.lm_head.packed.data_ptr() == model.get_input_embeddings().packed.data_ptr()
    ids = text_model.encode(TEXT)
    out = model.generate(__import__("torch").tensor([ids]), max_new_tokens=24, do_sample=False)
    expected = text_model.generate(TEXT, max_new_tokens=24, temperature=0).text
    assert text_model.decode(out[0, len(ids) :].tolist()) == expected


def test_other_tasks(tmp_path):
    import transformers

    from lowbit import transformers as low

    for auto, make in (
        ("AutoModelForSequenceClassification", "BertForSequenceClassification"),
        ("AutoModel", "BertModel"),
        ("AutoModelForMaskedLM", "BertForMaskedLM"),
    ):
        config = transformers.BertConfig(
            vocab_size=tiny.VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4
        )
        original = tiny.randomise(getattr(transformers, make)(config))
        original.save_pretrained(tmp_path / auto)
        model = getattr(low, auto).from_pretrained(tmp_path / auto, load_in_low_bit="nf4", **EXACT)
        folder = model.save_low_bit(tmp_path / f"{auto}-saved")
        loaded = getattr(low, auto).load_low_bit(folder, **EXACT)
        ours, saved, theirs = (
            m(tiny.ids(2))[0] for m in (model, loaded, tiny.dequantised(model, copy.deepcopy(original)))
        )
        assert close(ours, theirs) < 1e-4
        assert close(saved, ours) < 1e-5  # not 0: transformers 4 may build the two with different attention


def test_lowbit_load_says_who_can_open_a_folder_of_modules(tmp_path):
    import lowbit
    from lowbit import optimize_model

    model = optimize_model(tiny.causal("llama"), optimize_llm=False)
    model.save_low_bit(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"lowbit\.load_low_bit"):
        lowbit.load(tmp_path / "saved")


def test_damaged_and_foreign_folders(llama_folder, tmp_path):
    import transformers

    from lowbit import load_low_bit, optimize_model
    from lowbit.transformers import AutoModelForCausalLM

    folder = optimize_model(tiny.causal("llama"), optimize_llm=False).save_low_bit(tmp_path / "saved")
    with pytest.raises(ValueError, match="GPT2LMHeadModel"):
        load_low_bit(transformers.GPT2LMHeadModel(transformers.GPT2Config(**tiny.GPT2)), folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="damaged"):
        AutoModelForCausalLM.load_low_bit(folder)
    with pytest.raises(FileExistsError, match="did not write"):
        optimize_model(tiny.causal("llama")).save_low_bit(llama_folder)
    with pytest.raises(FileNotFoundError, match=r"no folder at .*nowhere; give the path of a model folder"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "nowhere", load_in_4bit=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match=r"config\.json"):  # transformers' own words
        AutoModelForCausalLM.from_pretrained(tmp_path / "empty", load_in_4bit=True)


def test_a_torch_too_old_for_transformers_is_named(monkeypatch):
    """A new transformers beside an old torch imports, but holds stand-ins for its models."""
    from importlib import util

    import torch
    import transformers

    from lowbit import low_memory_init

    spec = util.find_spec("lowbit.transformers")
    monkeypatch.setattr(transformers, "is_torch_available", lambda: False)
    with pytest.raises(ImportError, match=rf"torch {re.escape(torch.__version__)}: it needs a newer torch"):
        spec.loader.exec_module(util.module_from_spec(spec))
    with low_memory_init():  # other modules need no transformers
        assert torch.nn.Linear(4, 4).weight.is_meta


# ---- plain transformers ---------------------------------------------------------------------------------------------


def test_quantiser_plug_in(llama_folder):
    from importlib.util import find_spec

    from transformers import AutoModelForCausalLM

    from lowbit import optimize_model
    from lowbit.transformers import LowBitConfig

    if find_spec("accelerate") is None:
        tiny.needs("5.0", "loads nothing with a quantization_config without accelerate")
    config = LowBitConfig("nf4", modules_to_not_convert=["lm_head"], **EXACT)
    assert (
        LowBitConfig.from_dict(json.loads(config.to_json_string(use_diff=False))).load_options()
        == config.load_options()
    )
    model = AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=config)
    expected = optimize_model(tiny.causal("llama"), "nf4", modules_to_not_convert=["lm_head"], **EXACT)
    assert close(model(tiny.ids()).logits, expected(tiny.ids()).logits) < 1e-6
    assert model.generate(tiny.ids(), max_new_tokens=3).shape == (1, 23)
    with pytest.raises(ValueError, match="device_map"):
        AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=config, device_map={"": "xpu"})


def test_generation_options_beside_loading_arguments(tmp_path):
    """As the predecessors' documents pass them; transformers itself refuses unknown ones since its version 5."""
    from lowbit.transformers import AutoModelForCausalLM

    arguments = {"temperature": 0, "max_length": 40, "repetition_penalty": 1.5, "use_cache": True}
    model = AutoModelForCausalLM.from_pretrained(DEMO, load_in_4bit=True, **arguments)
    model.save_low_bit(tmp_path / "saved")
    for loaded in (model, AutoModelForCausalLM.load_low_bit(tmp_path / "saved", **arguments)):
        settings = loaded.generation_config
        assert (settings.do_sample, settings.max_length, settings.repetition_penalty) == (False, 40, 1.5)
        assert loaded.config.use_cache
    with pytest.raises(TypeError, match="tempratur"):
        AutoModelForCausalLM.from_pretrained(DEMO, load_in_4bit=True, tempratur=0)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_checkpoints_of_gptq_and_awq(tmp_path, method):
    """Their codes run as they are, in modules of transformers' class; nothing but torch and transformers is needed."""
    import torch

    import integer_checkpoints
    from lowbit.transformers import AutoModelForCausalLM

    values = integer_checkpoints.write(tmp_path / "model", method, symmetric=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", load_in_4bit=True)
    layer = model.model.layers[1].mlp.down_proj
    assert (layer.format.name, layer.group_size) == ("asym_int4", integer_checkpoints.GROUP)
    expected = torch.from_numpy(values["model.layers.1.mlp.down_proj.weight"])
    assert close(layer.dequantize(), expected) < 5e-3  # bf16
    assert model.generate(tiny.ids() % 90, max_new_tokens=3, do_sample=False).shape == (1, 23)
    without_a_format = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert close(without_a_format(tiny.ids() % 90).logits, model(tiny.ids() % 90).logits) == 0
    low = AutoModelForCausalLM.load_low_bit(model.save_low_bit(tmp_path / "saved"))
    assert close(low(tiny.ids() % 90).logits, model(tiny.ids() % 90).logits) == 0
